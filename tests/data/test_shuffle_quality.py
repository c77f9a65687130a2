"""Shuffle quality: sums against their definition, expectations against drawn permutations."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.ledger.windows import Window
from pretrainer.data.packing.packer import PackWindows
from pretrainer.data.packing.shuffle_quality import ShuffleQuality, add_up, same_group_share, shuffle_quality
from tests.data.harness import curated, document, make_plan, packed

examples = settings(deadline=None, max_examples=60)
GROUPS = st.lists(st.integers(0, 4), max_size=12)


def quality(groups: list[int]) -> ShuffleQuality:
    return shuffle_quality(np.array(groups, np.int64), np.array([g // 2 for g in groups], np.int64))


@examples
@given(GROUPS)
def test_sums_are_those_of_the_definition(groups: list[int]) -> None:
    got = quality(groups)
    pairs = list(itertools.pairwise(groups))
    places = [[i for i, g in enumerate(groups) if g == group] for group in set(groups)]
    assert (got.sequences, got.adjacent) == (len(groups), len(pairs))
    assert got.documents.neighbours == sum(a == b for a, b in pairs)
    assert got.shards.neighbours == sum(a // 2 == b // 2 for a, b in pairs)
    assert got.documents.same_pairs == sum(a == b for a, b in itertools.combinations(groups, 2))
    assert got.documents.distance == sum(b - a for own in places for a, b in itertools.pairwise(own))
    assert got.documents.successors == sum(len(own) - 1 for own in places)


@pytest.mark.parametrize("groups", [[0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 1, 2], [0, 1, 0, 1]])
def test_a_mean_over_all_permutations_is_the_full_permutation(groups: list[int]) -> None:
    every = [quality(list(order)) for order in itertools.permutations(groups)]
    for name in ("same_document", "same_shard"):
        want = getattr(every[0], f"{name}_full")
        assert np.mean([getattr(q, name) for q in every]) == pytest.approx(want)
    assert np.mean([q.document_distance for q in every]) == pytest.approx(1)
    assert np.mean([q.shard_distance for q in every]) == pytest.approx(1)


def test_numbers_of_a_sorted_and_of_a_shuffled_order() -> None:
    groups = np.repeat(np.arange(500), 8)
    in_order, mixed = shuffle_quality(groups, groups // 4), np.random.default_rng(0).permutation(groups)
    shuffled = shuffle_quality(mixed, mixed // 4)
    assert in_order.same_document == pytest.approx(7 / 8, abs=1e-3)
    assert in_order.document_distance == pytest.approx(9 / 4001)
    assert shuffled.same_document_full == in_order.same_document_full == pytest.approx(7 / 3999)
    assert shuffled.same_document == pytest.approx(shuffled.same_document_full, abs=2e-3)
    assert shuffled.document_distance == pytest.approx(1, abs=0.02)
    assert "4,000 sequences" in str(in_order) and "87.5" in str(in_order)


@examples
@given(st.lists(GROUPS, max_size=4))
def test_windows_add_up_but_for_their_borders(windows: list[list[int]]) -> None:
    """Groups of one window only: the sums are those of the whole order, less what adjoins at the borders."""
    apart = [[g + 10 * n for g in groups] for n, groups in enumerate(windows)]
    got, whole = add_up(quality(groups) for groups in apart), quality(sum(apart, []))
    exact = ("neighbours", "same_pairs", "distance", "successors")
    assert [getattr(got.documents, name) for name in exact] == [getattr(whole.documents, name) for name in exact]
    assert got.documents.full_distance == pytest.approx(whole.documents.full_distance)
    assert got.sequences == whole.sequences and got.same_document_full == whole.same_document_full
    assert got.adjacent == sum(max(0, len(groups) - 1) for groups in windows)


@pytest.mark.parametrize("groups", [[], [3]])
def test_orders_without_neighbours_have_defined_numbers(groups: list[int]) -> None:
    got = quality(groups)
    assert (got.same_document, got.same_document_full, got.document_distance) == (0, 0, 1)
    assert str(got)


def test_a_record_comes_back_as_it_was() -> None:
    got = quality([0, 0, 1, 2, 0, 3, 3])
    assert ShuffleQuality.from_dict(json.loads(json.dumps(asdict(got)))) == got


def test_share_of_a_group_is_that_of_two_draws() -> None:
    assert same_group_share(np.array([1, 1, 2])) == pytest.approx(1 / 16 + 1 / 16 + 1 / 4)
    assert same_group_share(np.zeros(0, np.int64)) == 0


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> list[Window]:
    """Windows of a stream of long documents, three files of two documents each."""
    plan = make_plan(tmp_path_factory.mktemp("run"), [document(n, 400) for n in range(6)], lines_per_file=2)
    blocks = packed(PackWindows(plan, 0), curated(plan, range(plan.positions)))
    read = plan.windows.read_all()
    assert sum(w.sequences for w in read) == 4 * len(blocks)
    return read


def test_windows_record_the_order_of_their_sequences(windows: list[Window]) -> None:
    total = add_up(w.shuffle for w in windows)
    assert all(w.shuffle.sequences <= w.sequences for w in windows) and total.sequences > 100
    assert sum(w.sequences for w in windows) - total.sequences < 4, "only the fill of the last slot block is left out"
    assert total.documents.neighbours <= total.shards.neighbours and total.documents.successors > 0.8 * total.sequences
    inside = [w.shuffle for w in windows if w.shuffle.sequences > 30]
    for one in inside:  # a window is shuffled as a whole
        assert one.same_document == pytest.approx(one.same_document_full, abs=0.2)
        assert one.document_distance == pytest.approx(1, abs=0.25)
    assert inside and total.document_distance < 0.8


def test_windows_count_padding_with_the_fill_of_the_last_slot_block(windows: list[Window]) -> None:
    ids = sum(w.sequences for w in windows) * 17
    assert sum(w.tokens + 2 * w.documents + w.padded for w in windows) == ids
    assert all(w.discarded == 0 for w in windows) and sum(w.split for w in windows) == 6


def test_a_window_record_is_small_and_read_back(windows: list[Window], tmp_path: Path) -> None:
    for window in windows:
        assert len(window.to_bytes()) < 700
        assert Window.from_bytes(window.to_bytes()) == window
