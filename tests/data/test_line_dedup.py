"""Lines that many documents share: against a plain model, boundaries, replays, rebuilds and chunk sizes."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DedupConfig
from pretrainer.config.dedup import LineDedupConfig
from pretrainer.data.dedup.dedup import NO_DUPLICATE, Decisions, DedupIndex, Sketches, signatures
from pretrainer.data.dedup.lines import hash_lines
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.dedup.removal import merge_ranges, remove_ranges
from pretrainer.errors import ConfigError, StreamError


def config(max_documents: int = 2, min_share_left: float = 0.0, **more: object) -> DedupConfig:
    lines = LineDedupConfig(max_documents=max_documents, min_chars=5, min_share_left=min_share_left, **more)
    return DedupConfig(near=False, lines=lines)


def sketch(texts: list[str], of: DedupConfig) -> Sketches:
    return signatures(pa.array(texts, pa.large_string()), of)


def decide(texts: list[str], of: DedupConfig, index: DedupIndex | None = None, first: int = 0) -> Decisions:
    return (DedupIndex(of) if index is None else index).decide(np.arange(first, first + len(texts)), sketch(texts, of))


def left(texts: list[str], decisions: Decisions) -> list[str]:
    """Kept documents as they go on."""
    assert decisions.removed is not None
    edited = remove_ranges(pa.array(texts, pa.large_string()), decisions.removed).to_pylist()
    return [text for text, kept in zip(edited, decisions.kept, strict=True) if kept]


def test_a_line_goes_from_the_documents_behind_those_that_make_it_common() -> None:
    texts = [f"Share this page\nstory {i} begins\n" for i in range(4)]
    assert left(texts, decide(texts, config(2))) == texts[:2] + ["story 2 begins\n", "story 3 begins\n"]
    assert left(texts, decide(texts, config(3))) == [*texts[:3], "story 3 begins\n"]


def test_a_document_counts_once_and_a_dropped_one_not_at_all() -> None:
    """Three times in one document is one; the exact copy is dropped, so its line was seen in one document."""
    texts = ["menu line\nmenu line\nmenu line\nA", "menu line\nmenu line\nmenu line\nA", "menu line\nB", "menu line\nC"]
    decisions = decide(texts, config(2))
    assert decisions.reasons == [None, "duplicate_exact", None, None]
    assert left(texts, decisions) == [texts[0], texts[2], "C"]


def test_blanks_and_letter_case_do_not_count_and_short_lines_stay() -> None:
    texts = ["Read  More here\nab\n1", "  read more HERE \nab\n2", "READ MORE\there\nab\n3"]
    assert left(texts, decide(texts, config(2))) == [*texts[:2], "ab\n3"]
    assert len(hash_lines(pa.array(["1234", "12345", "\u00e9" * 4, "\u00e9" * 5]), config()).hashes.values) == 2


def test_paragraphs_are_compared_as_a_whole() -> None:
    texts = [f"shared one\nshared two\n\nown {i} text\nshared two\n\n" for i in range(3)]
    got = left(texts, decide(texts, config(2, unit="paragraph")))
    assert got == [*texts[:2], "own 2 text\nshared two\n\n"]


@pytest.mark.parametrize(("share", "reason"), [(0.5, None), (0.51, "duplicate_lines")])
def test_a_document_of_which_too_little_is_left_is_dropped(share: float, reason: str | None) -> None:
    """10 of 20 bytes repeat. What was dropped is not counted, so the fourth still finds its own line new."""
    texts = ["123456789\nA", "123456789\nB", "123456789\nabcdefghi\n", "abcdefghi\nD"]
    decisions = decide(texts, config(2, share))
    assert decisions.reasons == [None, None, reason, None]
    assert decisions.duplicate_of.tolist() == [NO_DUPLICATE] * 4
    assert decisions.similarity[2] == (0.5 if reason else 0)


def chunks_of(texts: list[str], size: int) -> list[tuple[int, list[str]]]:
    return [(i, texts[i : i + size]) for i in range(0, len(texts), size)]


TEXTS = [f"common line {i % 3}\nrare line {i // 5}\nown line {i}\ncommon line {i % 3}\n" for i in range(40)]


def test_replays_rebuilds_and_chunk_sizes_give_the_same_texts() -> None:
    of = config(3)
    whole = left(TEXTS, decide(TEXTS, of))
    assert sum(map(len, whole)) < 0.7 * sum(map(len, TEXTS))
    for size in (1, 7):
        live, rebuilt, recorded = DedupIndex(of), DedupIndex(of), []
        chunks = chunks_of(TEXTS, size)
        for at, texts in chunks:
            decisions = decide(texts, of, live, at)
            recorded.append((np.arange(at, at + len(texts))[decisions.kept], decisions))
        assert [t for (_a, texts), (_p, d) in zip(chunks, recorded, strict=True) for t in left(texts, d)] == whole
        for at in (3, 1, 3):  # again, on the live index
            again = decide(chunks[at][1], of, live, chunks[at][0])
            assert left(chunks[at][1], again) == left(chunks[at][1], recorded[at][1])
        for positions, decisions in recorded[:3]:
            rebuilt.insert(positions, Sketches.from_table(decisions.entries.to_table()))
        for (at, texts), (_p, decisions) in list(zip(chunks, recorded, strict=True))[3:]:
            assert left(texts, decide(texts, of, rebuilt, at)) == left(texts, decisions)


def plain(texts: list[str], needed: int) -> list[str]:
    """The rules in plain Python, for ASCII texts without empty lines."""
    seen: dict[str, int] = defaultdict(int)
    out = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        keys = [re.sub(r"[ \t]+", " ", line.strip()).lower() for line in lines]
        out.append("".join(t for t, key in zip(lines, keys, strict=True) if len(key) < 5 or seen[key] < needed))
        for key in {key for key in keys if len(key) >= 5}:
            seen[key] += 1
    return out


LINE = st.sampled_from(["alpha beta", "Alpha  BETA ", "gamma delta", " gamma delta", "tiny", "unique words", "x y z w"])


@given(texts=st.lists(st.lists(LINE, min_size=1, max_size=5), max_size=12), needed=st.integers(2, 4))
@settings(max_examples=50, deadline=None)
def test_texts_match_the_model(texts: list[list[str]], needed: int) -> None:
    joined = ["\n".join([*lines, f"last {i}"]) for i, lines in enumerate(texts)]  # so that none is an exact copy
    assert left(joined, decide(joined, config(needed))) == plain(joined, needed)


@given(texts=st.lists(st.text(max_size=60), max_size=5), unit=st.sampled_from(["line", "paragraph"]))
@settings(max_examples=60, deadline=None)
def test_any_text_goes_through_and_ranges_are_whole_characters(texts: list[str], unit: str) -> None:
    lines = hash_lines(pa.array(texts, pa.large_string()), config(unit=unit))
    for text, bounds in zip(texts, lines.bounds, strict=True):
        data = text.encode()
        for first, end in bounds.reshape(-1, 2).tolist():
            assert 0 <= first < end <= len(data)
            data[:first].decode(), data[first:end].decode()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_merged_ranges_hold_the_same_bytes(ranges: list[tuple[int, int]]) -> None:
    pairs = np.array([(a, a + n) for a, n in ranges], np.int64).reshape(-1, 2)
    merged = merge_ranges(pairs)
    assert {b for a, e in pairs.tolist() for b in range(a, e)} == {b for a, e in merged.tolist() for b in range(a, e)}
    assert all(a < e < b for (a, e), (b, _f) in zip(merged.tolist(), merged.tolist()[1:], strict=False))
    text = "".join(chr(97 + i % 26) for i in range(40))
    cut = remove_ranges(pa.array([text, text]), Ragged.of([merged.ravel(), np.zeros(0)], np.int64)).to_pylist()
    gone = {b for a, e in merged.tolist() for b in range(a, e)}
    assert cut == ["".join(c for i, c in enumerate(text) if i not in gone), text]


def test_memory_per_line_is_what_the_docstring_says() -> None:
    of = config(2)
    index, before = DedupIndex(of), DedupIndex(DedupConfig(near=False))
    texts = ["\n".join(f"line {i} {j} of many" for j in range(500)) for i in range(60)]
    for made in (index, before):
        decide(texts, of if made is index else DedupConfig(near=False), made)
    assert 26 <= (index.memory_bytes() - before.memory_bytes()) / 30_000 <= 41


def test_wrong_use_is_an_error() -> None:
    with pytest.raises(ConfigError, match="data.dedup.lines.max_documents=1"):
        LineDedupConfig(max_documents=1)
    with pytest.raises(StreamError, match="made without what data.dedup"):
        DedupIndex(config(2)).decide(np.arange(1), sketch(["a line of text"], DedupConfig(near=False)))


def test_a_document_that_is_decided_again_is_not_counted_again() -> None:
    """As after a segment that could not be written: the line was in one document, so the second one keeps it."""
    of, texts = config(2), ["shared line\nA", "shared line\nB", "shared line\nC"]
    index = DedupIndex(of)
    for _ in range(3):
        assert left(texts[:1], decide(texts[:1], of, index)) == texts[:1]
    assert left(texts[1:], decide(texts[1:], of, index, 1)) == [texts[1], "C"]
