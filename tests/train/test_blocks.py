"""A rank's slot blocks: the right ones at every world size and after a restart, and none that is not the right one.

    python -m pytest -q tests/train/test_blocks.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train

from pretrainer.errors import StreamError
from pretrainer.schema import SLOT_BLOCK, Batch
from pretrainer.train.batch import owned_blocks
from pretrainer.train.blocks import BlockSource, open_blocks
from pretrainer.train.sharding.layout import Layout
from pretrainer.train.telemetry.phases import Phases
from tests.train.specs import BLOCKS_PER_STEP, PATTERN, block, worker_spec


def row(batch: Batch) -> pa.Table:
    """The one-row table that the packing stage makes of a slot block."""
    binary = {name: getattr(batch, name).tobytes() for name in ("tokens", "starts", "lengths")}
    values = {"source": batch.source, "block": batch.block, "epoch": batch.epoch, **binary}
    return pa.table({field.name: pa.array([values[field.name]], field.type) for field in SLOT_BLOCK}, SLOT_BLOCK)


class Shard:
    """A rank's dataset shard: these slot blocks, one a batch, through the caller's collate function."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def iter_torch_batches(self, *, batch_size: int, collate_fn: Any, device: str, **_options: Any) -> Iterator[Batch]:
        assert batch_size == 1 and device == "cpu"
        return (collate_fn(row(block(number))) for number in self.numbers)


def dealt(step: int, rank: int, world: int, until: int = 60) -> list[int]:
    """What the rank gets when the stream restarts for this step: every W-th block from the mixing cycle's first on."""
    first = step * BLOCKS_PER_STEP // len(PATTERN) * len(PATTERN)
    return list(range(first, until))[rank::world]


def blocks(monkeypatch: pytest.MonkeyPatch, numbers: list[int], rank: int, world: int, step: int) -> BlockSource:
    shards = {"train": Shard(numbers)}
    monkeypatch.setattr(ray.train, "get_dataset_shard", shards.__getitem__)
    return BlockSource(worker_spec(), rank, world, step, Phases(rank, world, 0, "node", print, 5.0))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("restart", [0, 1, 2, 5])  # steps 1 and 5 begin in the middle of a mixing cycle
def test_ranks_together_get_every_block_of_a_step_once(
    monkeypatch: pytest.MonkeyPatch, world: int, restart: int
) -> None:
    ranks = [blocks(monkeypatch, dealt(restart, r, world), r, world, restart) for r in range(world)]
    for step in range(restart, restart + 3):
        taken = [one for source in ranks for one in source.take(step)[0]]
        first = step * BLOCKS_PER_STEP
        assert sorted(number for number, _batch in taken) == list(range(first, first + BLOCKS_PER_STEP))
        for number, batch in taken:
            np.testing.assert_array_equal(batch.tokens, block(number).tokens)
            assert (batch.source, batch.block) == (block(number).source, block(number).block)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_no_rank_misses_anything_while_there_is_data(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    for rank in range(world):
        source = blocks(monkeypatch, dealt(1, rank, world), rank, world, 1)
        mine, wait_s = source.take(1)
        assert len(mine) in (BLOCKS_PER_STEP // world, -(-BLOCKS_PER_STEP // world))
        assert source.missing(1, mine) == 0 and wait_s >= 0


def drop(numbers: list[int], at: int) -> list[int]:
    return numbers[:at] + numbers[at + 1 :]


def swap(numbers: list[int], at: int) -> list[int]:
    return [*numbers[:at], numbers[at + 1], numbers[at], *numbers[at + 2 :]]


def repeat(numbers: list[int], at: int) -> list[int]:
    return numbers[: at + 1] + numbers[at:]


@pytest.mark.parametrize("damage", [drop, swap, repeat])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_block_out_of_place_is_never_handed_out(monkeypatch: pytest.MonkeyPatch, damage: Any, world: int) -> None:
    numbers = dealt(0, 0, world)
    at = len([n for n in numbers if n < BLOCKS_PER_STEP])  # the second step's first block is hit
    source, handed_out = blocks(monkeypatch, damage(numbers, at), 0, world, 0), []
    with pytest.raises(StreamError, match=rf"rank 0 of {world} .* it was not trained on"):
        for step in range(4):
            handed_out += source.take(step)[0]
    assert len(handed_out) >= at and [number for number, _batch in handed_out] == numbers[: len(handed_out)]
    assert all((batch.tokens == block(number).tokens).all() for number, batch in handed_out)


def test_error_names_what_came_and_what_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    source = blocks(monkeypatch, drop(dealt(0, 0, 1), 1), 0, 1, 0)
    with pytest.raises(StreamError, match="dealt block 1 of source 0 where slot block 1 must be block 0 of source 1"):
        source.take(0)


def test_skipped_part_of_the_cycle_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StreamError, match="slot block 4 must be"):
        blocks(monkeypatch, drop(dealt(1, 0, 1), 0), 0, 1, 1)


def test_stream_dealt_from_another_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that restarts at the step's first block instead of its cycle's first."""
    with pytest.raises(StreamError):
        blocks(monkeypatch, list(range(BLOCKS_PER_STEP, 60)), 0, 1, 1)


@pytest.mark.parametrize(("left", "missing"), [(12, 0), (11, 1), (7, 5), (6, 6), (5, 6)])
def test_end_of_data_is_reported_as_missing(monkeypatch: pytest.MonkeyPatch, left: int, missing: int) -> None:
    source = blocks(monkeypatch, dealt(1, 0, 1, until=left), 0, 1, 1)  # 4 and 5 are skipped, 6 to 11 are the step
    mine, _wait_s = source.take(1)
    assert [number for number, _batch in mine] == list(range(6, max(6, left)))
    assert source.missing(1, mine) == missing


def test_only_the_ranks_without_their_block_miss_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rank in range(4):
        source = blocks(monkeypatch, dealt(0, rank, 4, until=5), rank, 4, 0)
        found.append(source.missing(0, source.take(0)[0]))
    assert found == [0, 1, 0, 0]  # block 5 is rank 1's


class Team:
    """Ranks of a team in one process: what its reader gives is what the next one gets."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.told = layout, []  # type: ignore[var-annotated]

    def from_reader(self, value: Any) -> Any:
        if value is not None:
            self.told.append(value)
        return self.told[-1]


def test_a_team_takes_what_its_reader_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks in teams of two: both ranks of a team have the slot blocks that a rank of two would have."""

    def unread(_name: str) -> None:
        raise AssertionError("only a team's first rank reads")

    for stream in range(2):
        team: Any = Team(Layout(4, tensor=2))
        monkeypatch.setattr(ray.train, "get_dataset_shard", {"train": Shard(dealt(1, stream, 2))}.__getitem__)
        reader = open_blocks(worker_spec(), team, 2 * stream, 1, Phases(0, 4, 0, "node", print, 5.0))
        monkeypatch.setattr(ray.train, "get_dataset_shard", unread)
        other = open_blocks(worker_spec(), team, 2 * stream + 1, 1, Phases(1, 4, 0, "node", print, 5.0))
        for step in range(1, 4):
            mine, its = reader.take(step)[0], other.take(step)[0]
            assert its == mine
            assert [n for n, _batch in mine] == list(owned_blocks(step, BLOCKS_PER_STEP, stream, 2, reader.dealt_from))
            assert reader.missing(step, mine) == other.missing(step, its) == 0
            assert other.missing(step, its[:-1]) == 1
