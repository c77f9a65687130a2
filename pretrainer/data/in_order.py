"""The in-order stage: dedup decisions, one process per source, every chunk seen against all chunks before it.

Ray may call it twice with the same chunk, late, or in a new process with empty state (a lost node does all three), so
its answer is a function of the chunk's key and of durable records alone: a decision segment is durable before the call
returns, a repeated key gets the recorded answer, a gap stops the run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pretrainer.data.dedup import DedupIndex, Sketches, held_out_position, position
from pretrainer.data.ledger import ChunkKey
from pretrainer.data.plan import SourcePlan
from pretrainer.data.stages import chunk_row, one_chunk
from pretrainer.errors import BadDataError, StreamError
from pretrainer.schema import from_ipc

MIN_RECORDS_FOR_RATE = 100  # the dead-letter share is judged from this many records on
DECISIONS = pa.schema(
    [
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("duplicate_of", pa.int64()),
        ("similarity", pa.float32()),
    ]
)


@dataclass
class Progress:
    """Where the order of decisions stands, and how many records could not be read so far."""

    newest: ChunkKey | None = None
    newest_was_last: bool = False
    read: int = 0
    dead: int = 0

    def advance(self, key: ChunkKey, last: bool, read: int, dead: int) -> None:
        self.newest, self.newest_was_last = key, last
        self.read += read
        self.dead += dead


class InOrderDedup:
    """Exact and near-duplicate decisions of one source; see the module's docstring for what Ray may do to it."""

    def __init__(self, plan: SourcePlan, held_out_ipc: bytes) -> None:
        self.plan = plan
        self.ledger = plan.ledger
        self.held_out = Sketches.from_table(from_ipc(held_out_ipc))
        self.index: DedupIndex | None = None  # restored when the first fresh chunk comes: committed ones do not need it
        self.progress = Progress()

    def __call__(self, table: pa.Table) -> pa.Table:
        row = one_chunk(table)
        if row.kind != "fresh":
            return table
        assert row.report is not None
        if self.index is None:
            self._restore()
        docs, report = from_ipc(row.docs), row.report
        if self.progress.newest is not None and row.key <= self.progress.newest:
            decisions = split_segment(self.ledger.read_segment(row.key))[0]
        else:
            sketches = Sketches.from_table(from_ipc(row.sketches))
            decisions = self._decide(row.key, row.last, sketches, report.read, len(report.dead_letters))
        for reason in decisions.column("reason").to_pylist():
            if reason:
                report.drop(reason)
        docs = docs.filter(decisions.column("kept").combine_chunks())
        report.kept = docs.num_rows
        return chunk_row(row.position, row.key, row.last, "fresh", report, docs)

    def _restore(self) -> None:
        """Index of the held-out documents and of every chunk decided before, from durable segments."""
        self.index = DedupIndex(self.plan.config.dedup)
        self.index.insert(np.array([held_out_position(i) for i in range(len(self.held_out))], np.int64), self.held_out)
        for key, stored in self.ledger.segments():
            if not key.follows(self.progress.newest, self.progress.newest_was_last):
                break
            decisions, sketches = split_segment(stored)
            meta = json.loads(stored.schema.metadata[b"chunk"])
            self.index.insert(kept_positions(key, decisions.column("kept").to_numpy()), sketches)
            self.progress.advance(key, meta["last"], meta["read"], meta["dead"])

    def _decide(self, key: ChunkKey, last: bool, sketches: Sketches, read: int, dead: int) -> pa.Table:
        assert self.index is not None
        if not key.follows(self.progress.newest, self.progress.newest_was_last):
            before = self.progress.newest.name if self.progress.newest else "the start"
            raise StreamError(
                f"source {self.plan.source.name}: chunk {key.name} came where the chunk after {before} was expected; "
                "the order is broken and nothing of it was trained on"
            )
        decided = self.index.decide(document_positions(key, len(sketches)), sketches)
        decisions = pa.table(
            [
                pa.array(decided.kept, pa.bool_()),
                pa.array(list(decided.reasons), pa.string()),
                pa.array(decided.duplicate_of, pa.int64()),
                pa.array(decided.similarity, pa.float32()),
            ],
            schema=DECISIONS,
        )
        meta = {"last": last, "read": read, "dead": dead}
        self.ledger.write_segment(key, join_segment(decisions, sketches.select(decided.kept), meta))
        self.progress.advance(key, last, read, dead)
        self._check_dead_letter_share()
        return decisions

    def _check_dead_letter_share(self) -> None:
        read, dead, allowed = self.progress.read, self.progress.dead, self.plan.config.max_dead_letter_share
        if read >= MIN_RECORDS_FOR_RATE and dead > allowed * read:
            raise BadDataError(
                f"source {self.plan.source.name}: {dead:,} of {read:,} records could not be read ({dead / read:.1%}, "
                f"allowed {allowed:.1%}); {self.ledger.root.uri}/dead_letters lists each with its reason. Mend the "
                "shards, or raise data.max_dead_letter_share if this is expected"
            )


def document_positions(key: ChunkKey, documents: int) -> np.ndarray:
    """Global order of the documents of a chunk: unit, chunk, document; [documents] int64."""
    return position(key.unit, key.chunk, 0) + np.arange(documents, dtype=np.int64)


def kept_positions(key: ChunkKey, kept: np.ndarray) -> np.ndarray:
    """Positions of the kept documents of a chunk, from a mask [documents] bool."""
    return document_positions(key, len(kept))[np.asarray(kept, bool)]


def join_segment(decisions: pa.Table, kept: Sketches, meta: dict) -> pa.Table:
    """Decision segment: one row per document; index entries of kept documents beside them, null for dropped ones."""
    mask = decisions.column("kept").to_numpy()
    rows = pa.array(np.cumsum(mask) - 1, mask=~mask)
    for name, column in zip(kept.to_table().column_names, kept.to_table().take(rows).columns, strict=True):
        decisions = decisions.append_column(f"entry_{name}", column)
    return decisions.replace_schema_metadata(
        {**(kept.to_table().schema.metadata or {}), b"chunk": json.dumps(meta).encode()}
    )


def split_segment(stored: pa.Table) -> tuple[pa.Table, Sketches]:
    """(decisions, index entries of the kept documents) of a segment."""
    entries = stored.filter(stored.column("kept")).drop_columns(DECISIONS.names)
    entries = entries.rename_columns([n.removeprefix("entry_") for n in entries.column_names])
    entries = entries.replace_schema_metadata(stored.schema.metadata)
    return stored.select(DECISIONS.names), Sketches.from_table(entries)
