"""The dedup index: replays, rebuilds, chunk sizes, wrong use, memory, and a model of the whole."""

from __future__ import annotations

from dataclasses import replace

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
    held_out_index,
    held_out_position,
    is_sealed,
    position,
    sealed_position,
    signatures,
    split_sealed,
)
from pretrainer.data.dedup.memory import bytes_per_document, refuse_if_too_large
from pretrainer.errors import ConfigError, StreamError
from tests.data.dedup_sketches import (
    CONFIG,
    edited,
    edited_stream,
    jaccard,
    library_documents,
    made,
    random_bands,
    same_bands,
)


def same(left: Decisions, right: Decisions) -> bool:
    return (
        left.reasons == right.reasons
        and np.array_equal(left.kept, right.kept)
        and np.array_equal(left.duplicate_of, right.duplicate_of)
        and np.array_equal(left.similarity, right.similarity)
    )


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
        (p[d.kept], Sketches.from_table(d.entries.to_table())) for (p, _s), d in zip(chunks, first, strict=True)
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
    config = DedupConfig(bands=1, rows_per_band=6)
    sketches = made(same_bands(400, 1), config=config)
    copies = replace(sketches.select(np.array([3, lsh.MAX_CHAIN - 1, lsh.MAX_CHAIN])),
                     hashes=np.array([[1, 1], [1, 2], [1, 3]], np.uint64))
    for order in (np.arange(400), np.arange(400)[::-1], np.random.default_rng(1).permutation(400)):
        index = DedupIndex(config)
        index.insert(order, sketches.select(order))
        queries = index.decide(np.array([1000, 1001, 1002]), copies)
        assert queries.duplicate_of.tolist() == [3, lsh.MAX_CHAIN - 1, NO_DUPLICATE]


def test_inserting_a_position_again_changes_nothing() -> None:
    sketches = made(random_bands(5))
    index = DedupIndex(CONFIG)
    for _ in range(3):
        index.insert(np.arange(5), sketches)
    assert len(index) == 5
    assert index.decide(np.arange(5, 10), sketches).duplicate_of.tolist() == [0, 1, 2, 3, 4]


def test_another_document_at_a_recorded_position_is_an_error() -> None:
    index = DedupIndex(CONFIG)
    index.insert(np.array([7]), made(random_bands(1)))
    for call in (index.insert, index.decide):
        with pytest.raises(StreamError, match="already recorded at position 7"):
            call(np.array([7]), made(random_bands(1, seed=1), first_hash=5))


def test_wrong_use_is_an_error() -> None:
    index, sketches = DedupIndex(CONFIG), made(random_bands(2))
    with pytest.raises(StreamError, match="order"):
        index.decide(np.array([1, 1]), sketches)
    with pytest.raises(StreamError, match="3 positions for 2 documents"):
        index.decide(np.arange(3), sketches)
    other = DedupConfig(shingle_size=6)
    with pytest.raises(StreamError, match="6gram.*5gram"):
        index.decide(np.arange(2), made(random_bands(2), config=other))
    with pytest.raises(StreamError, match="does not name its scheme"):
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
    for name in ("hashes", "bands", "shingle_count"):
        left, right = getattr(back, name), getattr(expected, name)
        assert left.dtype == right.dtype and np.array_equal(left, right)
    assert (back.sketch is None) == (expected.sketch is None) == (not near)
    if near:
        assert np.array_equal(back.sketch.values, expected.sketch.values)
        assert np.array_equal(back.sketch.offsets, expected.sketch.offsets)


@pytest.mark.parametrize(("config", "words"), [(CONFIG, 1200), (DedupConfig(preset="fineweb"), 500)])
def test_memory_is_what_the_plan_says(config: DedupConfig, words: int) -> None:
    """Between the loads of 1/2 and 3/4 and the growth of a quarter it differs by at most a quarter."""
    index = DedupIndex(config)
    sketches = made(random_bands(1000, 0, config.bands), config=config, size=words)
    for i in range(20):
        index.decide(np.arange(1000) + 1000 * i, replace(
            sketches, bands=random_bands(1000, i, config.bands), hashes=sketches.hashes + np.uint64(1000 * i)))
    assert len(index) == 20_000
    assert index.memory_bytes() / len(index) == pytest.approx(bytes_per_document(config, words), rel=0.25)
    assert bytes_per_document(CONFIG, 1200) < 800


def test_an_index_that_does_not_fit_is_refused() -> None:
    assert 600e6 < refuse_if_too_large(CONFIG, 10**6, 10**9) < 800e6
    with pytest.raises(ConfigError, match="10,000,000 documents needs about .* and there are 1,000,000,000"):
        refuse_if_too_large(CONFIG, 10**7, 10**9)
    index = DedupIndex(DedupConfig(max_memory_bytes=4_000_000))
    with pytest.raises(ConfigError, match="max_memory_bytes=4,000,000 is not enough"):
        for i in range(20):
            exempt = made(random_bands(1000, i), [np.arange(9)] * 1000, first_hash=1000 * i)
            index.decide(np.arange(1000) + 1000 * i, exempt)


def test_positions_are_ordered_by_unit_chunk_and_document() -> None:
    places = [(0, 0, 0), (0, 0, 2**20 - 1), (0, 1, 0), (0, 2**15 - 1, 5), (1, 0, 0), (2**28 - 1, 2**15 - 1, 2**20 - 1)]
    packed = [position(*place) for place in places]
    assert packed == sorted(packed) and packed[0] == 0 and packed[-1] == 2**63 - 1
    assert position(3, 2, 1) == 3 << 35 | 2 << 20 | 1
    in_sealed = [sealed_position(*place) for place in ((0, 0), (0, 9), (1, 0))]
    before = [held_out_position(0), held_out_position(2**61 - 1), *in_sealed]
    assert NO_DUPLICATE < before[0] and before == sorted(set(before)) and before[-1] < 0
    assert [is_sealed(p) for p in (*before, 0)] == [False, False, True, True, True, False]
    assert split_sealed(sealed_position(3, 7)) == (3, 7) and held_out_index(before[1]) == 2**61 - 1
    for make in (lambda: held_out_position(2**61), lambda: sealed_position(2**12, 0)):
        with pytest.raises(StreamError):
            make()
    for place in ((2**28, 0, 0), (0, 2**15, 0), (0, 0, 2**20), (0, -1, 0)):
        with pytest.raises(StreamError):
            position(*place)


class Model:
    """The rules in plain Python: a list of kept documents, every earlier one compared by exact Jaccard."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.kept: dict[int, tuple[int, np.ndarray, frozenset[int]]] = {}

    def duplicate_of(self, where: int, exact_hash: int, bands: np.ndarray, shingles: frozenset[int]) -> tuple:
        earlier = sorted(p for p in self.kept if p < where)
        exact = [p for p in earlier if self.config.exact and self.kept[p][0] == exact_hash]
        near = [p for p in earlier if np.any(self.kept[p][1] == bands) and self.verified(self.kept[p][2], shingles)]
        if exact:
            return "held_out" if exact[0] < 0 else "duplicate_exact", exact[0]
        if near:
            return "held_out_near" if near[0] < 0 else "duplicate_near", near[0]
        self.kept.setdefault(where, (exact_hash, bands, shingles))
        return None, NO_DUPLICATE

    def verified(self, left: frozenset[int], right: frozenset[int]) -> bool:
        return min(len(left), len(right)) >= MIN_SHINGLES and jaccard(left, right) >= self.config.threshold


@given(seed=st.integers(0, 2**32 - 1), exact=st.booleans(), held_out=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_decisions_match_the_model(seed: int, exact: bool, held_out: int) -> None:
    """Sets of few families, J of 0.95, 0.6 or 0.45 in them, so that band hits, near misses and repeats are common."""
    config = DedupConfig(bands=2, rows_per_band=2, exact=exact)
    generator = np.random.default_rng(seed)
    count = 40
    sets = []
    for i in range(count):
        family, own = int(generator.integers(0, 3)), int(generator.choice([3, 45]))
        size = 5 if generator.random() < 0.1 else 120 if own == 3 else 122
        sets.append(np.concatenate([np.arange(size - own if size > own else 0) + 1000 * family,
                                    10_000 * (i + 1) + np.arange(min(own, size))]))
    sketches = replace(made(generator.integers(0, 3, (count, 2)), sets, config),
                       hashes=np.stack([np.zeros(count), generator.integers(0, 30, count)], 1).astype(np.uint64))
    places = np.sort(generator.choice(1000, count, replace=False))
    places[:held_out] = [held_out_position(i) for i in range(held_out)]
    index, model = DedupIndex(config), Model(config)
    index.insert(places[:held_out], sketches.select(slice(0, held_out)))
    rows = [(int(places[i]), int(sketches.hashes[i, 1]), sketches.bands[i], frozenset(sets[i].tolist()))
            for i in range(count)]
    for place, *rest in rows[:held_out]:
        model.kept[place] = tuple(rest)
    replays = [(held_out, count), *[tuple(sorted(generator.integers(held_out, count + 1, 2))) for _ in range(3)]]
    for a, b in replays:
        decisions = index.decide(places[a:b], sketches.select(slice(a, b)))
        expected = [model.duplicate_of(*row) for row in rows[a:b]]
        assert list(zip(decisions.reasons, decisions.duplicate_of.tolist(), strict=True)) == expected
