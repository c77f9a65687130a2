"""Filters: for each drop reason the last kept and the first dropped value; presets and changes to their rules.

    python -m pytest -q tests/data/test_filters.py
"""

from __future__ import annotations

import random
import string

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.filters.filters import annotate, chosen_groups, judge
from pretrainer.data.filters.phrases import automaton
from pretrainer.data.filters.rules import GROUPS, PRESETS
from pretrainer.errors import ConfigError


def reason_of(group: str, text: str) -> str | None:
    """Of the first rule of the group that the text fails."""
    measures, _edited = GROUPS[group].measure(pa.array([text], pa.large_string()), GROUPS[group].line_limits)
    return next((rule.reason for rule in GROUPS[group].rules if not rule.passes(measures[rule.measure])[0]), None)


def edited(group: str, text: str) -> str:
    return str(GROUPS[group].measure(pa.array([text], pa.large_string()), GROUPS[group].line_limits)[1][0].as_py())


def words(count: int, length: int = 5, seed: int = 0) -> list[str]:
    """Different random words; no two n-grams repeat."""
    letters = random.Random(seed)
    return ["".join(letters.choices(string.ascii_lowercase, k=length)) for _ in range(count)]


def prose(count: int, length: int = 5, seed: int = 0) -> list[str]:
    """Two stop words and random words."""
    return ["that", "with", *words(count - 2, length, seed)]


def text_of(tokens: list[str]) -> str:
    return " ".join(tokens)


def with_lines(lines: list[str], first: int, mark: str) -> str:
    return "\n".join(mark + line if i < first else line for i, line in enumerate(lines))


def with_ends(lines: list[str], first: int, mark: str) -> str:
    return "\n".join(line + mark if i < first else line for i, line in enumerate(lines))


LINES = [text_of(prose(12, seed=i)) for i in range(10)]
PARAGRAPHS = [text_of(words(10, 6, seed=i)) for i in range(10)]
CODE = "".join(
    f"def {a}({b}):\n    return {c} + 1\n\n" for a, b, c in zip(words(40), words(40, 4), words(40, 6), strict=True)
)


def of_mean(chars: int) -> list[str]:
    """100 words of the stop words "the" and otherwise of letters, `chars` letters in all."""
    rest = chars - 6
    base, more = divmod(rest, 98)
    return ["the", "the", *words(98 - more, base, 1), *words(more, base + 1, 2)]


def repeated_pieces(chars: int, unique: int, separator: str) -> str:
    """A piece of `chars` characters twice among `unique` other pieces; 1,000 characters in all."""
    rest = 1000 - 2 * chars - (unique + 1) * len(separator)
    base, more = divmod(rest, unique)
    others = ["".join(words(1, base + (i < more), seed=i)) for i in range(unique)]
    return separator.join([*others, "q" * chars, "q" * chars])


def ngram_text(n: int, grams: int, times: int, total: int) -> str:
    """Different n-grams of 4-letter words, each `times` times before a fresh word; padded to `total` characters."""
    separators = iter(sorted(set(words(2 * grams * times, 3, seed=7))))
    tokens = [token for i in range(grams) for _ in range(times) for token in (*words(n, 4, seed=i), next(separators))]
    return text_of(tokens) + " " + "z" * (total - len(text_of(tokens)) - 1)


LONG_LINES = [text_of(words(12, seed=i)) for i in range(25)]
PROSE = "\n".join(f"Line {name} is a sentence." for name in words(5))


def lines_of(chars: int, count: int) -> str:
    """Different lines of so many characters, each with a blank in every fourth place and a full stop at its end."""
    letters = random.Random(chars)
    rows = ["".join(letters.choices(string.ascii_lowercase, k=chars - 1)) for _ in range(count)]
    return "".join("".join(" " if i % 4 == 3 else c for i, c in enumerate(row)) + ".\n" for row in rows)


def token_lines(*counts: int) -> str:
    return "".join(text_of(words(count, 12, seed=i)) + ".\n" for i, count in enumerate(counts))


def twin(chars: int) -> str:
    return ("z" * (chars - 1) + ".\n") * 2


# (filter, reason, last kept text, first dropped text)
LIMITS = [
    ("not_empty", "empty", " x ", " \n\t\u3000"),
    ("gopher_quality", "gopher_too_few_words", text_of(prose(50)), text_of([*prose(49), "--", "!"])),
    ("gopher_quality", "gopher_too_many_words", text_of([*prose(100_000), "--"]), text_of(prose(100_001))),
    ("gopher_quality", "gopher_short_words", text_of(of_mean(300)), text_of(of_mean(299))),
    ("gopher_quality", "gopher_long_words", text_of(of_mean(1000)), text_of(of_mean(1001))),
    (
        "gopher_quality",
        "gopher_too_many_hashes",
        text_of([*prose(90), *("#" + w for w in words(10))]),
        text_of([*prose(89), *("#" + w for w in words(11))]),
    ),
    (
        "gopher_quality",
        "gopher_too_many_ellipses",
        text_of([*(w + "..." + w for w in words(10)), *prose(90)]),
        text_of([*("\u2026" + w for w in words(11)), *prose(89)]),
    ),
    ("gopher_quality", "gopher_too_many_bullet_lines", with_lines(LINES, 9, " \u2022 "), with_lines(LINES, 10, "- ")),
    ("gopher_quality", "gopher_too_many_ellipsis_lines", with_ends(LINES, 3, "... "), with_ends(LINES, 4, "\u2026")),
    (
        "gopher_quality",
        "gopher_too_few_alphabetic_words",
        text_of([*prose(80), *["1234"] * 20]),
        text_of([*prose(79), *["1234"] * 21]),
    ),
    (
        "gopher_quality",
        "gopher_too_few_stop_words",
        text_of([*words(60), "the", "(the)"]),
        text_of([*words(60), "the", "The"]),
    ),
    (
        "gopher_repetition",
        "gopher_duplicate_paragraphs",
        "\n\n".join(["ab"] * 4 + PARAGRAPHS[:6]),
        "\n\n\n".join(["ab"] * 5 + PARAGRAPHS[:5]),
    ),
    (
        "gopher_repetition",
        "gopher_duplicate_paragraph_chars",
        repeated_pieces(200, 5, "\n\n"),
        repeated_pieces(201, 5, "\n\n"),
    ),
    (
        "gopher_repetition",
        "gopher_duplicate_lines",
        "\n".join(["ab"] * 4 + PARAGRAPHS[:6]),
        "\n".join(["ab"] * 5 + PARAGRAPHS[:5]),
    ),
    ("gopher_repetition", "gopher_duplicate_line_chars", repeated_pieces(200, 5, "\n"), repeated_pieces(201, 5, "\n")),
    # 9, 14 and 19 characters, 20, 9 and 4 times.
    ("gopher_repetition", "gopher_top_2gram_chars", ngram_text(2, 1, 20, 900), ngram_text(2, 1, 20, 899)),
    ("gopher_repetition", "gopher_top_3gram_chars", ngram_text(3, 1, 9, 700), ngram_text(3, 1, 9, 699)),
    ("gopher_repetition", "gopher_top_4gram_chars", ngram_text(4, 1, 4, 475), ngram_text(4, 1, 4, 474)),
    # 30 n-grams occur twice, so 30 x 4 n letters are repeated.
    *[
        (
            "gopher_repetition",
            f"gopher_repeated_{n}gram_chars",
            ngram_text(n, 30, 2, -(-12_000 * n // percent)),
            ngram_text(n, 30, 2, -(-12_000 * n // percent) - 1),
        )
        for n, percent in ((5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10))
    ],
    ("code_lines", "code_too_short", "x" * 50, " " + "x" * 49),
    ("code_lines", "code_long_line", CODE + "x" * 1000 + "\n", CODE + "x" * 1001 + "\n"),
    ("code_lines", "code_long_mean_line", "x" * 100 + "\n" + "x" * 100, "x" * 100 + "\n" + "x" * 101),
    ("code_alphanumeric", "code_low_alphanumeric", "é" * 25 + "-" * 75, "é" * 25 + "-" * 76),
    ("code_alphanumeric", "code_mostly_digits", "1" * 50 + "x" * 50, "1" * 51 + "x" * 50),
    (
        "code_generated",
        "code_auto_generated",
        "\n\n\n\n\n# Autogenerated\n" + CODE,
        "\n\n\n\n# AUTOGENERATED by x\n" + CODE,
    ),
    ("code_encoded_data", "code_encoded_run", "-" + "A" * 1024 + "-" * 2000, "-" + "A" * 1025 + "-" * 2000),
    ("code_encoded_data", "code_encoded_data", "A" * 100 + "-" * 100, "A" * 100 + "-" * 99),
    ("c4", "c4_too_few_sentences", "Five of these are kept. " * 5, "Five of these are kept. " * 4),
    ("c4", "c4_lorem_ipsum", PROSE, PROSE + "\nThen comes Lorem Ipsum and more."),
    ("c4", "c4_curly_bracket", PROSE + "\nNot prose {", PROSE + "\nThis { is in a sentence."),
    ("fineweb", "fineweb_no_lines", "x" * 31 + ".", " \n\n"),
    ("fineweb", "fineweb_few_ended_lines", with_ends(LONG_LINES, 3, "!"), with_ends(LONG_LINES, 2, "!")),
    ("fineweb", "fineweb_short_lines", lines_of(30, 16) + lines_of(31, 8), lines_of(30, 17) + lines_of(31, 8)),
    ("fineweb", "fineweb_duplicate_chars", lines_of(50, 98) + twin(50), lines_of(50, 97) + twin(50)),
    ("fineweb", "fineweb_list", token_lines(4, 3, 3), token_lines(3, 3, 3)),
    (
        "refinedweb",
        "refinedweb_too_many_removed_words",
        "3 likes\n" + text_of(words(38)),
        "3 likes\n" + text_of(words(37)),
    ),
]


def ids(case: tuple[str, str, str, str]) -> str:
    return case[1]


@pytest.mark.parametrize("case", LIMITS, ids=ids)
def test_last_kept_value(case: tuple[str, str, str, str]) -> None:
    name, _, kept, _ = case
    assert reason_of(name, kept) is None


@pytest.mark.parametrize("case", LIMITS, ids=ids)
def test_first_dropped_value(case: tuple[str, str, str, str]) -> None:
    name, reason, _, dropped = case
    assert reason_of(name, dropped) == reason


def test_every_rule_has_a_case() -> None:
    assert {rule.reason for group in GROUPS.values() for rule in group.rules} == {case[1] for case in LIMITS}


@pytest.mark.parametrize("text", ["0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49", r"\u0041" * 9, "QUJD" * 17])
def test_encoded_data_that_fills_the_text(text: str) -> None:
    assert reason_of("code_encoded_data", text) == "code_encoded_data"
    assert reason_of("code_encoded_data", text + "-" * (len(text) + 1)) is None


@pytest.mark.parametrize(
    "head",
    [
        "// Code generated by protoc. DO NOT EDIT.",
        "# Automatically generated",
        '"""Generated by x"""',
        "/* This file is generated */",
        "# auto-generated",
    ],
)
def test_generated_markers(head: str) -> None:
    assert reason_of("code_generated", head + "\n" + CODE) == "code_auto_generated"


@pytest.mark.parametrize("head", ["# Walks the tree generated by the parser", "# Edit me", "def generate(): pass"])
def test_not_generated(head: str) -> None:
    assert reason_of("code_generated", head + "\n" + CODE) is None


def test_an_ngram_that_occurs_once_is_no_repetition() -> None:
    assert reason_of("gopher_repetition", "three short words") is None


@pytest.mark.parametrize("name", sorted(GROUPS))
@given(texts=st.lists(st.text(max_size=200), max_size=4))
@settings(max_examples=60, deadline=None)
def test_never_crashes(name: str, texts: list[str]) -> None:
    """Any text, the empty one and no text included; measures are finite numbers."""
    group = GROUPS[name]
    measures, after = group.measure(pa.array(texts, pa.large_string()), group.line_limits)
    assert all(len(a) <= len(b) for a, b in zip(after.to_pylist(), texts, strict=True))
    assert all(column.shape == (len(texts),) and np.isfinite(column).all() for column in measures.values())
    assert {rule.measure for rule in group.rules} <= set(measures)


@pytest.mark.parametrize("name", sorted(GROUPS))
@pytest.mark.parametrize("unit", ["x", "é ", "aa ", "\n", "0x41,", "a.\n"])
def test_never_crashes_on_10_mb(name: str, unit: str) -> None:
    reason_of(name, unit * (10_000_000 // len(unit.encode())))


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_empty_text(name: str) -> None:
    reason = reason_of(name, "") or "empty"
    assert reason.endswith(("empty", "_too_short", "_low_alphanumeric", "_too_few_words", "_sentences", "_no_lines"))


C4_LINES = {
    "a word of more than 1,000 characters": "This has a " + "w" * 1001 + ".",
    "no end": "This line does not end",
    "an ellipsis": "This line goes on...",
    "two words": "Two words.",
    "javascript": "Please switch on JavaScript in this browser.",
    "a policy": "By going on you accept our Privacy Policy today.",
}


@pytest.mark.parametrize("line", C4_LINES.values(), ids=C4_LINES)
def test_c4_drops_the_line_alone(line: str) -> None:
    assert edited("c4", f"{PROSE}\n  {line} \n\n{PROSE}") == f"{PROSE}\n{PROSE}"
    ends_well = line[-1] == "." and not line.endswith("...")
    assert (edited("c4_without_punctuation", f"{PROSE}\n{line}") == PROSE) is ends_well


def test_c4_removes_citation_marks() -> None:
    text = "It is so.[12] It was so [citation needed].[edit]\nAnd [sic] [x1] []so it is. [3]"
    assert edited("c4", text) == "It is so. It was so .\nAnd [sic] [x1] so it is."


REFINEDWEB_LINES = ["BUY NOW AND save", "2020 11 21", "1,204 Likes", "» 2.5k followers!", "Menu",
                    "Items in cart", "Sign-in", " Read more... "]  # fmt: skip


@pytest.mark.parametrize("line", REFINEDWEB_LINES)
def test_refinedweb_drops_furniture(line: str) -> None:
    text = "\n\n".join([text_of(words(20)), text_of(words(20, seed=1))])
    assert edited("refinedweb", text.replace("\n\n", f"\n\n{line}\n")) == text.replace("\n\n", "\n\n")


@pytest.mark.parametrize(
    "line",
    ["Buy it NOW and save", "In 2020 it was", "3 likes and a share", "We counted 20 likes", "Two words",
     text_of(words(8)) + " items in cart", "You can Sign-in here", "Read more... about it"],
)  # fmt: skip
def test_refinedweb_keeps_prose(line: str) -> None:
    assert edited("refinedweb", f"{line}\n\n  x y\n") == f"{line}\n\n  x y"


def test_refinedweb_takes_phrases_out_of_short_lines() -> None:
    lines = {"3 Items in Cart (now)": "3 (now)", "Sign-in or register": "or register", "x y Read more...": "x y",
             "items in cart items in cart x y": " x y", "sign-in items in cart here read more... ": "here"}  # fmt: skip
    assert edited("refinedweb", "x y\n" + "\n".join(lines)) == "x y\n" + "\n".join(lines.values())


def test_a_phrase_inside_another_is_found_too() -> None:
    found = automaton({0: ("accept all",), 1: ("all", "no")})

    def groups(text: bytes) -> int:
        state = bits = 0
        for byte in text:
            state = found.moves[state, byte]
            bits |= int(found.found[state])
        return bits

    assert [groups(t) for t in (b"x", b"aALL", b"accept a", b"we Accept All", b"accept no")] == [0, 2, 0, 3, 2]
    with pytest.raises(ValueError, match="empty phrase"):
        automaton({0: ("",)})


def test_presets_name_known_groups_and_match_the_config() -> None:
    from typing import get_args, get_type_hints

    from pretrainer.config import SourceConfig

    assert set(PRESETS) == set(get_args(get_type_hints(SourceConfig)["preset"]))
    assert {name for names in PRESETS.values() for name in names} == set(GROUPS)


def test_unknown_preset_rule_and_value() -> None:
    with pytest.raises(ConfigError, match="gopher, c4, fineweb"):
        chosen_groups("prose2")
    with pytest.raises(ConfigError, match="c4_sentences is not of preset c4: its rules are .*c4_too_few_sentences"):
        chosen_groups("c4", ["c4_sentences=3"])
    with pytest.raises(ConfigError, match="write a rule and its limit"):
        chosen_groups("c4", ["c4_too_few_sentences=few"])


def test_rules_can_be_changed_and_turned_off() -> None:
    short = pa.array([text_of(prose(30))])
    assert judge(short, "gopher").reasons == ["gopher_too_few_words"]
    assert judge(short, "gopher", ["gopher_too_few_words=30"]).reasons == [None]
    assert judge(short, "gopher", ["gopher_too_few_words=off", "gopher_long_words=4"]).reasons == ["gopher_long_words"]
    line = pa.array([PROSE + "\nIt ends without a mark"])
    assert judge(line, "c4").texts.to_pylist() == [PROSE]
    assert judge(line, "c4", ["c4_terminal_punctuation=off"]).texts.to_pylist() == line.to_pylist()


def test_judge_gives_the_first_failing_rule_per_text_and_the_texts_kept() -> None:
    good = text_of(prose(60))
    texts = pa.chunked_array([pa.array([good, "", "too short"]), pa.array([good + "...", good + " x"])])
    verdict = judge(texts, "prose")
    assert verdict.reasons == [None, "empty", "gopher_too_few_words", "gopher_too_many_ellipsis_lines", None]
    assert verdict.texts.to_pylist() == [good, good + " x"]
    assert judge(texts, "none").reasons == [None] * 5


def test_annotate_measures_every_document() -> None:
    texts = pa.array([text_of(prose(60)), "", "too short"])
    found = annotate(texts, "fineweb")
    assert found["gopher_words"].tolist() == [60, 0, 2]
    wanted = {rule.measure for group in chosen_groups("fineweb") for rule in group.rules}
    assert wanted <= set(found) and all(len(column) == 3 for column in found.values())


def test_a_slice_is_measured_as_a_copy() -> None:
    texts = pa.array([PROSE, text_of(prose(60)), PROSE + "\nNo end", "é" * 60])
    for preset in PRESETS:
        whole, part = annotate(texts, preset), annotate(texts[1:3], preset)
        assert all(part[name].tolist() == whole[name][1:3].tolist() for name in whole)
        copied = pa.array(texts[1:3].to_pylist())
        assert judge(texts[1:3], preset).texts.to_pylist() == judge(copied, preset).texts.to_pylist()


def test_presets_keep_ordinary_documents() -> None:
    paragraphs = [
        "Moby Dick begins with a sailor who has little money and nothing to keep him on shore.",
        "He walks through the cold streets of New Bedford until he finds an inn that has a bed for him.",
        "There he is told that he must share the bed with a harpooner, of whom the landlord says little more.",
        "They become friends, and a few days later both of them sign on a ship that is to leave at Christmas.",
        "Nobody has told them much about its captain, and what they hear in the town is not what they had hoped for.",
    ]
    text = " ".join(paragraphs) + "\n\n" + paragraphs[0]
    for preset in ("web", "c4", "fineweb", "gopher"):
        assert judge(pa.array(["\n\n".join(paragraphs)]), preset).reasons == [None], preset
    assert judge(pa.array([text]), "refinedweb").reasons == [None]
    assert judge(pa.array([CODE]), "code").reasons == [None]
