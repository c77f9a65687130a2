"""From slot blocks to documents and back: which document stands in which sequences, and why one stands in none.

A sequence's pack window names its chunks; the window is packed again from their token shards, which says by number
which documents each row holds. So a step costs the windows that it touches, at any position of the run; looking for a
document reads the ids of all token shards first, and then the windows that hold it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa

from pretrainer.data.curation import run_after_dedup, run_before_dedup
from pretrainer.data.decisions import held_out_ids, name_outside
from pretrainer.data.dedup.positions import split_position
from pretrainer.data.filters.stage import Verdict
from pretrainer.data.ledger.ledger import ChunkKey
from pretrainer.data.ledger.segments import apply_decisions, split_segment
from pretrainer.data.ledger.windows import Window
from pretrainer.data.packing.packer import At, next_chunk, pack_tables, pad_epoch_end
from pretrainer.data.packing.packing import PackedRow, slot_block
from pretrainer.data.plan import SourcePlan, load_manifest
from pretrainer.data.quarantine import Quarantine
from pretrainer.data.stages import raw_chunks
from pretrainer.schema import Batch, ChunkReport


@dataclass(frozen=True)
class Passage:
    """A document, or a part of one, in one sequence."""

    source: str
    shard: str  # path below the source's root
    row: int  # number of the record in its shard; for byte-range reads the byte offset
    document: str  # its id
    sequence: int  # of its source
    tokens: int  # ids of it in this sequence, its bos and eos included


@dataclass
class SourceTrace:
    """Documents of the sequences of one source; keeps the window that was packed last."""

    plan: SourcePlan
    windows: list[Window] = field(init=False)
    packed: tuple[int, pa.Table, list[PackedRow]] | None = None  # (window, its documents, its rows)

    def __post_init__(self) -> None:
        self.windows = self.plan.windows.read_all()

    def block(self, nth: int) -> tuple[Batch, list[Passage]]:
        """The nth slot block of the source as it was dealt, and the documents in it. IndexError: not packed yet."""
        size = self.plan.config.slot_sequences
        rows, passages = [], []
        for sequence in range(nth * size, (nth + 1) * size):
            documents, row = self._sequence(sequence)
            rows.append(row)
            passages += [self._passage(documents, sequence, *part) for part in parts_of(row)]
        first = self.windows[self._window_of(nth * size)]
        table = slot_block(rows, self.plan.index, nth, first.epoch)
        return Batch.from_row(table.to_pylist()[0], self.plan.config.seq_len), passages

    def sequences_of(self, key: ChunkKey, document: int, epoch: int) -> list[tuple[int, int]]:
        """(sequence, tokens in it) of the n-th kept document of a chunk in an epoch; [] if it is not packed yet."""
        at = self.plan.position(key.unit, epoch), key.chunk
        number = bisect_right([window.first for window in self.windows], at) - 1
        if number < 0 or not at < self.windows[number].after:
            return []
        window = self.windows[number]
        before = sum(table.num_rows for place, table in window_chunks(self.plan, window) if place < at)
        _documents, rows = self._rows(number)
        return [
            (window.first_sequence + i, tokens)
            for i, row in enumerate(rows)
            for found, tokens in parts_of(row)
            if found == before + document
        ]

    def _window_of(self, sequence: int) -> int:
        number = bisect_right([window.first_sequence for window in self.windows], sequence) - 1
        if number < 0 or sequence >= self.windows[number].first_sequence + self.windows[number].sequences:
            raise IndexError(f"source {self.plan.source.name}: sequence {sequence} is in no closed pack window")
        return number

    def _sequence(self, sequence: int) -> tuple[pa.Table, PackedRow]:
        number = self._window_of(sequence)
        documents, rows = self._rows(number)
        return documents, rows[sequence - self.windows[number].first_sequence]

    def _rows(self, number: int) -> tuple[pa.Table, list[PackedRow]]:
        """(documents of a window in window order, its rows in training order)."""
        if self.packed is None or self.packed[0] != number:
            window = self.windows[number]
            tables = [table for _at, table in window_chunks(self.plan, window)]
            rows, _counts = pack_tables(self.plan, number, tables)
            rows = pad_epoch_end(self.plan, rows, window.first_sequence, window.after)
            self.packed = number, pa.concat_tables(tables).select(["id", "shard", "row"]), rows
        return self.packed[1:]

    def _passage(self, documents: pa.Table, sequence: int, number: int, tokens: int) -> Passage:
        shard, row, name = (documents.column(c)[number].as_py() for c in ("shard", "row", "id"))
        path = load_manifest(self.plan.data_uri).shard(self.plan.index, shard).path
        return Passage(self.plan.source.name, path, row, name, sequence, tokens)


def window_chunks(plan: SourcePlan, window: Window) -> Iterator[tuple[At, pa.Table]]:
    """(stream place, token shard) of each chunk of a window."""
    at = window.first
    while at < window.after:
        tokens, last = plan.ledger.read_tokens(ChunkKey(plan.place(at[0]).curated_at, at[1]))
        yield at, tokens
        at = next_chunk(at, last)


def parts_of(row: PackedRow) -> list[tuple[int, int]]:
    """(document in window order, ids of it) for each part of a row, in row order."""
    ends = np.append(row.starts, row.length)[1:]
    return [(int(d), int(e - s)) for d, s, e in zip(row.documents, row.starts, ends, strict=True)]


# Documents by id ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A document that curation kept: its chunk, and its number among the kept documents of it."""

    source: int
    key: ChunkKey
    number: int
    document: str


@dataclass(frozen=True)
class NotTrained:
    """A document that no sequence holds, and why."""

    source: str
    document: str
    reason: str  # of a filter, of dedup, of a dead letter, or held_out
    duplicate_of: str | None = None  # id of the document that it repeats
    similarity: float | None = None


def matches(identifier: str, wanted: str, exact: bool) -> bool:
    return identifier == wanted if exact else wanted in identifier


def find_kept(plan: SourcePlan, wanted: str, exact: bool) -> Iterator[Kept | None]:
    """Kept documents with this id (or with `wanted` in their id); a None after each chunk, for progress."""
    for record in plan.ledger.records():
        key = ChunkKey(record.unit, record.chunk)
        names = plan.ledger.read_tokens(key)[0].column("id").to_pylist()
        yield from (Kept(plan.index, key, i, name) for i, name in enumerate(names) if matches(name, wanted, exact))
        yield None


def find_dropped(plan: SourcePlan, wanted: str, exact: bool) -> Iterator[NotTrained | None]:
    """The same for documents that were dropped or held out, from the raw input of every committed chunk."""
    name = plan.source.name
    for letter in plan.ledger.dead_letters():
        place = f"{letter.shard}#{letter.row}"
        if matches(place, wanted, exact):
            yield NotTrained(name, place, f"dead letter: {letter.reason} ({letter.detail})")
    held = held_out_ids(plan)
    yield from (NotTrained(name, i, "held out for validation") for i in held if matches(i, wanted, exact))
    committed = {ChunkKey(r.unit, r.chunk) for r in plan.ledger.records()}
    for unit in sorted({key.unit for key in committed}):
        for chunk, (docs, _report, _last) in enumerate(_raw_chunks(plan, unit)):
            key = ChunkKey(unit, chunk)
            names = docs.column("id").to_pylist()
            if key in committed and any(matches(n, wanted, exact) for n in names):
                found = (d for d in drops(plan, key, docs) if matches(d.document, wanted, exact))
                yield from (d for d in found if d.document not in held)
            yield None


def _raw_chunks(plan: SourcePlan, curated_at: int) -> Iterator[tuple[pa.Table, ChunkReport, bool]]:
    return raw_chunks(plan, plan.place(curated_at).unit, stops=Quarantine(plan.ledger.root, curated_at).stops)


def drops(plan: SourcePlan, key: ChunkKey, docs: pa.Table) -> Iterator[NotTrained]:
    """Every document of a chunk that was dropped, with the filter's reason or the recorded decision of dedup."""
    verdict, source = run_before_dedup(plan, docs), plan.source.name
    yield from _dropped(source, docs, verdict)
    decisions = split_segment(plan.ledger.read_segment(key))[0]
    for name, decided in zip(verdict.docs.column("id").to_pylist(), decisions.to_pylist(), strict=True):
        if not decided["kept"]:
            earlier = _document_at(plan, decided["duplicate_of"])
            yield NotTrained(source, name, decided["reason"], earlier, decided["similarity"])
    unique = apply_decisions(verdict.docs, decisions)
    yield from _dropped(source, unique, run_after_dedup(plan, unique, Quarantine(plan.ledger.root, key.name).stops))


def _dropped(source: str, docs: pa.Table, verdict: Verdict) -> Iterator[NotTrained]:
    for name, reason, kept in zip(docs.column("id").to_pylist(), verdict.reasons, verdict.kept, strict=True):
        if reason is not None and not kept:
            yield NotTrained(source, name, reason)


def _document_at(plan: SourcePlan, position: int) -> str | None:
    """Id of the document at a position of dedup's order, None for a drop that repeats no single one."""
    if position < 0:
        return name_outside(plan, position)
    unit, chunk, number = split_position(position)
    docs, _report, _last = next(islice(_raw_chunks(plan, unit), chunk, None))
    return str(run_before_dedup(plan, docs).docs.column("id")[number].as_py())
