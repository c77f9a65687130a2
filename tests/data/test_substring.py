"""Repeated spans: against a search of every pair of places, borders, the guarantee of winnowing, replays, limits."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.dedup import Decisions, DedupIndex, Sketches, signatures
from pretrainer.data.dedup.removal import remove_ranges
from pretrainer.data.dedup.substring import SubstringIndex, anchors, hash_all_words
from pretrainer.errors import ConfigError

N = 10


def config(**more: object) -> DedupConfig:
    return DedupConfig(**{"near": False, "substring_tokens": N, "substring_max_share": 1.0, **more})


def words(count: int, seed: str) -> list[str]:
    return [f"{seed}{i}" for i in range(count)]


def decide(texts: list[str], of: DedupConfig, index: DedupIndex | None = None, first: int = 0) -> Decisions:
    index = DedupIndex(of) if index is None else index
    return index.decide(np.arange(first, first + len(texts)), signatures(pa.array(texts, pa.large_string()), of))


def left(texts: list[str], decisions: Decisions) -> list[str]:
    assert decisions.removed is not None
    edited = remove_ranges(pa.array(texts, pa.large_string()), decisions.removed).to_pylist()
    return [text for text, kept in zip(edited, decisions.kept, strict=True) if kept]


@pytest.mark.parametrize("offset", [0, 1, 7, 40])
@pytest.mark.parametrize(("length", "removed"), [(N - 1, False), (N, True), (N + 1, True), (35, True)])
def test_a_span_of_n_words_goes_and_a_shorter_one_stays(offset: int, length: int, removed: bool) -> None:
    shared = words(length, "s")
    first = " ".join([*words(offset, "a"), *shared, *words(30, "b")])
    second = " ".join([*words(23, "c"), *shared, *words(9, "d")])
    want = " ".join([*words(23, "c"), *words(9, "d")]) if removed else second
    assert left([first, second], decide([first, second], config())) == [first, want]


def test_borders_and_punctuation() -> None:
    """Case and punctuation do not count; what stands between the span and the next word goes with it."""
    shared = words(N, "s")
    first, second = " ".join(shared), f'Intro. "{", ".join(shared).upper()}!" End.'
    assert left([first, second], decide([first, second], config())) == [first, 'Intro. "End.']


def test_a_span_across_what_was_removed_is_not_one() -> None:
    """The third repeats five words before and five behind the span that left the second: they do not stand together."""
    shared, a, b = words(20, "s"), words(5, "a"), words(5, "b")
    texts = [" ".join(shared), " ".join([*a, *shared, *b]), " ".join([*a, *b]), " ".join([*a, *shared[:5]])]
    assert left(texts, decide(texts, config())) == [texts[0], " ".join([*a, *b]), texts[2], texts[3]]


@pytest.mark.parametrize(("mode", "share", "reason", "text"), [
    ("remove", 0.5, "duplicate_substring", None), ("remove", 0.9, None, "own"),
    ("drop", 0.5, "duplicate_substring", None), ("drop", 0.9, None, "whole"),
])  # fmt: skip
def test_modes(mode: str, share: float, reason: str | None, text: str | None) -> None:
    shared = words(40, "s")
    texts = [" ".join(shared), " ".join([*words(12, "o"), *shared])]
    decisions = decide(texts, config(substring_mode=mode, substring_max_share=share))
    assert decisions.reasons == [None, reason]
    if text:
        assert left(texts, decisions)[1] == (texts[1] if text == "whole" else " ".join(words(12, "o")) + " ")
    else:
        assert decisions.similarity[1] > 0.5 and decisions.removed is not None and len(decisions.removed[1]) == 0


def brute_force(new: list[int], old: list[list[int]], n: int) -> set[int]:
    """Numbers of the words of `new` that stand in a span of at least n equal words with a document of `old`."""
    gone: set[int] = set()
    for i in range(len(new) - n + 1):
        if any(other[j : j + n] == new[i : i + n] for other in old for j in range(len(other) - n + 1)):
            gone |= set(range(i, i + n))
    return gone


@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([8, 9, 13]))
@settings(max_examples=60, deadline=None)
def test_spans_are_those_of_a_full_search(seed: int, n: int) -> None:
    """Documents made of few pieces, so that spans overlap, touch and repeat."""
    generator = random.Random(seed)
    pieces = [[generator.randrange(1, 40) for _ in range(generator.randrange(1, 25))] for _ in range(6)]
    index, stored = SubstringIndex(n), []
    for number in range(8):
        document = [w for _ in range(generator.randrange(1, 6)) for w in generator.choice(pieces)]
        spans = index.find(number, np.array(document, np.uint32))
        found = {i for a, b in spans.tolist() for i in range(a, b)}
        assert found == brute_force(document, stored, n)
        kept = index.keep(np.array(document, np.uint32), spans)
        index.add(number, kept)
        rest, run = [], []
        for word in [*kept.tolist(), 0]:
            rest, run = (rest, [*run, word]) if word else ([*rest, run] if run else rest, [])
        stored += rest


@given(st.lists(st.integers(1, 5), max_size=80), st.integers(2, 6), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_every_window_has_an_anchor_and_its_content_decides_which(values: list[int], k: int, w: int) -> None:
    def chosen(part: list[int]) -> list[int]:
        places, keys = np.empty(len(part), np.int64), np.empty(len(part), np.uint64)
        return places[: anchors(np.array(part, np.uint32), k, w, places, keys)].tolist()

    whole = chosen(values)
    assert whole == sorted(set(whole))
    for first in range(len(values) - k - w + 2):
        (inside,) = chosen(values[first : first + k + w - 1])
        assert first + inside in whole


def test_replays_rebuilds_and_chunk_sizes_give_the_same_texts() -> None:
    generator, of = random.Random(0), config()
    pool = [" ".join(words(generator.randrange(5, 30), f"p{i}x")) for i in range(12)]
    texts = [" ".join([f"own{i}", *generator.sample(pool, 3), f"end{i}"]) for i in range(30)]
    whole = left(texts, decide(texts, of))
    assert sum(map(len, whole)) < 0.6 * sum(map(len, texts))
    for size in (1, 7):
        live, rebuilt, recorded = DedupIndex(of), DedupIndex(of), []
        chunks = [(i, texts[i : i + size]) for i in range(0, len(texts), size)]
        for at, part in chunks:
            decisions = decide(part, of, live, at)
            recorded.append((np.arange(at, at + len(part))[decisions.kept], decisions))
        assert [t for (_a, part), (_p, d) in zip(chunks, recorded, strict=True) for t in left(part, d)] == whole
        for at in (2, 0, 3):  # again, on the live index
            assert left(chunks[at][1], decide(chunks[at][1], of, live, chunks[at][0])) == left(
                chunks[at][1], recorded[at][1])
        for positions, decisions in recorded[:2]:
            rebuilt.insert(positions, Sketches.from_table(decisions.entries.to_table()))
        for (at, part), (_p, decisions) in list(zip(chunks, recorded, strict=True))[2:]:
            assert left(part, decide(part, of, rebuilt, at)) == left(part, decisions)


def test_a_text_of_one_word_costs_linear_time_and_any_text_goes_through() -> None:
    """Every place matches every other; without a budget 200,000 words would take 10^10 comparisons."""
    long = "word " * 200_000
    texts = [long, long + "end", "", "\u0000 \U0001f600", "\u4e2d" * 50, "\u4e2d" * 60]
    decisions = decide(texts, config())
    assert decisions.kept.all() and len(left(texts, decisions)[5]) < 60


def test_words_are_where_they_are_said_to_be() -> None:
    texts = ["  One, two-three \u4e2d\u6587caf\u00e9 x", "", "..."]
    found = hash_all_words(pa.array(texts, pa.large_string()))
    starts = [texts[0].encode()[s:].decode()[0] for s in found.starts[0].tolist()]
    assert starts == ["O", "t", "t", "\u4e2d", "\u6587", "c", "x"]
    assert [len(row) for row in found.hashes] == [7, 0, 0]


def test_memory_per_word_is_what_the_docstring_says() -> None:
    index = SubstringIndex(50)
    generator = np.random.default_rng(0)
    for i in range(300):
        index.add(i, generator.integers(1, 2**32, 1000).astype(np.uint32))
    assert 5.5 <= index.memory_bytes() / 300_000 <= 8.5


def test_wrong_values_are_refused() -> None:
    for more in ({"substring_tokens": 7}, {"substring_max_share": 1.5}):
        with pytest.raises(ConfigError, match=f"data.dedup.{next(iter(more))}"):
            config(**more)
