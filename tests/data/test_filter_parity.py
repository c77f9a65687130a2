"""The filters' kernels against plain Python that follows the rules' words, value by value.

    python -m pytest -q tests/data/test_filter_parity.py
"""

from __future__ import annotations

import re
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.filters.c4 import POLICY_PHRASES
from pretrainer.data.filters.characters import SENTENCE_END, character_table
from pretrainer.data.filters.gopher import STOP_WORDS
from pretrainer.data.filters.lines import _ABBREVIATIONS
from pretrainer.data.filters.refinedweb import COUNTED
from pretrainer.data.filters.repetition import REPEATED_NGRAMS, TOP_NGRAMS
from pretrainer.data.filters.rules import GROUPS

# A few characters and words that the rules look for, so that short random texts meet them.
PIECES = st.sampled_from(
    ["the", "a", "Dr", "e.g", "and", ".", "...", "\u2026", "!", "?", '"', "'", ")", "#", "-", "\u2022", "é", "É", "中",
     "。", "1", "23", " ", " ", " ", "\n", "\n", "\n\n", "\t", "\u3000", "\u00a0", "[1]", "[edit]", "[citation needed]",
     "{", "Lorem ipsum", "JavaScript", "Privacy Policy", "use cookies", "3 likes", "2.5K views", "sign-in",
     "Read more...", "items in cart", "Sign-in", "NOW", "x" * 31, "_", "½", "\x1f", "\u0001"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=120)
Reference = Callable[[str], dict[str, float]]


def is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def word_of(token: str) -> str:
    while token and is_mark(token[0]):
        token = token[1:]
    while token and is_mark(token[-1]):
        token = token[:-1]
    return token


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def quality(text: str) -> dict[str, float]:
    tokens, lines = text.split(), text.removesuffix("\n").split("\n")
    words = [word for word in map(word_of, tokens) if word]
    return {
        "gopher_words": len(words),
        "gopher_mean_word_chars": share(sum(map(len, words)), len(words)),
        "gopher_hash_share": share(text.count("#"), len(tokens)),
        "gopher_ellipsis_share": share(text.count("...") + text.count("\u2026"), max(1, len(tokens))),
        "gopher_bullet_line_share": share(sum(ln.lstrip().startswith(("\u2022", "-")) for ln in lines), len(lines)),
        "gopher_ellipsis_line_share": share(sum(ln.rstrip().endswith(("...", "\u2026")) for ln in lines), len(lines)),
        "gopher_alphabetic_share": share(sum(any(c.isalpha() for c in t) for t in tokens), len(tokens)),
        "gopher_stop_words": sum(word in STOP_WORDS for word in words),
    }


def duplicates(pieces: list[str]) -> tuple[int, int]:
    again = [piece for i, piece in enumerate(pieces) if piece in pieces[:i]]
    return len(again), sum(map(len, again))


def top_chars(tokens: list[str], n: int) -> int:
    grams = Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    gram, times = grams.most_common(1)[0] if grams else ("", 0)
    return len(gram) * times if times > 1 else 0


def repeated_chars(tokens: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    total = i = 0
    while i < len(tokens) - n + 1:
        gram = tuple(tokens[i : i + n])
        total += sum(map(len, gram)) if gram in seen else 0
        i += n if gram in seen else 1
        seen.add(gram)
    return total


def repetition(text: str) -> dict[str, float]:
    tokens, lines = text.split(), [line for line in text.split("\n") if line]
    paragraphs = [p for p in re.split("\n{2,}", text.strip()) if p]
    if not paragraphs:
        lines = []
    paragraph, line = duplicates(paragraphs), duplicates(lines)
    return {
        "gopher_duplicate_paragraph_share": share(paragraph[0], len(paragraphs)),
        "gopher_duplicate_paragraph_char_share": share(paragraph[1], len(text)),
        "gopher_duplicate_line_share": share(line[0], len(lines)),
        "gopher_duplicate_line_char_share": share(line[1], len(text)),
        **{f"gopher_top_{n}gram_share": share(top_chars(tokens, n), len(text)) for n in TOP_NGRAMS},
        **{f"gopher_repeated_{n}gram_share": share(repeated_chars(tokens, n), len(text)) for n in REPEATED_NGRAMS},
    }


def is_end(character: str) -> bool:
    return bool(character_table()[ord(character)] & SENTENCE_END)


def sentences(line: str) -> int:
    """Of a line without blanks at its ends: a mark, closing quotes and a blank that no lower-case letter follows."""
    count, rest = 1, 0
    for mark in re.finditer(r"[.?!\u2026]|[\u3000-\U0010ffff]", line):
        at, wide = mark.start(), ord(mark[0]) >= 0x3000
        if at < rest or (wide and not is_end(mark[0])):
            continue
        last = re.split(r"\s", line[:at])[-1]
        while last and is_mark(last[0]):
            last = last[1:]
        alone = mark[0] == "." and line[at + 1 : at + 2] != "."
        if alone and (last.lower() in _ABBREVIATIONS or len(last.encode()) == 1):
            continue
        behind = re.match(r"[\"')\].?!]*", line[at + 1 :])
        assert behind is not None
        rest = at + 1 + behind.end()
        blanks = re.match(" +", line[rest:])
        if rest < len(line) and wide:
            count += 1
        elif rest < len(line) and blanks:
            rest += blanks.end()
            count += not line[rest : rest + 1].isascii() or not line[rest].islower()
    return count if line else 0


def c4(punctuation: bool, text: str) -> tuple[dict[str, float], str]:
    lines, kept, count, lorem, curly = text.split("\n"), [], 0, 0, 0
    for line in map(str.strip, lines):
        if any(len(word) > 1000 for word in line.split()) or len(line.split()) < 3:
            continue
        lower = ascii_lower(line)
        line = re.sub(r"\[[0-9]*\]|\[edit\]|\[citation needed\]", "", line).rstrip(" ")
        if punctuation and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        lorem += "lorem ipsum" in lower
        if "javascript" in lower:
            continue
        curly += "{" in line
        if any(phrase in lower for phrase in POLICY_PHRASES):
            continue
        count += sentences(line)
        kept.append(line)
    number = len(lines) - (lines[-1] == "")
    found = {"c4_lines": number, "c4_kept_lines": len(kept), "c4_sentences": count}
    return {**found, "c4_lorem_ipsum": lorem, "c4_curly_brackets": curly}, "\n".join(kept)


def ascii_lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def fineweb(text: str) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "fineweb_lines": len(lines),
        "fineweb_ended_line_share": share(sum(is_end(line.rstrip()[-1]) for line in lines), len(lines)),
        "fineweb_short_line_share": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "fineweb_duplicate_char_share": share(duplicates(lines)[1], len(text.replace("\n", ""))),
        "fineweb_newlines_per_token": text.count("\n") / max(1, len(text.split())),
    }


# Either case of ASCII letters, and no other: IGNORECASE would take a long s for an s.
_COUNTED = "|".join("".join(f"[{c}{c.upper()}]" for c in word) for word in COUNTED)
COUNTER = re.compile(rf"[0-9][0-9,.]*[kKmMbB]?\s+(?:{_COUNTED})")


def is_counter(line: str) -> bool:
    first, last = 0, len(line)
    while first < last and is_beside_a_counter(line[first]):
        first += 1
    while last > first and is_beside_a_counter(line[last - 1]):
        last -= 1
    return COUNTER.fullmatch(line[first:last]) is not None


def is_beside_a_counter(character: str) -> bool:
    return character.isspace() or (is_mark(character) and character != "_")


def without_furniture(line: str) -> str:
    line = re.sub(r"[ \t]?items in cart", "", line, flags=re.IGNORECASE | re.ASCII)
    if ascii_lower(line.rstrip()).endswith("read more..."):
        line = re.sub(r"[ \t]?$", "", line.rstrip()[:-12], count=1)
    first = len(line) - len(line.lstrip())
    if ascii_lower(line[first:]).startswith("sign-in"):
        line = line[:first] + re.sub(r"^[ \t]", "", line[first + 7 :])
    return line


def refinedweb(text: str) -> tuple[dict[str, float], str]:
    words = removed = 0
    kept = []
    for line in text.split("\n"):
        count, inside = len(line.split()), "".join(line.split())
        goes = bool(line) and sum(c.isupper() for c in line) / len(line) > 0.5
        goes |= count == 1 or (bool(inside) and all(c.isdigit() for c in inside))
        goes |= is_counter(line)
        edited = without_furniture(line) if count <= 10 else line
        goes |= bool(inside) and not edited.strip()
        words, removed = words + count, removed + (count if goes else count - len(edited.split()))
        kept += [] if goes else [edited]
    return {"refinedweb_removed_word_share": share(removed, words)}, "\n".join(kept).strip("\n")


def code_lines(text: str) -> dict[str, float]:
    lines = text.removesuffix("\n").split("\n")
    return {
        "code_stripped_chars": len(text.strip()),
        "code_longest_line_chars": max(map(len, lines)),
        "code_mean_line_chars": sum(map(len, lines)) / len(lines),
    }


def code_alphanumeric(text: str) -> dict[str, float]:
    alphanumeric = sum(map(str.isalnum, text))
    digits = sum(c in "0123456789" for c in text)
    return {
        "code_alphanumeric_share": share(alphanumeric, len(text)),
        "code_digit_share": share(digits, alphanumeric),
    }


def code_encoded(text: str) -> dict[str, float]:
    runs = [m.group() for p in (
        r"[a-zA-Z0-9+/\n=]{64,}", r"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,\s*|\b\s*)){8,}", r"(?:\\u[0-9a-fA-F]{4}){8,}"
    ) for m in re.finditer(p, text)]  # fmt: skip
    longest, total = max(map(len, runs), default=0), sum(map(len, runs))
    return {"code_longest_encoded_chars": longest, "code_encoded_share": share(total, len(text))}


MEASURED: dict[str, Reference] = {
    "not_empty": lambda text: {"visible_chars": sum(not c.isspace() for c in text)},
    "gopher_quality": quality,
    "gopher_repetition": repetition,
    "fineweb": fineweb,
    "code_lines": code_lines,
    "code_alphanumeric": code_alphanumeric,
    "code_encoded_data": code_encoded,
}
EDITED: dict[str, Callable[[str], tuple[dict[str, float], str]]] = {
    "c4": lambda text: c4(True, text),
    "c4_without_punctuation": lambda text: c4(False, text),
    "refinedweb": refinedweb,
}


def compare(group: str, texts: list[str]) -> None:
    measures, edited = GROUPS[group].measure(pa.array(texts, pa.large_string()), GROUPS[group].line_limits)
    for i, text in enumerate(texts):
        expected, kept = EDITED[group](text) if group in EDITED else (MEASURED[group](text), text)
        assert {name: measures[name][i] for name in expected} == pytest.approx(expected, abs=1e-12), text
        assert edited[i].as_py() == kept


@pytest.mark.parametrize("group", [*MEASURED, *EDITED])
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_random_texts(group: str, texts: list[str]) -> None:
    compare(group, texts)


@pytest.mark.parametrize("group", [*MEASURED, *EDITED])
def test_real_documents(group: str) -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse.py", "pydoc_data/topics.py", "this.py", "codecs.py", "LICENSE.txt")
    texts = [(folder / name).read_text(encoding="utf-8")[:30_000] for name in names if (folder / name).exists()]
    assert len(texts) >= 4
    compare(group, texts)


def test_every_group_is_compared_or_reads_one_expression() -> None:
    assert set(GROUPS) - set(MEASURED) - set(EDITED) == {"code_generated"}


def test_there_is_no_punctuation_above_plane_1() -> None:
    """The table of characters leaves its categories out."""
    assert not any(is_mark(chr(c)) for c in range(0x20000, 0x110000))
