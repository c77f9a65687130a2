"""The ledger of one source: what curation decided, chunk by chunk, in object storage.

    <root>/segments/<unit>-<chunk>.arrow    decisions and index entries of a chunk, durable before its stage returns
    <root>/tokens/<unit>-<chunk>.arrow      token shard: schema.TOKENIZED of the kept documents
    <root>/chunks/<unit>-<chunk>-<e|m>.json the record; `e` when it is the last chunk of its unit
    <root>/dead_letters/<unit>-<chunk>.jsonl
    <root>/segment_pages, chunk_pages       consecutive segments and records in one object, see `pages`

`unit` is the curation position (place of the unit in epoch 0's order), so keys sort in curation order. A chunk counts
only when its record exists, and only the contiguous prefix of records counts. Every object is a pure function of its
key and the fingerprint that names the root; it is created once, and other bytes for the same key stop the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache

import pyarrow as pa

from pretrainer.data.ledger.pages import ChunkKey
from pretrainer.data.ledger.records import ChunkRecord, RecordLog
from pretrainer.data.ledger.segments import SegmentLog
from pretrainer.errors import StreamError
from pretrainer.schema import QUARANTINED, ChunkReport, DeadLetter, from_ipc, to_ipc
from pretrainer.storage import Store

__all__ = ["ChunkKey", "ChunkRecord", "Ledger", "open_ledger"]


class Ledger:
    """Reads and writes the ledger of one source under one fingerprint."""

    def __init__(self, root: Store) -> None:
        self.root = root
        self.record_log = RecordLog(root)
        self.segment_log = SegmentLog(root)

    # segments -----------------------------------------------------------------------------------------------------
    def write_segment(self, key: ChunkKey, table: pa.Table) -> bytes:
        """Create the segment of a chunk; returns its bytes."""
        data = to_ipc(table)
        self.segment_log.create(key, data)
        return data

    def read_segment(self, key: ChunkKey) -> pa.Table:
        return self.segment_log.get(key)

    def segments(self) -> Iterator[tuple[ChunkKey, pa.Table]]:
        """Decision segments in curation order."""
        return iter(self.segment_log)

    # chunks -------------------------------------------------------------------------------------------------------
    def commit(self, key: ChunkKey, last: bool, tokenized: pa.Table, report: ChunkReport) -> ChunkRecord:
        """Write token shard, dead letters and then the record; a repeat with the same content is a no-op."""
        data = to_ipc(tokenized)
        self.root.create(f"tokens/{key.name}.arrow", data)
        if report.dead_letters:
            lines = "".join(json.dumps(asdict(d), sort_keys=True) + "\n" for d in report.dead_letters)
            self.root.create(f"dead_letters/{key.name}.jsonl", lines.encode())
        record = ChunkRecord(
            unit=key.unit,
            chunk=key.chunk,
            last=last,
            read=report.read,
            kept=report.kept,
            bytes_read=report.bytes_read,
            bytes_kept=sum(tokenized.column("bytes").to_pylist()),
            tokens=_count_tokens(tokenized),
            tokens_digest=hashlib.sha256(data).hexdigest(),
            dropped=dict(sorted(report.dropped.items())),
            dead_letters=len(report.dead_letters),
            quarantined=sum(letter.reason == QUARANTINED for letter in report.dead_letters),
            next=report.next,
        )
        self.record_log.create(record)
        return record

    def committed(self) -> tuple[int, int]:
        """(leading units with all their chunks committed, leading chunks of the next unit that are); two LISTs."""
        key, last = self.record_log.newest()
        return (key.unit + 1, 0) if last else (key.unit, key.chunk + 1)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Records that could not be read, in curation order."""
        for path, _size, _version in self.root.list("dead_letters"):
            yield from (DeadLetter(**json.loads(line)) for line in self.root.read(path).splitlines())

    def committed_units(self) -> int:
        """How many leading units have all their chunks committed; two LISTs, no record is read."""
        return self.committed()[0]

    def records(self) -> Iterator[ChunkRecord]:
        """Committed records of the contiguous prefix, in curation order."""
        return iter(self.record_log)

    def record(self, key: ChunkKey) -> ChunkRecord | None:
        """The record of one chunk, or None where it is not committed."""
        return self.record_log.get(key)

    def read_tokens(self, key: ChunkKey) -> tuple[pa.Table, bool]:
        """(token shard, whether it is the last chunk of its unit) of a committed chunk, its digest checked."""
        record = self.record(key)
        if record is None:
            raise StreamError(f"chunk {key.name} of {self.root.uri} is needed but its ledger record does not exist")
        data = self.root.read(f"tokens/{key.name}.arrow")
        if hashlib.sha256(data).hexdigest() != record.tokens_digest:
            raise StreamError(
                f"token shard {key.name} of {self.root.uri} does not match its ledger record; "
                "delete the run's data folder to curate again"
            )
        return from_ipc(data), record.last

    def read_unit(self, unit: int) -> Iterator[tuple[ChunkKey, pa.Table, bool]]:
        """(key, token shard, last) of every chunk of a committed unit."""
        chunk, last = 0, False
        while not last:
            key = ChunkKey(unit, chunk)
            tokens, last = self.read_tokens(key)
            yield key, tokens, last
            chunk += 1


@lru_cache(maxsize=32)
def open_ledger(uri: str) -> Ledger:
    """The ledger at a URI; a process keeps it, so that pages are listed once and not for every chunk."""
    return Ledger(Store(uri))


def _count_tokens(tokenized: pa.Table) -> int:
    column = tokenized.column("tokens").combine_chunks()
    return int(column.offsets[-1].as_py() - column.offsets[0].as_py()) if len(column) else 0
