"""Decontamination: words, copies that are found, others that are not, overlap against the definition."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DecontaminationConfig
from pretrainer.data.decontamination.index import (
    Reference,
)
from pretrainer.data.decontamination.matching import MAX_MISSES, REACH_WORDS
from pretrainer.data.decontamination.seeds import BLOCK_WORDS, SEED_WORDS, Tables
from pretrainer.data.decontamination.stage import (
    contamination_report,
    decontamination_stage,
    overlaps,
)
from pretrainer.data.decontamination.words import fold_character, folding, read_words
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.filters.stage import run_stages
from tests.data.decontaminated import (
    CONFIG,
    QUESTION,
    array,
    documents,
    filler,
    loaded,
    overlap,
    with_changes,
    words,
)

PARAPHRASE = (
    "On the first day of the week 40 boxes of apples were sold by a grower; the day after, 20 boxes of pears. Given "
    "that one box has a mass of 11 kg, work out the total mass of all the fruit that was brought there by the family."
)


# ------------------------------------------------------------------------------------------------------------- words


def plain_words(text: str) -> list[tuple[str, int]]:
    """(word, first byte) by the definition, character by character in Python."""
    found: list[tuple[str, int]] = []
    open_word, place, begin = "", 0, 0
    for character in text:
        folded, category = fold_character(character), unicodedata.category(character)
        script = unicodedata.name(folded[0], "") if folded else ""
        single = script.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER"))
        if folded and not single:
            begin = begin if open_word else place
            open_word += folded
        elif folded or not (character in "'\u02bc\u2018\u2019\uff07" or category in ("Mn", "Me", "Cf")):
            found += [(word, at) for word, at in ((open_word, begin), (folded, place)) if word]
            open_word = ""
        place += len(character.encode())
    return found + [(open_word, begin)] * bool(open_word)


def plain_hash(word: str) -> int:
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ (value >> 33)) * multiplier % 2**64
    return value ^ (value >> 33)


def kernel_words(text: str, block: int = 10_000) -> tuple[list[int], list[int]]:
    """(hashes, first bytes), read in blocks of so many words."""
    data, offsets = utf8_buffers(array([text]))
    data, hashes, starts, i = data[: offsets[-1]], list[int](), list[int](), 0
    room, places = np.empty(block, np.uint64), np.empty(block + 1, np.int64)
    while i < data.size:
        count, i = read_words(data, i, folding(), room, places, 0)
        hashes += room[:count].tolist()
        starts += places[:count].tolist()
    return hashes, starts


NOTABLE = (
    "aZ09 \n_-'.\u2019\u00ad\u0301\u00e9\u00df\ufb01\uff21\u0915\u094d\u3042\u6f22\u0e01"
    "\U0001d400\U00020000\U000e0001\U0010ffff"
)
MIXED = st.text(st.sampled_from(NOTABLE) | st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=150, deadline=None)
@given(text=MIXED, block=st.integers(1, 4))
def test_words_are_those_of_the_definition_in_blocks_of_any_size(text: str, block: int) -> None:
    text = "".join(c for c in text if ord(c) < 0x20000)  # the table of folded characters ends there
    expected = plain_words(text)
    hashes, starts = kernel_words(text)
    assert hashes == [plain_hash(word) for word, _first in expected]
    assert starts == [first for _word, first in expected]
    assert kernel_words(text, block) == (hashes, starts)


@settings(max_examples=100, deadline=None)
@given(text=MIXED)
def test_any_unicode_is_read_to_its_end(text: str) -> None:
    hashes, starts = kernel_words(text, 2)
    assert len(hashes) == len(starts) and starts == sorted(set(starts))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Don\u2019t  STOP, now!", "dont stop now"),
        ("caf\u00e9 na\u00efve", "cafe\u0301 nai\u0308ve"),
        ("\uff26\uff35\uff2c\uff2c \U0001d5ea\ufb01\ufb02", "full wfifl"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("Stra\u00dfe \u03a3\u03a3", "STRASSE \u03c3\u03c2"),
        ("\u6f22\u5b57\u304c", "\u6f22 \u5b57\u3001\u304b\u3099"),
        ("well-known_name", "well known name"),
    ],
)
def test_texts_of_the_same_words(left: str, right: str) -> None:
    assert kernel_words(left)[0] == kernel_words(right)[0] != []


@pytest.mark.parametrize(("left", "right"), [("ab c", "a bc"), ("\u0915\u093f", "\u0915\u0940"), ("1 000", "1000")])
def test_texts_of_other_words(left: str, right: str) -> None:
    assert kernel_words(left)[0] != kernel_words(right)[0]


# -------------------------------------------------------------------------------------------------- copies and others


COPIES = {
    "exact": QUESTION,
    "upper case": QUESTION.upper(),
    "no punctuation": "".join(c for c in QUESTION if c.isalnum() or c == " "),
    "other punctuation": QUESTION.replace(",", " --").replace(".", "!").replace("farmer's", "farmer\u2019s"),
    "a word per line": QUESTION.replace(" ", "\n"),
    "indented quote": "> " + QUESTION.replace(" of ", " of\n   > "),
    "markup": QUESTION.replace("forty", "<b>forty</b>"),
    "first word changed": with_changes(QUESTION, 0),
    "two words changed": with_changes(QUESTION, 11, 30),
    "three words changed": with_changes(QUESTION, 7, 19, 28),
    "a word left out": QUESTION.replace(" every", ""),
    "words put in": QUESTION.replace("pears", "big green pears from the north"),
    "sentences exchanged": "If" + QUESTION.split("If")[1] + " " + QUESTION.split(" If")[0],
    "twice": f"{QUESTION}\n{QUESTION}",
    "in a document": f"{filler(300)} Question: {QUESTION} Answer: {filler(500)}",
}


@pytest.mark.parametrize("text", COPIES.values(), ids=COPIES.keys())
def test_copy_is_found(text: str) -> None:
    assert overlap(loaded(QUESTION), text) > 0.75


OTHERS = {
    "empty": "",
    "no words": " \n--- ... !!! \u3000",
    "paraphrase": PARAPHRASE,
    "other text": filler(200),
    "fewer words than a seed": "A farmer sells forty",
    "the same words sorted": " ".join(sorted(QUESTION.split())),
    "every fourth word changed": with_changes(QUESTION, *range(0, 37, 4)),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_other_text_is_not_found(text: str) -> None:
    assert overlap(loaded(QUESTION), text) == 0


def test_phrases_scattered_over_a_document_do_not_add_up() -> None:
    text = words(42)
    apart = [" ".join(text[i : i + 6]) for i in range(0, 42, 6)]
    assert overlap(loaded(" ".join(text)), f" {filler(60)} ".join(apart)) == 0
    assert overlap(loaded(" ".join(text)), " and then ".join(apart)) == 1


@pytest.mark.parametrize("before", [0, 1, BLOCK_WORDS - 20, BLOCK_WORDS - 1, BLOCK_WORDS, 2 * BLOCK_WORDS - 160])
def test_place_in_a_long_document_makes_no_difference(before: int) -> None:
    index, text = loaded(" ".join(words(150))), " ".join(words(150)[20:125])
    assert overlap(index, text) == 1
    assert overlap(index, f"{filler(before)} {text} {filler(50)}") == 1


@pytest.mark.parametrize(("found", "reason"), [(20, None), (21, "contaminated")])
def test_limit_is_a_share_of_the_words_of_a_short_text(found: int, reason: str | None) -> None:
    stage = decontamination_stage(CONFIG, loaded(" ".join(words(40))))
    verdict = run_stages(documents(f"{filler(30)} {' '.join(words(40)[:found])}", filler(9)), [stage])
    assert verdict.measures["decontamination_overlap"][0] == found / 40
    assert verdict.measures["decontamination_hits"].tolist() == [reason is not None, 0]
    assert verdict.reasons == [reason, None]


@pytest.mark.parametrize(("found", "reason"), [(50, None), (51, "contaminated_held_out")])
def test_limit_is_a_share_of_a_passage_of_a_long_text(found: int, reason: str | None) -> None:
    """A quoted passage counts although it is a small part of both texts."""
    stage = decontamination_stage(CONFIG, loaded(Reference("s", "d", " ".join(words(3000)), held_out=True)))
    quoting = f"{filler(2000)} {' '.join(words(3000)[1200 : 1200 + found])} {filler(2000)}"
    verdict = run_stages(documents(quoting), [stage])
    assert verdict.measures["decontamination_held_out_overlap"][0] == found / 100
    assert verdict.measures["decontamination_overlap"][0] == 0
    assert verdict.reasons == [reason]


def test_other_limits() -> None:
    config = DecontaminationConfig(max_overlap=0.9, passage_words=20, ngram_words=7)
    index = loaded(" ".join(words(60)), config=config)
    text = filler(8) + " " + " ".join(words(60)[:18])
    assert overlap(index, text) == 0.9
    assert run_stages(documents(text), [decontamination_stage(config, index)]).reasons == [None]
    assert overlap(index, " ".join(words(60)[:7])) == 0.35
    assert overlap(index, " ".join(words(60)[:6])) == 0


@pytest.mark.parametrize(("length", "found", "share"), [(7, 7, 0), (8, 8, 1), (8, 7, 0), (12, 11, 0), (16, 13, 13 / 16),
                                                        (16, 12, 0)])  # fmt: skip
def test_short_text_must_be_found_whole(length: int, found: int, share: float) -> None:
    assert overlap(loaded(" ".join(words(length))), " ".join(words(length)[:found])) == share


def test_hits_count_references_above_the_limit() -> None:
    index = loaded(QUESTION, " ".join(words(30)), " ".join(words(30, 1)))
    text = f"{QUESTION} {' '.join(words(30)[:14])} {' '.join(words(30, 1))}"
    assert overlap(index, text, "decontamination_hits") == 2


def test_annotated_stage_keeps_and_says_why() -> None:
    stage = decontamination_stage(CONFIG, loaded(QUESTION))
    verdict = run_stages(documents(QUESTION), [stage], annotate=["decontamination"])
    assert verdict.reasons == ["contaminated"] and verdict.kept.all()


def test_report_has_the_text_of_both_sides() -> None:
    held = Reference("web", "page#3", " ".join(words(40)), held_out=True)
    index = loaded(Reference("bench.jsonl", "7", QUESTION), held, Reference("bench.jsonl", "8", " ".join(words(30, 1))))
    copy, below_the_limit = with_changes(QUESTION, 10).upper(), " ".join(words(30, 1)[:14])
    docs = documents("clean", f"{below_the_limit}\u00e9 {copy} {filler(30)} {' '.join(words(40)[10:35])}.")
    lines = [json.loads(line) for line in contamination_report(docs, index, 0.5)]
    assert [(line["document"], line["reason"], line["reference"], line["line"]) for line in lines] == [
        ("d1", "contaminated", "bench.jsonl", "7"),
        ("d1", "contaminated_held_out", "web", "page#3"),
    ]
    assert lines[0]["document_text"] == copy and lines[0]["reference_text"] == QUESTION
    assert lines[0]["share"] == round(38 / 39, 4)
    assert lines[1]["document_text"] == " ".join(words(40)[10:35]) + "."
    assert lines[1]["reference_text"] == " ".join(words(40)[10:35]) and lines[1]["share"] == 0.625


# ------------------------------------------------------------------------------------------- against the definition


def plain_overlap(tables: Tables, reference: int, text: list[int]) -> float:
    """The share of one reference in words of a document, by comparing everything with everything."""
    first, end = int(tables.starts[reference]), int(tables.starts[reference + 1])
    own = tables.words[first:end].tolist()
    seeds = {tuple(own[g : g + SEED_WORDS]): g for g in reversed(range(len(own) - SEED_WORDS + 1))}
    counted = {g + j for g in seeds.values() for j in range(SEED_WORDS)}
    pairs: set[tuple[int, int]] = set()
    last: dict[int, int] = {}
    for p in range(len(text) - SEED_WORDS + 1):
        g = seeds.get(tuple(text[p : p + SEED_WORDS]))
        if g is None or p - last.get(g, -99) <= 16:
            continue
        last[g] = p
        for ways in (range(-1, -REACH_WORDS - 1, -1), range(SEED_WORDS + REACH_WORDS)):
            misses = 0
            for step in ways:
                if misses == MAX_MISSES or not (0 <= p + step < len(text) and 0 <= g + step < len(own)):
                    break
                misses = 0 if text[p + step] == own[g + step] else misses + 1
                pairs |= {(p + step, g + step)} if misses == 0 and g + step in counted else set()
    window = min(len(own), 100) * 3 // 2 + SEED_WORDS
    most = max((len({g for q, g in pairs if p <= q < p + window}) for p, _g in pairs), default=0)
    return min(1.0, most / min(len(counted), 100)) if most >= min(13, len(counted)) else 0.0


LETTERS = st.lists(st.sampled_from("abcdef"), min_size=8, max_size=40)


@settings(max_examples=120, deadline=None)
@given(reference=LETTERS, document=st.lists(st.sampled_from("abcdef"), max_size=60), cut=st.integers(0, 30))
def test_overlap_is_that_of_the_definition(reference: list[str], document: list[str], cut: int) -> None:
    index = loaded(" ".join(reference))
    copied = [*document, *reference[cut:], *document[:cut]]
    expected = plain_overlap(index.tables, 0, kernel_words(" ".join(copied))[0]) if index.references.num_rows else 0
    assert overlap(index, " ".join(copied)) == expected


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(MIXED | st.sampled_from([QUESTION, QUESTION[30:]]), max_size=6), cut=st.integers(0, 6))
def test_result_does_not_depend_on_the_batch(texts: list[str], cut: int) -> None:
    index = loaded(QUESTION)
    whole = overlaps(array(texts), index, 0.5)
    parts = [overlaps(array(part), index, 0.5) for part in (texts[:cut], texts[cut:])]
    for name, values in whole.items():
        assert values.tolist() == [*parts[0][name], *parts[1][name]]


def test_long_lines() -> None:
    index = loaded(" ".join("0123456789" * 3), QUESTION)
    texts = ["x" * 10_000_000, "0 1 2 3 4 5 6 7 8 9 " * 20_000, "\u6f22" * 100_000, QUESTION * 500]
    assert overlaps(array(texts), index, 0.5)["decontamination_hits"].tolist() == [0, 1, 0, 1]
