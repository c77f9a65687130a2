"""The ledger of one source: what curation decided, chunk by chunk, in object storage.

    <root>/segments/<unit>-<chunk>.arrow    decisions and index entries of a chunk, durable before its stage returns
    <root>/tokens/<unit>-<chunk>.arrow      token shard: schema.TOKENIZED of the kept documents
    <root>/chunks/<unit>-<chunk>-<e|m>.json the record; `e` when it is the last chunk of its unit
    <root>/dead_letters/<unit>-<chunk>.jsonl

`unit` is the curation position (place of the unit in epoch 0's order), so keys sort in curation order. A chunk counts
only when its record exists, and only the contiguous prefix of records counts. Every object is a pure function of its
key and the fingerprint that names the root; it is created once, and other bytes for the same key stop the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pretrainer.errors import StreamError
from pretrainer.schema import ChunkReport, from_ipc, to_ipc
from pretrainer.storage import Store


@dataclass(frozen=True, order=True)
class ChunkKey:
    """Curation position of a unit and the number of the chunk inside it; sorts in curation order."""

    unit: int
    chunk: int

    @property
    def name(self) -> str:
        return f"{self.unit:09d}-{self.chunk:05d}"

    @classmethod
    def parse(cls, name: str) -> ChunkKey:
        unit, chunk = name.split("-")[:2]
        return cls(int(unit), int(chunk.split(".")[0]))

    def follows(self, before: ChunkKey | None, before_was_last: bool) -> bool:
        """Whether this chunk comes directly after `before` (None: at the very start)."""
        if before is None:
            return self == ChunkKey(0, 0)
        return self == (ChunkKey(before.unit + 1, 0) if before_was_last else ChunkKey(before.unit, before.chunk + 1))


@dataclass(frozen=True)
class ChunkRecord:
    """Committed record of one chunk."""

    unit: int
    chunk: int
    last: bool
    read: int
    kept: int
    bytes_read: int
    bytes_kept: int
    tokens: int
    tokens_digest: str
    dropped: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


class Ledger:
    """Reads and writes the ledger of one source under one fingerprint."""

    def __init__(self, root: Store) -> None:
        self.root = root

    # segments -----------------------------------------------------------------------------------------------------
    def write_segment(self, key: ChunkKey, table: pa.Table) -> None:
        self.root.create(f"segments/{key.name}.arrow", to_ipc(table))

    def read_segment(self, key: ChunkKey) -> pa.Table:
        return from_ipc(self.root.read(f"segments/{key.name}.arrow"))

    def segments(self) -> Iterator[tuple[ChunkKey, pa.Table]]:
        """Decision segments in curation order."""
        for path, _size, _version in self.root.list("segments"):
            yield ChunkKey.parse(path.rsplit("/", 1)[-1]), from_ipc(self.root.read(path))

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
        )
        self.root.create(f"chunks/{key.name}-{'e' if last else 'm'}.json", record.to_bytes())
        return record

    def committed_units(self) -> int:
        """How many leading units have all their chunks committed; one LIST, no record is read."""
        units, before, was_last = 0, None, False
        for path, _size, _version in self.root.list("chunks"):
            name = path.rsplit("/", 1)[-1].removesuffix(".json")
            key = ChunkKey.parse(name)
            if not key.follows(before, was_last):
                break
            before, was_last = key, name.endswith("-e")
            units = key.unit + was_last
        return units

    def records(self) -> Iterator[ChunkRecord]:
        """Committed records of the contiguous prefix, in curation order."""
        before, was_last = None, False
        for path, _size, _version in self.root.list("chunks"):
            record = ChunkRecord(**json.loads(self.root.read(path)))
            key = ChunkKey(record.unit, record.chunk)
            if not key.follows(before, was_last):
                return
            before, was_last = key, record.last
            yield record

    def record(self, key: ChunkKey) -> ChunkRecord | None:
        """The record of one chunk, or None where it is not committed."""
        for ending in "em":
            try:
                return ChunkRecord(**json.loads(self.root.read(f"chunks/{key.name}-{ending}.json")))
            except FileNotFoundError:
                continue
        return None

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


def _count_tokens(tokenized: pa.Table) -> int:
    column = tokenized.column("tokens").combine_chunks()
    return int(column.offsets[-1].as_py() - column.offsets[0].as_py()) if len(column) else 0


@dataclass(frozen=True)
class Window:
    """A closed pack window: consecutive chunks of the stream and the sequences made of them."""

    window: int
    epoch: int
    first: tuple[int, int]  # (stream position of the unit, chunk in the unit) of its first chunk
    after: tuple[int, int]  # of the first chunk after it
    first_sequence: int
    sequences: int
    tokens: int
    padded: int
    split: int
    documents: int

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


class WindowLog:
    """Closed pack windows of one source under one packing fingerprint; created once, in order."""

    def __init__(self, root: Store) -> None:
        self.root = root

    def write(self, window: Window) -> None:
        self.root.create(f"windows/{window.window:09d}.json", window.to_bytes())

    def read_all(self) -> list[Window]:
        """The contiguous prefix of closed windows."""
        windows: list[Window] = []
        for path, _size, _version in self.root.list("windows"):
            raw = json.loads(self.root.read(path))
            window = Window(**{**raw, "first": tuple(raw["first"]), "after": tuple(raw["after"])})
            if window.window != len(windows):
                break
            windows.append(window)
        return windows
