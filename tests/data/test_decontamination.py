"""Decontamination: what counts as a copy of a reference text, what does not, and where the references come from.

    python -m pytest -q tests/data/test_decontamination.py
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import sysconfig
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DataConfig, DecontaminationConfig, SourceConfig
from pretrainer.data.decontamination import index as index_module
from pretrainer.data.decontamination.benchmarks import read_benchmarks
from pretrainer.data.decontamination.freeze import freeze_decontamination, index_digest
from pretrainer.data.decontamination.index import (
    COMMON_LINES,
    Index,
    Reference,
    benchmark_digests,
    build_index,
    load_index,
)
from pretrainer.data.decontamination.matching import MAX_MISSES, REACH_WORDS
from pretrainer.data.decontamination.seeds import BLOCK_WORDS, MAX_CHAIN, SEED_WORDS, Tables
from pretrainer.data.decontamination.stage import (
    contamination_report,
    decontamination_stage,
    find_hits,
    index_path,
    overlaps,
    stages_of_run,
)
from pretrainer.data.decontamination.words import fold_character, folding, read_words
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.filters.stage import run_stages
from pretrainer.errors import ConfigError, StreamError
from pretrainer.storage import Store

CONFIG = DecontaminationConfig()
QUESTION = (
    "A farmer sells forty crates of apples at the market on Monday, and half as many crates of pears on Tuesday. "
    "If every crate weighs eleven kilograms, how many kilograms of fruit did the farmer's family carry to market?"
)
PARAPHRASE = (
    "On the first day of the week 40 boxes of apples were sold by a grower; the day after, 20 boxes of pears. Given "
    "that one box has a mass of 11 kg, work out the total mass of all the fruit that was brought there by the family."
)


def array(texts: Sequence[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def documents(*texts: str) -> pa.Table:
    return pa.table({"id": array([f"d{i}" for i in range(len(texts))]), "text": array(texts)})


def loaded(
    *references: Reference | str, background: Sequence[str] = (), config: DecontaminationConfig = CONFIG
) -> Index:
    named = [r if isinstance(r, Reference) else Reference("bench", str(i), r) for i, r in enumerate(references, 1)]
    return load_index(build_index(named, config, array(background)), config)


def overlap(index: Index, text: str, measure: str = "decontamination_overlap") -> float:
    return float(overlaps(array([text]), index, 0.5)[measure][0])


def words(count: int, seed: int = 0) -> list[str]:
    """Different words; no two seeds have any in common."""
    return [f"w{seed}x{i}" for i in range(count)]


def filler(count: int) -> str:
    return " ".join(words(count, 999))


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


def with_changes(text: str, *places: int) -> str:
    changed = text.split()
    for place in places:
        changed[place] = f"other{place}"
    return " ".join(changed)


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


# --------------------------------------------------------------------------------------------------------- the index


def test_index_is_the_same_bytes_and_keeps_the_digests_of_its_files() -> None:
    references = [Reference("b", str(i), " ".join(words(30, i % 7))) for i in range(20)]
    background, files = array([QUESTION, filler(40)]), {"b": "12"}
    content = build_index(references, CONFIG, background, files)
    assert content == build_index(references, CONFIG, background, files)
    assert benchmark_digests(content) == files
    assert load_index(content, CONFIG).left_out == {"repeated": 13}


def test_text_of_several_benchmarks_is_one_reference_of_the_first() -> None:
    copy, held = Reference("b", "9", QUESTION.upper()), Reference("s", "d", QUESTION, held_out=True)
    index = loaded(Reference("a", "3", QUESTION), copy, held)
    assert [hit.reference.name for hit in find_hits(documents(QUESTION), index, 0.5)] == ["a"]
    assert index.left_out == {"repeated": 2}


def test_question_that_fits_any_passage_is_left_out() -> None:
    stem, passage = "Which of these is the best title for the passage above?", " ".join(words(120))

    def left_out(times: int) -> dict[str, int]:
        lines = [Reference("b", str(i), text) for i in range(times) for text in (stem, passage)]
        return dict(loaded(QUESTION, *lines).left_out)

    assert left_out(COMMON_LINES) == {"repeated": 2 * COMMON_LINES - 2}
    assert left_out(COMMON_LINES + 1) == {"fits_any_passage": COMMON_LINES + 1, "repeated": COMMON_LINES}


LICENCE = " ".join(words(80, 5))


@pytest.mark.parametrize(
    ("held_out", "copies", "found"),
    [(True, 0, True), (True, 3, True), (True, 4, False), (False, 4, True), (False, 10, True), (False, 11, False)],
)
def test_passage_that_the_corpus_repeats_is_no_evidence(held_out: bool, copies: int, found: bool) -> None:
    own = " ".join(words(200))
    background = [f"{LICENCE} {' '.join(words(50, 20 + i))}" for i in range(copies)] + [filler(30)] * 5
    index = loaded(Reference("s", "d", f"{LICENCE} {own}", held_out), background=background)
    shares = overlaps(array([f"{LICENCE} {filler(100)}", own]), index, 0.5)
    share = shares["decontamination_held_out_overlap" if held_out else "decontamination_overlap"]
    assert (share > 0.5).tolist() == [found, True]


def test_common_words_beside_a_seed_are_no_evidence() -> None:
    """The end of the licence with the first words behind it is a seed; the licence before that counts for nothing."""
    own = words(200)
    background = [f"{LICENCE} {' '.join(words(50, 20 + i))}" for i in range(4)]
    index = loaded(Reference("s", "d", f"{LICENCE} {' '.join(own)}", held_out=True), background=background)
    shares = [overlap(index, f"{LICENCE} {' '.join(own[:n])} x", "decontamination_held_out_overlap") for n in (3, 9)]
    assert shares == [0, 0.13]  # 9 words and the 4 before them that a seed covers


def test_common_passage_of_several_references_is_no_evidence_for_any() -> None:
    references = [Reference("s", str(i), f"{LICENCE} {' '.join(words(200, i))}", held_out=True) for i in range(3)]
    assert overlap(loaded(*references, background=[LICENCE] * 4), LICENCE, "decontamination_held_out_overlap") == 0


def test_common_is_a_share_of_a_large_background() -> None:
    background = [LICENCE] * 12 + [f"word{i}" for i in range(1300)]
    assert overlap(loaded(LICENCE, background=background), LICENCE) == 1  # 12 of 1312 are less than 1 %
    assert loaded(LICENCE, background=background[:1000]).left_out == {"too_common": 1}


def test_seed_counts_once_per_text_of_the_background() -> None:
    assert overlap(loaded(LICENCE, background=[f"{LICENCE}\n" * 50] * 2), LICENCE) == 1


def test_text_without_words_of_its_own_is_left_out() -> None:
    """A repetition has fewer different words than it seems."""
    texts = ("tick tack " * 40, "\u6f22\u5b57" * 3, "", "one two three")
    assert loaded(*texts).left_out == {"too_common": 1, "too_short": 3}


def test_template_leads_to_the_first_references_alone() -> None:
    template = " ".join(words(30))
    index = loaded(*(f"{template} {' '.join(words(20, 100 + i))}" for i in range(MAX_CHAIN + 10)))
    assert overlap(index, template, "decontamination_hits") == MAX_CHAIN
    assert overlap(index, " ".join(words(20, 100 + MAX_CHAIN + 5)), "decontamination_hits") == 1


def test_no_references() -> None:
    assert overlap(loaded(), QUESTION) == 0
    assert overlap(loaded("too short"), QUESTION) == 0


def test_generated_contamination_of_the_library_is_found_and_nothing_else() -> None:
    """Docstrings of some modules planted in others, with three words changed, other case and other line ends."""
    draws, library = random.Random(0), Path(sysconfig.get_paths()["stdlib"])
    owners = ["argparse", "subprocess", "threading", "typing", "tempfile", "datetime"]
    others = ["ast", "codecs", "csv", "difflib", "doctest", "enum", "gettext", "inspect", "pydoc", "random", "tarfile"]
    items = [
        text
        for name in owners
        for node in ast.walk(ast.parse((library / f"{name}.py").read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node))
        and len(text.split()) >= 25
    ]
    assert len(items) > 100
    hosts = [(library / f"{name}.py").read_text() for name in others]
    index = loaded(*items)
    planted = []
    for item in items:
        changed = with_changes(item, *draws.sample(range(len(item.split())), 3)).swapcase().split(" ")
        copy = "\n".join(" ".join(changed[i : i + 9]) for i in range(0, len(changed), 9))
        host = draws.choice(hosts)
        planted.append(f"{host[:3000]}\n{copy}\n{host[3000:6000]}")
    found = overlaps(array(planted), index, 0.5)["decontamination_hits"] > 0
    assert found.mean() >= 0.98
    assert overlaps(array(hosts), index, 0.5)["decontamination_hits"].sum() == 0


# -------------------------------------------------------------------------------------------------------- benchmarks


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def texts_of(*uris: str, fields: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    found = read_benchmarks(DecontaminationConfig(benchmarks=uris, fields=fields)).references
    return [(Path(r.name).name, r.line, r.text) for r in found]


EIGHT = " ".join(words(8))


def test_every_string_of_a_line_is_a_text_and_short_ones_are_joined(tmp_path: Path) -> None:
    uri = write(
        tmp_path / "b.jsonl",
        {"id": 7, "question": EIGHT, "choices": {"text": ["one or two", QUESTION, "three"], "label": ["A", "B"]}},
        [EIGHT, None, True, [["deep words"]]],
    )
    assert texts_of(uri) == [
        ("b.jsonl", "1", EIGHT),
        ("b.jsonl", "1", QUESTION),
        ("b.jsonl", "1", "one or two\nthree\nA\nB"),
        ("b.jsonl", "2", EIGHT),
        ("b.jsonl", "2", "deep words"),
    ]


def test_fields_choose_and_a_line_needs_one_of_them(tmp_path: Path) -> None:
    uri = write(tmp_path / "b.jsonl", {"q": EIGHT, "a": QUESTION}, {"p": [QUESTION], "a": "x"})
    assert texts_of(uri, fields=("p", "q")) == [("b.jsonl", "1", EIGHT), ("b.jsonl", "2", QUESTION)]


def test_globs_folders_and_compressed_files(tmp_path: Path) -> None:
    for name, text in (("b", EIGHT), ("a", QUESTION)):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps(text).encode() + b"\n\n"))
    expected = [("a.jsonl.gz", "1", QUESTION), ("b.jsonl.gz", "1", EIGHT)]
    assert texts_of(str(tmp_path / "*.gz")) == texts_of(str(tmp_path)) == expected


def test_lone_surrogate_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"q": "' + EIGHT.encode() + b' \\ud800"}')
    assert texts_of(str(path)) == [("b.jsonl", "1", f"{EIGHT} ?")]


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (None, (), "it does not exist"),
        (b"\n \n", (), "is empty"),
        (b'{"q": "a"}\n{"q": \n', (), "line 2 is no JSON"),
        (b'"\xff"', (), "line 1 is no JSON"),
        (b"[" * 100_000, (), "line 1 is no JSON"),
        (json.dumps({"q": QUESTION}).encode(), ("text", "body"), "line 1 has none of them, but 'q'"),
        (json.dumps(QUESTION).encode(), ("text",), "line 1 has none of them, but a JSON str"),
        (b'{"q": "what is 12 times 3"}', (), "none of the 1 lines"),
    ],
)
def test_wrong_benchmark_names_file_and_remedy(
    tmp_path: Path, content: bytes | None, fields: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "b.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.decontamination\.(benchmarks|fields).*b\.jsonl") as error:
        texts_of(str(path), fields=fields)
    assert message in str(error.value)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(QUESTION.encode())[:-9])
    with pytest.raises(ConfigError, match=r"b\.jsonl\.gz cannot be decompressed"):
        texts_of(str(tmp_path / "b.jsonl.gz"))


# ------------------------------------------------------------------------------------------------------------ freeze


def data_config(**section: object) -> DataConfig:
    source = SourceConfig(name="s", uris=("x",))
    return DataConfig(sources=(source,), decontamination=DecontaminationConfig(**section))  # type: ignore[arg-type]


def test_index_is_made_once_per_config(tmp_path: Path) -> None:
    data, uri = Store(str(tmp_path / "data")), write(tmp_path / "b.jsonl", QUESTION)
    config, held = data_config(benchmarks=(uri,)), [documents(" ".join(words(60)))]
    freeze_decontamination(config, held, [array([filler(9)])], data)
    digest = index_digest(config.decontamination, data)
    assert list(benchmark_digests(data.read(index_path(config.decontamination)))) == [uri]
    Path(uri).write_text("no JSON")
    freeze_decontamination(config, [], [], data)
    assert index_digest(config.decontamination, data) == digest and list(digest) == ["decontamination"]
    (stage,) = stages_of_run(config.decontamination, data.uri)
    docs = documents(QUESTION, " ".join(words(60)), filler(60))
    assert run_stages(docs, [stage]).reasons == ["contaminated", "contaminated_held_out", None]

    other = data_config()
    freeze_decontamination(other, held, [], data)
    assert len(data.list("decontamination")) == 2
    (stage,) = stages_of_run(other.decontamination, data.uri)
    assert run_stages(docs, [stage]).reasons == [None, "contaminated_held_out", None]


def test_benchmarks_without_held_out(tmp_path: Path) -> None:
    data, uri = Store(str(tmp_path / "data")), write(tmp_path / "b.jsonl", QUESTION)
    config = data_config(benchmarks=(uri,), held_out=False)
    freeze_decontamination(config, [documents(" ".join(words(60)))], [], data)
    (stage,) = stages_of_run(config.decontamination, data.uri)
    assert run_stages(documents(QUESTION, " ".join(words(60))), [stage]).reasons == ["contaminated", None]


def test_background_of_all_sources_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "COMMON_HELD_OUT", (1, 0.0))
    data, config = Store(str(tmp_path)), data_config()
    freeze_decontamination(config, [documents(LICENCE)], [array([LICENCE]), array([]), array([LICENCE])], data)
    (stage,) = stages_of_run(config.decontamination, data.uri)
    assert run_stages(documents(LICENCE), [stage]).reasons == [None]


def test_off_is_no_stage_and_no_file(tmp_path: Path) -> None:
    data, config = Store(str(tmp_path)), data_config(held_out=False)
    freeze_decontamination(config, [documents(QUESTION)], [], data)
    assert data.list() == [] and stages_of_run(config.decontamination, data.uri) == []
    assert index_digest(config.decontamination, data) == {}


def test_lost_index_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="decontamination.*put it back"):
        stages_of_run(CONFIG, str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"), [("ngram_words", 4), ("passage_words", 12), ("passage_words", 1001), ("max_overlap", 1.1)]
)
def test_wrong_values_name_their_field(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"data\.decontamination\.{field}"):
        DecontaminationConfig(**{field: value})  # type: ignore[arg-type]
