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
from pretrainer.train.phases import Phases
from pretrainer.train.spec import WorkerSpec

PREFETCH_BLOCKS = 8


class SlotBlockCollate(ArrowBatchCollateFn):
    """One-row tables of schema.SLOT_BLOCK -> schema.Batch."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len

    def __call__(self, table: pa.Table) -> Batch:  # type: ignore[override]  # the stub's result is a free TypeVar
        return Batch.from_row({name: table.column(name)[0].as_py() for name in table.column_names}, self.seq_len)


class BlockSource:
    """This rank's slot blocks, each checked against the number that it must have before anyone sees it."""

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
        """((global number, batch) of this rank's slot blocks of a step, seconds waited for them)."""
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
