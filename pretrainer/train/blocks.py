"""A rank's end of the stream: slot blocks in their order, each checked before it is trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow as pa
import ray.train
from ray.data.collate_fn import ArrowBatchCollateFn

from pretrainer.errors import StreamError
from pretrainer.schema import Batch
from pretrainer.train.batch import owned_blocks
from pretrainer.train.sharding.layout import Ranks
from pretrainer.train.spec import WorkerSpec
from pretrainer.train.telemetry.phases import Phases

PREFETCH_BLOCKS = 8


class SlotBlockCollate(ArrowBatchCollateFn):
    """One-row tables of schema.SLOT_BLOCK -> schema.Batch."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len

    def __call__(self, table: pa.Table) -> Batch:  # type: ignore[override]  # the stub's result is a free TypeVar
        return Batch.from_row({name: table.column(name)[0].as_py() for name in table.column_names}, self.seq_len)


class BlockSource:
    """A stream's slot blocks, each checked against the number that it must have before anyone sees it.

    rank and world are those of the streams (see layout.py).
    """

    def __init__(self, spec: WorkerSpec, rank: int, world: int, step: int, phases: Phases) -> None:
        self.spec, self.rank, self.world, self.phases = spec, rank, world, phases
        self.per_step = spec.config.slot_blocks_per_step
        self.dealt_from = spec.order.restart(step * self.per_step)[0]
        phases.enter("data", step)
        shard = ray.train.get_dataset_shard("train")
        self.batches: Iterator[Batch] = iter(
            shard.iter_torch_batches(
                batch_size=1,
                prefetch_batches=PREFETCH_BLOCKS,
                collate_fn=SlotBlockCollate(spec.config.data.seq_len),
                device="cpu",
            )
        )
        for number in range(self.dealt_from + rank, step * self.per_step, world):
            self._next(number)  # the part of the mixing cycle that was trained before the restart

    def take(self, step: int) -> tuple[list[tuple[int, Batch]], float]:
        """((global number, batch) of this stream's slot blocks of a step, seconds waited for them)."""
        started, mine = time.perf_counter(), []
        for number in owned_blocks(step, self.per_step, self.rank, self.world, self.dealt_from):
            batch = self._next(number)
            if batch is None:
                break
            mine.append((number, batch))
        return mine, time.perf_counter() - started

    def missing(self, step: int, mine: list[tuple[int, Batch]]) -> int:
        return len(owned_blocks(step, self.per_step, self.rank, self.world, self.dealt_from)) - len(mine)

    def _next(self, number: int) -> Batch | None:
        self.phases.enter("data", number // self.per_step, number)
        batch = next(self.batches, None)
        if batch is not None and (batch.source, batch.block) != self.spec.order.expected(number):
            source, nth = self.spec.order.expected(number)
            raise StreamError(
                f"rank {self.rank} of {self.world} was dealt block {batch.block} of source {batch.source} where "
                f"slot block {number} must be block {nth} of source {source}; it was not trained on"
            )
        return batch


class TeamSource:
    """The same for every rank of a team: its reader takes the slot blocks from the stream, the others from it."""

    def __init__(self, spec: WorkerSpec, ranks: Ranks, rank: int, step: int, phases: Phases) -> None:
        layout = ranks.layout
        self.ranks, self.stream, self.phases = ranks, layout.stream_rank(rank), phases
        self.per_step, self.streams = spec.config.slot_blocks_per_step, layout.streams
        self.source = BlockSource(spec, self.stream, self.streams, step, phases) if layout.reads(rank) else None
        self.dealt_from = spec.order.restart(step * self.per_step)[0]

    def take(self, step: int) -> tuple[list[tuple[int, Batch]], float]:
        """((global number, batch) of the team's slot blocks of a step, seconds waited for them)."""
        started = time.perf_counter()
        self.phases.enter("data", step)
        mine = self.ranks.from_reader(None if self.source is None else self.source.take(step)[0])
        return mine, time.perf_counter() - started

    def missing(self, step: int, mine: list[tuple[int, Batch]]) -> int:
        return len(owned_blocks(step, self.per_step, self.stream, self.streams, self.dealt_from)) - len(mine)


def open_blocks(spec: WorkerSpec, ranks: Ranks, rank: int, step: int, phases: Phases) -> BlockSource | TeamSource:
    """The slot blocks that this rank trains on, from a step on."""
    if ranks.layout.team == 1:
        return BlockSource(spec, rank, ranks.layout.world, step, phases)
    return TeamSource(spec, ranks, rank, step, phases)
