"""Units, the pieces of a source that one read task gets, and the pseudo-random order in which they are read.

Pure arithmetic on sizes and names: nothing here opens a shard.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa

from pretrainer.errors import SourceError

COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "lz4": "lz4", "bz2": "bz2", "xz": "xz"}
FORMATS = {
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "parquet": "parquet", "pq": "parquet",
    "warc": "warc", "wet": "warc", "html": "html", "htm": "html",
}  # fmt: skip
WIKIPEDIA_NAME = re.compile(r"-pages-(?:articles|meta-current)[^/]*\.xml[^/]*$")
"""Dumps of MediaWiki are called enwiki-20240101-pages-articles-multistream1.xml-p1p41242.bz2, for example."""
SPLITTABLE = frozenset({"jsonl", "text"})
MAX_SHARDS_PER_UNIT = 1000
"""Tiny files are opened one after the other, so bytes alone must not decide how many a task gets."""
ROUNDS = 8
_MASK = 2**64 - 1


def shard_format(path: str, configured: str) -> tuple[str, str | None]:
    """(format, compression or None) of a shard: one of `formats.READERS`, by its name where the config says auto."""
    if configured == "auto" and WIKIPEDIA_NAME.search(path):
        configured = "wikipedia"
    found, compression = _by_suffixes(".".join(path.rsplit(".", 2)[1:]).lower(), configured)
    if found == "parquet" and compression:
        raise SourceError(f"shard {path}: parquet inside {compression} cannot be read: unpack it, it compresses itself")
    return found, compression


@lru_cache(maxsize=4096)
def _by_suffixes(suffixes: str, configured: str) -> tuple[str, str | None]:
    """The same from the last two suffixes: 'jsonl.gz', 'parquet', or '' without any."""
    inner, _, outer = suffixes.rpartition(".")
    compression = COMPRESSIONS.get(outer)
    found = FORMATS.get(inner if compression else outer, "text") if configured == "auto" else configured
    return found, compression


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one shard for a reader: records that start in the bytes [start, end), or all of it if end is None.

    `shard` is its number in the manifest of the source, `size` the bytes it had when the manifest was made.
    """

    shard: int
    root: str
    path: str
    size: int
    start: int = 0
    end: int | None = None


class ShardTables(Protocol):
    """What a plan needs of `source.Manifest`: per source the table of shards and the format."""

    @property
    def formats(self) -> tuple[str, ...]: ...
    @property
    def tables(self) -> tuple[pa.Table, ...]: ...


class UnitPlan:
    """The units of one source: a function of the paths and sizes in its manifest, of `chunk_bytes` and the format.

    - A splittable shard (uncompressed jsonl or text) larger than chunk_bytes: one unit per range of chunk_bytes.
    - Any other shard of at least chunk_bytes: one unit, which gives several chunks in sequence.
    - Smaller ones: consecutive shards as long as their sizes sum to at most chunk_bytes, at most
      MAX_SHARDS_PER_UNIT of them.

    Uncompressed jsonl and text give exactly one chunk per unit. Memory: two int64 per group or large shard;
    a look-up is a binary search.
    """

    def __init__(self, manifest: ShardTables, source: int, chunk_bytes: int) -> None:
        self._table = manifest.tables[source].combine_chunks()
        self._chunk_bytes = chunk_bytes
        sizes = self._table.column("size").to_pylist()
        paths = self._table.column("path").to_pylist()
        split = [_is_splittable(path, manifest.formats[source]) for path in paths]
        first_shard, units = _segments(sizes, split, chunk_bytes)
        self._first_shard = np.array([*first_shard, len(sizes)], dtype=np.int64)  # [segments + 1]
        self._first_unit = np.concatenate([[0], np.cumsum(units, dtype=np.int64)])  # [segments + 1]

    def __len__(self) -> int:
        return int(self._first_unit[-1])

    def pieces(self, unit: int) -> list[Piece]:
        """What the unit reads, in order; IndexError outside [0, len)."""
        if not 0 <= unit < len(self):
            raise IndexError(f"unit {unit} of {len(self)}")
        segment = int(np.searchsorted(self._first_unit, unit, side="right")) - 1
        first, stop = int(self._first_shard[segment]), int(self._first_shard[segment + 1])
        if self._first_unit[segment + 1] - self._first_unit[segment] == 1:
            return [self._piece(shard) for shard in range(first, stop)]
        return [self._range(first, unit - int(self._first_unit[segment]))]

    def _piece(self, shard: int) -> Piece:
        root, path, size = (self._table.column(name)[shard].as_py() for name in ("root", "path", "size"))
        return Piece(shard, root, path, size)

    def _range(self, shard: int, number: int) -> Piece:
        whole = self._piece(shard)
        start = number * self._chunk_bytes
        return Piece(whole.shard, whole.root, whole.path, whole.size, start, min(start + self._chunk_bytes, whole.size))


def _is_splittable(path: str, configured: str) -> bool:
    found, compression = shard_format(path, configured)
    return compression is None and found in SPLITTABLE


def _segments(sizes: Sequence[int], split: Sequence[bool], chunk_bytes: int) -> tuple[list[int], list[int]]:
    """(first shard, number of units) of each segment: a group of small shards, or one large shard."""
    first_shard: list[int] = []
    units: list[int] = []
    room, members = -1, 0  # of the open group; no room: the next shard opens a segment
    for shard, size in enumerate(sizes):
        if size <= room and members < MAX_SHARDS_PER_UNIT:
            room, members = room - size, members + 1
            continue
        first_shard.append(shard)
        units.append(-(-size // chunk_bytes) if split[shard] and size > chunk_bytes else 1)
        room, members = chunk_bytes - size if size < chunk_bytes else -1, 1
    return first_shard, units


def order_key(order_seed: int, source: str, epoch: int) -> bytes:
    """Key of the order of one source in one epoch, 32 bytes."""
    return hashlib.sha256(f"unit order\0{order_seed}\0{source}\0{epoch}".encode()).digest()


@dataclass(frozen=True)
class Permutation:
    """A keyed pseudo-random permutation of [0, n) in constant memory: position -> unit, with its inverse.

    An alternating Feistel network over Z_a x Z_b with a * b >= n, walking the cycle while the value is outside
    [0, n) (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Departure: a * b < n + sqrt(n) + 1
    instead of a power of two, so that nearly no step walks, and the round function is splitmix64 (Steele, Lea and
    Flood 2014) keyed by BLAKE2b, which is enough for shuffling and is no encryption.
    """

    n: int
    a: int
    b: int
    round_keys: tuple[int, ...]

    def __len__(self) -> int:
        return self.n

    def __call__(self, position: int) -> int:
        self._check(position)
        value = self._forward(position)
        while value >= self.n:
            value = self._forward(value)
        return value

    def inverse(self, unit: int) -> int:
        self._check(unit)
        value = self._backward(unit)
        while value >= self.n:
            value = self._backward(value)
        return value

    def _check(self, value: int) -> None:
        if not 0 <= value < self.n:
            raise IndexError(f"{value} is not in [0, {self.n})")

    def _forward(self, value: int) -> int:
        left, right = divmod(value, self.b)
        for i in range(0, ROUNDS, 2):
            left = (left + _mix(self.round_keys[i] + right)) % self.a
            right = (right + _mix(self.round_keys[i + 1] + left)) % self.b
        return left * self.b + right

    def _backward(self, value: int) -> int:
        left, right = divmod(value, self.b)
        for i in reversed(range(0, ROUNDS, 2)):
            right = (right - _mix(self.round_keys[i + 1] + left)) % self.b
            left = (left - _mix(self.round_keys[i] + right)) % self.a
        return left * self.b + right


def _mix(x: int) -> int:
    """splitmix64's finaliser: every input bit changes every output bit with probability about 1/2."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def permute(n: int, key: bytes) -> Permutation:
    """The permutation of [0, n) that a key of up to 64 bytes stands for."""
    a = math.isqrt(max(n, 1) - 1) + 1  # ceil(sqrt(n))
    b = max(1, -(-n // a))
    digests = (hashlib.blake2b(bytes([i]), key=key, digest_size=8).digest() for i in range(ROUNDS))
    return Permutation(n, a, b, tuple(int.from_bytes(digest, "little") for digest in digests))
