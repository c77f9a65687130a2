"""The in-order stage: dedup decisions, one process per source, every chunk seen against all chunks before it.

Ray may call it twice with the same chunk, late, or in a new process with empty state (a lost node does all three), so
its answer is a function of the chunk's key and of durable records alone: a decision segment is durable before the call
returns, a repeated key gets the recorded answer, a gap stops the run.

The index is rebuilt by a thread that begins with the process; committed chunks pass meanwhile, and only the first fresh
one waits for it. Reading and the compiled kernels (`nogil`) leave the interpreter to the calls; unpacking a page does
not.

The decisions of a chunk (DECISIONS, and the byte ranges that leave its texts) come from its segment, fresh or repeated:
`decisions_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pretrainer.data.dedup import sealed
from pretrainer.data.dedup.dedup import Decisions, DedupIndex, Sketches, held_out_position
from pretrainer.data.ledger.pages import START, ChunkKey
from pretrainer.data.ledger.segments import (
    DECISIONS,
    REMOVED,
    IndexPart,
    SegmentPager,
    apply_decisions,
    document_positions,
    index_part,
    join_segment,
    split_segment,
)
from pretrainer.data.plan import SourcePlan
from pretrainer.data.stages import chunk_row, one_chunk
from pretrainer.errors import BadDataError, StreamError
from pretrainer.schema import from_ipc

MIN_RECORDS_FOR_RATE = 100  # the dead-letter share is judged from this many records on
T = TypeVar("T")


@dataclass
class Progress:
    """Where the order of decisions stands, and how many records could not be read so far."""

    newest: ChunkKey = START.key
    newest_was_last: bool = START.last
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
        self.index = DedupIndex(plan.config.dedup)
        self.pager = SegmentPager(self.ledger.segment_log)
        self.progress = Progress()
        self.restored = in_background(self._restore_if_needed)

    def __call__(self, table: pa.Table) -> pa.Table:
        row = one_chunk(table)
        if row.kind != "fresh":
            return table
        assert row.report is not None
        self._wait_for_index()
        docs, report = from_ipc(row.docs), row.report
        if row.key <= self.progress.newest:
            decisions = self.decisions_of(row.key)
        else:
            sketches = Sketches.from_table(from_ipc(row.sketches))
            decisions = self._decide(row.key, row.last, sketches, report.read, len(report.dead_letters))
        for reason in decisions.column("reason").to_pylist():
            if reason:
                report.drop(reason)
        docs = apply_decisions(docs, decisions)
        report.kept = docs.num_rows
        return chunk_row(row.position, row.key, row.last, "fresh", report, docs)

    def decisions_of(self, key: ChunkKey) -> pa.Table:
        """DECISIONS of a chunk that was decided, one row per document that came to dedup, from its segment."""
        return split_segment(self.ledger.read_segment(key))[0]

    def _restore_if_needed(self) -> bool:
        """Whether it restored: not where every chunk is committed, for then none will be decided."""
        if self.ledger.committed_units() >= self.plan.units:
            return False
        self._restore()
        return True

    def _wait_for_index(self) -> None:
        """Errors of the thread are raised here."""
        if not self.restored.result():
            self._restore()  # a chunk that was read before all were committed comes again
            self.restored = Future()
            self.restored.set_result(True)

    def _restore(self) -> None:
        """Index of held-out and sealed documents and of every chunk decided before, from durable segments."""
        self.index.insert(np.array([held_out_position(i) for i in range(len(self.held_out))], np.int64), self.held_out)
        sealed.insert_sealed(self.index, sealed.freeze(self.plan.config.dedup, self.ledger.root))
        for part in self.ledger.segment_log.paged_index():
            self._take(part)
        self._catch_up()

    def _catch_up(self) -> None:
        """Take the single segments behind the newest."""
        for key, data in self.ledger.segment_log.behind(self.progress.newest):
            if not self._is_next(key):
                break
            part = index_part(key, from_ipc(data))
            self._take(part)
            self.pager.add(key, part.segments[0].last, data)

    def _take(self, part: IndexPart) -> None:
        self.index.insert(part.positions, part.sketches)
        for segment in part.segments:
            self.progress.advance(segment.key, segment.last, segment.read, segment.dead)

    def _is_next(self, key: ChunkKey) -> bool:
        return key.follows(self.progress.newest, self.progress.newest_was_last)

    def _decide(self, key: ChunkKey, last: bool, sketches: Sketches, read: int, dead: int) -> pa.Table:
        if not self._is_next(key):
            self._catch_up()  # another process may have decided the chunks between since this one read the segments
        if not self._is_next(key):
            before = "the start" if self.progress.newest == START.key else self.progress.newest.name
            raise StreamError(
                f"source {self.plan.source.name}: chunk {key.name} came where the chunk after {before} was expected; "
                "the order is broken and nothing of it was trained on"
            )
        decided = self.index.decide(document_positions(key, len(sketches)), sketches)
        decisions = decisions_table(decided)
        meta = {"last": last, "read": read, "dead": dead}
        data = self.ledger.write_segment(key, join_segment(decisions, decided.entries, meta))
        self.progress.advance(key, last, read, dead)
        self.pager.add(key, last, data)
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


def decisions_table(decided: Decisions) -> pa.Table:
    """DECISIONS of N documents, with REMOVED where dedup may edit."""
    decisions = pa.table(
        [
            pa.array(decided.kept, pa.bool_()),
            pa.array(list(decided.reasons), pa.string()),
            pa.array(decided.duplicate_of, pa.int64()),
            pa.array(decided.similarity, pa.float32()),
        ],
        schema=DECISIONS,
    )
    return decisions if decided.removed is None else decisions.append_column(REMOVED, decided.removed.to_array())


def in_background(call: Callable[[], T]) -> Future[T]:
    """Run a call in a daemon thread, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, `result` raises it in the thread that needs the answer
            future.set_exception(error)

    Thread(target=run, name="restore", daemon=True).start()
    return future
