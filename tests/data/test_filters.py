"""Filters: for each drop reason the last kept and the first dropped value; parity with plain Python."""

from __future__ import annotations

import random
import re
import string
import sysconfig
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.filters import prose as filters_prose
from pretrainer.data.filters.filters import FILTERS, PRESETS, apply_preset, first_reason, preset_filters
from pretrainer.data.filters.prose import STOP_WORDS, ngram_chars, token_counts
from pretrainer.errors import ConfigError

ANY_TEXT = st.text(st.characters(), max_size=300) | st.text("ab .,#\n-\u2022\u2026'é1 \t\u3000", max_size=300)


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
    ("code_encoded_data", "code_encoded_data", "-" + "A" * 1024 + "-" * 2000, "-" + "A" * 1025 + "-" * 2000),
]


def ids(case: tuple[str, str, str, str]) -> str:
    return case[1]


@pytest.mark.parametrize("case", LIMITS, ids=ids)
def test_last_kept_value(case: tuple[str, str, str, str]) -> None:
    name, _, kept, _ = case
    assert FILTERS[name](kept) is None


@pytest.mark.parametrize("case", LIMITS, ids=ids)
def test_first_dropped_value(case: tuple[str, str, str, str]) -> None:
    name, reason, _, dropped = case
    assert FILTERS[name](dropped) == reason


def test_every_reason_has_a_case() -> None:
    """A new `return "reason"` in a rule's source needs a row above."""
    source = "".join(
        Path(m).read_text(encoding="utf-8")
        for m in (
            FILTERS["not_empty"].__code__.co_filename,
            FILTERS["code_lines"].__code__.co_filename,
            filters_prose.__file__,
        )
    )
    returned = set(re.findall(r'return (?:f)?"(\w[\w{}]*)"', source)) | {"empty", "code_auto_generated"}
    patterns = [re.sub(r"\{\w+\}", r"\\w+", reason) for reason in sorted(returned)]
    covered = {case[1] for case in LIMITS}
    assert len(patterns) > 15
    assert [p for p in patterns if not any(re.fullmatch(p, reason) for reason in covered)] == []


@pytest.mark.parametrize("text", ["0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49", r"\u0041" * 9, "QUJD" * 17])
def test_encoded_data_that_fills_the_text(text: str) -> None:
    assert FILTERS["code_encoded_data"](text) == "code_encoded_data"
    assert FILTERS["code_encoded_data"](text + "-" * (len(text) + 1)) is None


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
    assert FILTERS["code_generated"](head + "\n" + CODE) == "code_auto_generated"


@pytest.mark.parametrize("head", ["# Walks the tree generated by the parser", "# Edit me", "def generate(): pass"])
def test_not_generated(head: str) -> None:
    assert FILTERS["code_generated"](head + "\n" + CODE) is None


def test_an_ngram_that_occurs_once_is_no_repetition() -> None:
    assert FILTERS["gopher_repetition"]("three short words") is None


@pytest.mark.parametrize("name", sorted(FILTERS))
@given(text=st.text(st.characters(exclude_categories=()), max_size=200))
@settings(max_examples=60, deadline=None)
def test_never_crashes(name: str, text: str) -> None:
    """Any string, lone surrogates and the empty one included."""
    assert FILTERS[name](text) is None or re.fullmatch(r"[a-z][a-z0-9_]*", FILTERS[name](text) or "")


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("unit", ["x", "é ", "aa ", "\n", "0x41,"])
def test_never_crashes_on_10_mb(name: str, unit: str) -> None:
    FILTERS[name](unit * (10_000_000 // len(unit.encode())))


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_empty_text(name: str) -> None:
    assert FILTERS[name]("") in (None, "empty", "code_too_short", "gopher_too_few_words")


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _reference_word(token: str) -> str:
    while token and _is_punctuation(token[0]):
        token = token[1:]
    while token and _is_punctuation(token[-1]):
        token = token[:-1]
    return token


@given(text=ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_tokens_match_plain_python(text: str) -> None:
    tokens = text.split()
    found = [word for word in map(_reference_word, tokens) if word]
    count = token_counts(text)
    assert count.tokens == len(tokens)
    assert count.chars.tolist() == [len(token) for token in tokens]
    assert (count.words, count.word_chars) == (len(found), sum(map(len, found)))
    assert count.alphabetic == sum(any(c.isalpha() for c in token) for token in tokens)
    assert count.stop_words == sum(word in STOP_WORDS for word in found)
    first = {token: i for i, token in reversed(list(enumerate(tokens)))}
    assert [int(np.flatnonzero(count.hashes == h)[0]) for h in count.hashes] == [first[token] for token in tokens]


def _reference_top(tokens: list[str], n: int) -> int:
    grams = Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    if not grams:
        return 0
    gram, times = grams.most_common(1)[0]
    return len(gram) * times if times > 1 else 0


def _reference_repeated(tokens: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    total = i = 0
    while i < len(tokens) - n + 1:
        gram = tuple(tokens[i : i + n])
        total += sum(map(len, gram)) if gram in seen else 0
        i += n if gram in seen else 1
        seen.add(gram)
    return total


@given(tokens=st.lists(st.sampled_from(["a", "bb", "ccc", "é"]), max_size=80))
@settings(max_examples=200, deadline=None)
def test_ngrams_match_plain_python(tokens: list[str]) -> None:
    top, repeated = ngram_chars(token_counts(text_of(tokens)))
    assert top.tolist() == [_reference_top(tokens, n) for n in (2, 3, 4)]
    assert repeated.tolist() == [_reference_repeated(tokens, n) for n in range(5, 11)]


def test_ngrams_match_on_a_real_document() -> None:
    tokens = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8").split()
    top, repeated = ngram_chars(token_counts(text_of(tokens)))
    assert top.tolist() == [_reference_top(tokens, n) for n in (2, 3, 4)]
    assert repeated.tolist() == [_reference_repeated(tokens, n) for n in range(5, 11)]


def test_character_kinds_match_unicodedata() -> None:
    """The table leaves out the categories above plane 1; there must be no punctuation there."""
    assert not any(_is_punctuation(chr(c)) for c in range(0x20000, 0x110000))


@given(text=ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_base64_runs_match_the_expression(text: str) -> None:
    from pretrainer.data.filters.code import _base64_runs

    for sample in (text, text * 9, "Ab9+/=\n" * 9 + text + "x" * 64):
        assert _base64_runs(sample).tolist() == [len(run) for run in re.findall(r"[a-zA-Z0-9+/\n=]{64,}", sample)]


def test_presets_name_known_filters_and_match_the_config() -> None:
    from typing import get_args, get_type_hints

    from pretrainer.config import SourceConfig

    assert set(PRESETS) == set(get_args(get_type_hints(SourceConfig)["preset"]))
    assert {name for names in PRESETS.values() for name in names} == set(FILTERS)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="web, prose, code, none"):
        preset_filters("prose2")


def test_apply_preset_gives_the_first_failing_rule_per_text() -> None:
    good = text_of(prose(60))
    texts = pa.chunked_array([pa.array([good, "", "too short"]), pa.array([good + "..."])])
    assert apply_preset("prose", texts) == [None, "empty", "gopher_too_few_words", "gopher_too_many_ellipsis_lines"]
    assert apply_preset("none", texts) == [None] * 4
    assert first_reason([lambda _: None, lambda _: "b", lambda _: "c"], "x") == "b"


def test_presets_keep_ordinary_documents() -> None:
    paragraphs = [
        "Moby Dick begins with a sailor who has little money and nothing to keep him on shore.",
        "He walks through the cold streets of New Bedford until he finds an inn that has a bed for him.",
        "There he is told that he must share the bed with a harpooner, of whom the landlord says little more.",
        "They become friends, and a few days later both of them sign on a ship that is to leave at Christmas.",
    ]
    assert apply_preset("web", pa.array(["\n\n".join(paragraphs)])) == [None]
    assert apply_preset("code", pa.array([CODE])) == [None]
