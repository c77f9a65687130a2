"""The stream derived again from the raw input, in one process, without Ray: what a run must have trained on.

The same stage functions as in pipeline.py, called in order. Nothing that a run has curated is used: the ledger, token
shards and window log are written anew into a folder of the replay's own, which gets only what was frozen before the
run's first step, and the verdicts of the run that depend on its machines: quarantined content, and pages of HTML that
took too long or too much memory. What came through then has PATIENCE times as long now. Cost: everything before the
wanted blocks is read and curated too, because dedup decisions and pack windows depend on it; disk as much as the token
shards of that part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from pretrainer.config import DataConfig
from pretrainer.data.curriculum import Curriculum
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.dedup.sealed import FROZEN as SEALED
from pretrainer.data.ledger.lines import open_line
from pretrainer.data.packing.packer import PackWindows
from pretrainer.data.plan import SourcePlan
from pretrainer.data.stages import read_chunks, tokenize_chunk
from pretrainer.errors import StreamError
from pretrainer.schema import Batch
from pretrainer.storage import Store

PATIENCE = 20
"""A page that the run extracted in time may take so many times as long on the machine of the replay."""


def fresh_plans(plans: Sequence[SourcePlan], folder: Store) -> list[SourcePlan]:
    """The same plans over an empty data folder that holds what the run was given or has frozen, and nothing else."""
    data = Store(plans[0].data_uri)
    tokenizer = "tokenizer.model" if data.exists("tokenizer.model") else "tokenizer.json"
    frozen = [path for name in ("resources", "held_out", "decontamination") for path, *_ in data.list(name)]
    for name in ("manifest.arrow", tokenizer, *frozen):
        folder.create(name, data.read(name))
    fresh = [replace(plan, data_uri=folder.uri, config=_patient(plan.config)) for plan in plans]
    for old, new in zip(plans, fresh, strict=True):
        for path in _verdicts(old.ledger.root):
            new.ledger.root.create(path, old.ledger.root.read(path))
    return fresh


def _patient(config: DataConfig) -> DataConfig:
    return replace(config, extract=replace(config.extract, timeout_s=PATIENCE * config.extract.timeout_s))


def _verdicts(ledger: Store) -> list[str]:
    """What of a ledger counts as input: which sealed indexes it was begun with, and which content is left out."""
    stops = [path for path, *_ in ledger.list("quarantine") if "/stop-" in path]
    return stops + ([SEALED] if ledger.exists(SEALED) else [])


def source_blocks(plan: SourcePlan, first_block: int) -> Iterator[Batch]:
    """Slot blocks of one source from its block `first_block` on, curated from the raw input into the plan's folder."""
    held_out = Store(plan.data_uri).read(f"held_out/{plan.source.name}.sketches.arrow")
    dedup, packer = InOrderDedup(plan, held_out), PackWindows(plan, first_block)
    committed = plan.ledger.committed()  # by an earlier line of this replay
    for position in range(plan.begin[0], plan.positions):
        for chunk in read_chunks(pa.table({"position": [position]}), plan, *committed):
            for blocks in packer(tokenize_chunk(dedup(chunk), plan)):
                for row in blocks.to_pylist():
                    yield Batch.from_row(row, plan.config.seq_len)


class Streams:
    """The sources of one line, each read on from where it was asked last."""

    def __init__(self, plans: Sequence[SourcePlan]) -> None:
        self.plans = plans
        self.open: dict[int, Iterator[Batch]] = {}
        self.newest: dict[int, int] = {}

    def block(self, source: int, nth: int) -> Batch:
        """The nth slot block of a source, not before any that was asked for; StreamError when the source ends first."""
        if source not in self.open:
            self.open[source] = source_blocks(self.plans[source], nth)
        name = self.plans[source].source.name
        for batch in self.open[source]:
            if batch.block > nth:
                raise StreamError(f"source {name} gave slot block {batch.block} instead of {nth}")
            if batch.block == nth:
                self.newest[source] = nth
                return batch
        raise StreamError(f"source {name} ends before its slot block {nth}")

    def reach(self, source: int, taken: int) -> None:
        """Read on until a source has given its first `taken` blocks."""
        if self.newest.get(source, -1) < taken - 1:
            self.block(source, taken - 1)


def replay_blocks(
    plans: Sequence[SourcePlan], curriculum: Curriculum, first_block: int, end_block: int
) -> Iterator[Batch]:
    """Global slot blocks first_block, … end_block - 1 in order; `plans` are `fresh_plans`.

    StreamError when a source ends before its turn.
    """
    data, per_step = Store(plans[0].data_uri), curriculum.blocks_per_step
    for line in curriculum.lines:
        streams = Streams(open_line(data, plans, curriculum.segments, line, per_step))
        last = curriculum.of_line(line)[-1]
        begin, end = curriculum.of_line(line)[0].order.first_block, curriculum.end_block(last)
        for number in range(max(begin, first_block), min(end, end_block)):
            yield streams.block(*curriculum.expected(number))
        if end_block <= end:
            return
        for source, taken in enumerate(last.order.taken_at(end)):  # the next line begins behind these
            streams.reach(source, taken)
