"""Dedup: decisions against brute force on real documents and against a plain model; replays and rebuilds."""

from __future__ import annotations

import random
import re
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DedupConfig
from pretrainer.data.dedup import lsh
from pretrainer.data.dedup.dedup import (
    MIN_SHINGLES,
    NO_DUPLICATE,
    Decisions,
    DedupIndex,
    Sketches,
    held_out_position,
    position,
    scheme_of,
    signatures,
)
from pretrainer.errors import StreamError

CONFIG = DedupConfig()
SMALL = DedupConfig(bands=2, rows_per_band=2, permutations=128, threshold=0.75)


def decide(index: DedupIndex, texts: list[str], first: int = 0) -> Decisions:
    return index.decide(np.arange(first, first + len(texts)), signatures(pa.array(texts), CONFIG))


def made(rows: np.ndarray, config: DedupConfig = CONFIG, first_hash: int = 0, shingles: int = 100) -> Sketches:
    """Sketches with the given signatures [N, P] and different exact hashes."""
    hashes = np.stack([np.zeros(len(rows)), np.arange(len(rows)) + first_hash], axis=1).astype(np.uint64)
    return Sketches(hashes, rows.astype(np.uint32), np.full(len(rows), shingles, np.int32), scheme_of(config))


def random_signatures(count: int, seed: int = 0, permutations: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (count, permutations)).astype(np.uint32)


def same(left: Decisions, right: Decisions) -> bool:
    return (
        left.reasons == right.reasons
        and np.array_equal(left.kept, right.kept)
        and np.array_equal(left.duplicate_of, right.duplicate_of)
        and np.array_equal(left.similarity, right.similarity)
    )


@cache
def library_documents() -> tuple[str, ...]:
    """60 modules of the standard library of 2 to 10 KB."""
    library = Path(sysconfig.get_paths()["stdlib"])
    folders = (".", "asyncio", "concurrent/futures", "email", "http", "importlib", "json", "logging", "multiprocessing")
    paths = [path for folder in folders for path in sorted((library / folder).glob("*.py"))]
    texts = [path.read_text(encoding="utf-8") for path in paths if 2_000 < path.stat().st_size < 10_000]
    return tuple(texts[:60])


def shingle_set(text: str) -> frozenset[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(" ".join(words[i : i + 5]) for i in range(len(words) - 4))


def jaccard(left: frozenset, right: frozenset) -> float:
    common = len(left & right)
    return common / (len(left) + len(right) - common)


def edited(text: str, share: float, seed: int) -> str:
    """The text with that share of its words replaced by new ones."""
    generator = random.Random(seed)

    def edit(word: re.Match[str]) -> str:
        return f"new{generator.randrange(10**9)}" if generator.random() < share else word.group()

    return re.sub("[A-Za-z0-9]+", edit, text)


@cache
def edited_stream() -> tuple[str, ...]:
    """60 originals and four copies of each, with 0.2 % to 5 % of the words replaced, in random order."""
    shares = random.Random(1)
    texts = list(library_documents())
    texts += [
        edited(text, shares.uniform(0.002, 0.05), 4 * i + k)
        for i, text in enumerate(library_documents())
        for k in range(4)
    ]
    random.Random(2).shuffle(texts)
    return tuple(texts)


def test_recall_and_precision_against_exact_jaccard() -> None:
    """A document's truth is its highest exact Jaccard with the documents that were kept before it."""
    texts, decisions = edited_stream(), decide(DedupIndex(CONFIG), list(edited_stream()))
    sets, kept = [shingle_set(text) for text in texts], np.flatnonzero(decisions.kept)
    truth = np.array([max((jaccard(sets[i], sets[j]) for j in kept[kept < i]), default=0.0) for i in range(len(texts))])
    dropped = ~decisions.kept
    assert 60 < np.sum(truth >= 0.85) and 30 < np.sum((truth > 0.5) & (truth < 0.75))
    assert np.mean(dropped[truth >= 0.85]) >= 0.97
    assert np.mean(dropped[truth >= 0.8]) >= 0.9
    similarity = np.array([jaccard(sets[i], sets[decisions.duplicate_of[i]]) for i in np.flatnonzero(dropped)])
    assert np.mean(similarity >= 0.75) >= 0.97
    assert np.all(similarity >= 0.7)
    assert np.abs(similarity - decisions.similarity[dropped]).mean() < 0.03


def test_long_document_does_not_swallow_the_short_ones_in_it() -> None:
    parts = [" ".join(f"p{i}w{j}" for j in range(60)) for i in range(40)]
    for texts in ([" ".join(parts), *parts], [*parts, " ".join(parts)]):
        assert decide(DedupIndex(CONFIG), texts).kept.all()


def test_cluster_of_a_thousand_keeps_its_first() -> None:
    words = [f"w{i}" for i in range(300)]
    texts = [
        " ".join(words[:k] + [f"x{i}"] + words[k + 1 :])
        for i, k in enumerate(random.Random(0).choices(range(300), k=1000))
    ]
    index = DedupIndex(CONFIG)
    decisions = decide(index, texts)
    assert decisions.kept.tolist() == [True] + [False] * 999
    assert set(decisions.reasons[1:]) == {"duplicate_near"} and (decisions.duplicate_of[1:] == 0).all()
    assert len(index) == 1


def test_exact_duplicates_and_no_match_with_oneself() -> None:
    index = DedupIndex(CONFIG)
    decisions = decide(index, ["a b", "c d", "a  b\n", "a B"])
    assert decisions.reasons == [None, None, "duplicate_exact", None]
    assert decisions.duplicate_of.tolist() == [NO_DUPLICATE, NO_DUPLICATE, 0, NO_DUPLICATE]
    assert decisions.similarity.tolist() == [0, 0, 1, 0]
    assert decide(index, ["a b"]).kept.all()


def test_band_hits_alone_never_drop() -> None:
    rows = random_signatures(1000)
    rows[:, : 18 * 6] = rows[0, : 18 * 6]
    assert 18 * 6 / 256 < CONFIG.threshold
    assert DedupIndex(CONFIG).decide(np.arange(1000), made(rows)).kept.all()


@pytest.mark.parametrize(("equal", "kept"), [(205, False), (204, True)])
def test_threshold_counts_all_permutations(equal: int, kept: bool) -> None:
    """0.8 x 256 = 204.8."""
    rows = random_signatures(2)
    rows[1, :equal] = rows[0, :equal]
    decisions = DedupIndex(CONFIG).decide(np.arange(2), made(rows))
    assert decisions.kept.tolist() == [True, kept]
    assert decisions.similarity[1] == pytest.approx(0 if kept else equal / 256)


def test_similarity_is_not_transitive_and_dropped_documents_are_not_in_the_index() -> None:
    """A ~ B ~ C, and A is not ~ C: B goes, so C has nothing to duplicate."""
    rows = random_signatures(3)
    rows[1, :216] = rows[0, :216]
    rows[2, :176], rows[2, 216:] = rows[0, :176], rows[1, 216:]
    index = DedupIndex(CONFIG)
    assert index.decide(np.arange(3), made(rows)).reasons == [None, "duplicate_near", None]
    assert len(index) == 2
    assert DedupIndex(CONFIG).decide(np.arange(2), made(rows[1:])).reasons == [None, "duplicate_near"]


def test_earliest_verified_candidate_is_named() -> None:
    rows = random_signatures(3)
    rows[1, :200] = rows[0, :200]
    rows[2] = rows[0]
    rows[2, 200:228] = rows[1, 200:228]
    decisions = DedupIndex(CONFIG).decide(np.arange(3), made(rows))
    assert decisions.duplicate_of.tolist() == [NO_DUPLICATE, NO_DUPLICATE, 0]


@pytest.mark.parametrize(("shingles", "reason"), [(MIN_SHINGLES, "duplicate_near"), (MIN_SHINGLES - 1, None)])
def test_documents_with_few_shingles_are_exempt_from_near_dup(shingles: int, reason: str | None) -> None:
    rows = np.repeat(random_signatures(1), 2, axis=0)
    assert DedupIndex(CONFIG).decide(np.arange(2), made(rows, shingles=shingles)).reasons == [None, reason]


def test_held_out_documents_win_and_are_named_so() -> None:
    original = library_documents()[0]
    index = DedupIndex(CONFIG)
    index.insert(np.array([held_out_position(0)]), signatures(pa.array([original]), CONFIG))
    decisions = decide(index, [original, edited(original, 0.005, 0), library_documents()[1]])
    assert decisions.reasons == ["held_out", "held_out_near", None]
    assert decisions.duplicate_of[:2].tolist() == [held_out_position(0)] * 2


def chunks_of(sketches: Sketches, size: int) -> list[tuple[np.ndarray, Sketches]]:
    return [
        (np.arange(i, min(i + size, len(sketches))), sketches.select(slice(i, i + size)))
        for i in range(0, len(sketches), size)
    ]


def test_replayed_chunks_get_their_first_answer_on_a_live_index() -> None:
    chunks = chunks_of(signatures(pa.array(list(edited_stream())), CONFIG), 40)
    index = DedupIndex(CONFIG)
    first = [index.decide(*chunk) for chunk in chunks]
    size = len(index)
    for i in (6, 2, 0, 5, 5):
        assert same(index.decide(*chunks[i]), first[i])
    assert len(index) == size


def test_index_rebuilt_from_recorded_sketches_decides_the_same() -> None:
    chunks = chunks_of(signatures(pa.array(list(edited_stream())), CONFIG), 40)
    live = DedupIndex(CONFIG)
    first = [live.decide(*chunk) for chunk in chunks]
    recorded = [
        (p[d.kept], Sketches.from_table(s.select(d.kept).to_table())) for (p, s), d in zip(chunks, first, strict=True)
    ]
    rebuilt = DedupIndex(CONFIG)
    for kept_positions, kept_sketches in reversed(recorded[:5]):
        rebuilt.insert(kept_positions, kept_sketches)
    for i in (3, 5, 6, 4, 2):
        assert same(rebuilt.decide(*chunks[i]), first[i])


def test_chunk_size_does_not_matter() -> None:
    sketches = signatures(pa.array(list(edited_stream())), CONFIG)
    kept = []
    for size in (1, 33, len(sketches)):
        index = DedupIndex(CONFIG)
        kept.append(np.concatenate([index.decide(*chunk).kept for chunk in chunks_of(sketches, size)]).tolist())
    assert kept[0] == kept[1] == kept[2] and 0 < sum(kept[0]) < len(sketches)


def test_a_chain_keeps_its_earliest_in_any_order_of_insertion() -> None:
    """All share the only band; copies of the first 256 entries are found, a copy of the next one is not."""
    config = DedupConfig(bands=1, rows_per_band=6, permutations=128)
    rows = random_signatures(400, permutations=128)
    rows[:, :6] = rows[0, :6]
    orders = [np.arange(400), np.arange(400)[::-1], np.random.default_rng(1).permutation(400)]
    for order in orders:
        index = DedupIndex(config)
        index.insert(order, made(rows, config).select(order))
        queries = index.decide(
            np.array([1000, 1001, 1002]), made(rows[[3, lsh.MAX_CHAIN - 1, lsh.MAX_CHAIN]], config, first_hash=10**6)
        )
        assert queries.duplicate_of.tolist() == [3, lsh.MAX_CHAIN - 1, NO_DUPLICATE]


def test_inserting_a_position_again_changes_nothing() -> None:
    sketches = made(random_signatures(5))
    index = DedupIndex(CONFIG)
    for _ in range(3):
        index.insert(np.arange(5), sketches)
    assert len(index) == 5
    assert index.decide(np.arange(5, 10), sketches).duplicate_of.tolist() == [0, 1, 2, 3, 4]


def test_another_document_at_a_recorded_position_is_an_error() -> None:
    index = DedupIndex(CONFIG)
    index.insert(np.array([7]), made(random_signatures(1)))
    for call in (index.insert, index.decide):
        with pytest.raises(StreamError, match="already recorded at position 7"):
            call(np.array([7]), made(random_signatures(1, seed=1), first_hash=5))


def test_wrong_use_is_an_error() -> None:
    index, sketches = DedupIndex(CONFIG), made(random_signatures(2))
    with pytest.raises(StreamError, match="order"):
        index.decide(np.array([1, 1]), sketches)
    with pytest.raises(StreamError, match="3 positions for 2 documents"):
        index.decide(np.arange(3), sketches)
    other = DedupConfig(shingle_words=6)
    with pytest.raises(StreamError, match="6gram.*5gram"):
        index.decide(np.arange(2), made(random_signatures(2), other))
    with pytest.raises(StreamError, match="does not name its MinHash scheme"):
        Sketches.from_table(sketches.to_table().replace_schema_metadata({}))


def test_switches() -> None:
    text = library_documents()[0]
    texts = pa.array([text, text, edited(text, 0.005, 0)])
    reasons = {}
    for exact, near in ((True, False), (False, True), (False, False)):
        config = DedupConfig(exact=exact, near=near)
        reasons[exact, near] = DedupIndex(config).decide(np.arange(3), signatures(texts, config)).reasons
    assert reasons == {
        (True, False): [None, "duplicate_exact", None],
        (False, True): [None, "duplicate_near", "duplicate_near"],
        (False, False): [None, None, None],
    }


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("count", [0, 3])
def test_table_round_trip(near: bool, count: int) -> None:
    config = DedupConfig(near=near)
    sketches = signatures(pa.array([f"text {i} " * 20 for i in range(count + 1)]), config)
    back = Sketches.from_table(pa.concat_tables([sketches.to_table().slice(1)]))
    expected = sketches.select(slice(1, None))
    assert back.scheme == expected.scheme
    for name in ("hashes", "minhash", "shingle_count"):
        left, right = getattr(back, name), getattr(expected, name)
        assert left.dtype == right.dtype and np.array_equal(left, right)


def test_memory_is_what_the_docstring_says() -> None:
    index = DedupIndex(CONFIG)
    for i in range(10):
        index.decide(np.arange(1000) + 1000 * i, made(random_signatures(1000, seed=i), first_hash=1000 * i))
    entry, slots = 4 * 256 + 8 * 20 + 24, 16 * 20
    assert len(index) == 10_000
    assert entry + slots * 4 / 3 <= index.memory_bytes() / len(index) <= 1.5 * entry + slots * 8 / 3


def test_positions_are_ordered_by_unit_chunk_and_document() -> None:
    places = [(0, 0, 0), (0, 0, 2**20 - 1), (0, 1, 0), (0, 2**15 - 1, 5), (1, 0, 0), (2**28 - 1, 2**15 - 1, 2**20 - 1)]
    packed = [position(*place) for place in places]
    assert packed == sorted(packed) and packed[0] == 0 and packed[-1] == 2**63 - 1
    assert position(3, 2, 1) == 3 << 35 | 2 << 20 | 1
    assert NO_DUPLICATE < held_out_position(0) < held_out_position(1) < 0
    for place in ((2**28, 0, 0), (0, 2**15, 0), (0, 0, 2**20), (0, -1, 0)):
        with pytest.raises(StreamError):
            position(*place)


class Model:
    """The rules in plain Python: a list of kept documents, every earlier one compared."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.kept: dict[int, tuple[int, np.ndarray, bool]] = {}

    def duplicate_of(
        self, where: int, exact_hash: int, signature: np.ndarray, in_bands: bool
    ) -> tuple[str | None, int]:
        earlier = sorted(p for p in self.kept if p < where)
        exact = [p for p in earlier if self.config.exact and self.kept[p][0] == exact_hash]
        near = [p for p in earlier if in_bands and self.kept[p][2] and self.verified(self.kept[p][1], signature)]
        if exact:
            return "held_out" if exact[0] < 0 else "duplicate_exact", exact[0]
        if near:
            return "held_out_near" if near[0] < 0 else "duplicate_near", near[0]
        self.kept.setdefault(where, (exact_hash, signature, in_bands))
        return None, NO_DUPLICATE

    def verified(self, left: np.ndarray, right: np.ndarray) -> bool:
        rows, bands = self.config.rows_per_band, self.config.bands
        candidate = any(
            np.array_equal(left[b * rows : (b + 1) * rows], right[b * rows : (b + 1) * rows]) for b in range(bands)
        )
        return candidate and np.mean(left == right) >= self.config.threshold


@given(seed=st.integers(0, 2**32 - 1), exact=st.booleans(), held_out=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_decisions_match_the_model(seed: int, exact: bool, held_out: int) -> None:
    """Documents made of few centres with random noise, so that band hits, near misses and exact repeats are common."""
    config = DedupConfig(bands=2, rows_per_band=2, permutations=128, threshold=0.75, exact=exact)
    generator = np.random.default_rng(seed)
    count = 40
    rows = random_signatures(3, seed % 7, 128)[generator.integers(0, 3, count)]
    noise = generator.random((count, 128)) < generator.uniform(0, 0.4, (count, 1))
    rows = np.where(noise, generator.integers(0, 3, (count, 128)).astype(np.uint32), rows)
    hashes = np.stack([np.zeros(count), generator.integers(0, 30, count)], axis=1).astype(np.uint64)
    sketches = Sketches(
        hashes, rows, np.where(generator.random(count) < 0.9, 50, 3).astype(np.int32), scheme_of(config)
    )
    places = np.sort(generator.choice(1000, count, replace=False))
    places[:held_out] = [held_out_position(i) for i in range(held_out)]
    index, model = DedupIndex(config), Model(config)
    index.insert(places[:held_out], sketches.select(slice(0, held_out)))
    for i in range(held_out):
        model.kept[int(places[i])] = (int(hashes[i, 1]), rows[i], bool(sketches.shingle_count[i] >= MIN_SHINGLES))
    replays = [(held_out, count), *[tuple(sorted(generator.integers(held_out, count + 1, 2))) for _ in range(3)]]
    for a, b in replays:
        decisions = index.decide(places[a:b], sketches.select(slice(a, b)))
        expected = [
            model.duplicate_of(
                int(places[i]), int(hashes[i, 1]), rows[i], bool(sketches.shingle_count[i] >= MIN_SHINGLES)
            )
            for i in range(a, b)
        ]
        assert list(zip(decisions.reasons, decisions.duplicate_of.tolist(), strict=True)) == expected
