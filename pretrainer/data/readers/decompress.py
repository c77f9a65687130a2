"""Streaming decompression with bounded memory and a deterministic place of failure.

Input goes to the decompressor in slices of FEED_BYTES and output is asked for in pieces of at most OUTPUT_BYTES,
both counted from the start of the shard. So what comes out before a corrupt place is a function of the shard, never
of the block size of storage, and a decompression bomb costs no memory here. Less than OUTPUT_BYTES in front of a
corrupt place are lost, because a decompressor drops the output of the call that fails.

Reading may begin at a **member** (of gzip; a stream of bz2 or xz): files of bgzip, pigz -i, pbzip2 or pixz, and joined
files, have many, and `MemberStarts` tells where they begin. zstd and lz4 files are read from their first byte: Arrow's
stream does not show their frames, and most files have only one.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import pyarrow as pa

FEED_BYTES = 1024
OUTPUT_BYTES = 4096
ARROW_STREAMS = ("zstd", "lz4")
XZ_MEMORY_BYTES = 512 * 2**20
"""xz -9 needs 65 MiB; a header may ask for 4 GiB."""


class CorruptStreamError(Exception):
    """The compressed bytes are truncated or damaged; everything before was yielded. Never leaves `data.readers`."""


class _Member(Protocol):
    """One gzip member, bz2 or xz stream; files may hold several, one after the other."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's object with the interface of bz2 and lzma: it keeps the input that did not fit in the output."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


MEMBERS: dict[str, Callable[[], _Member]] = {
    "gzip": _GzipMember,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES),
}


class Start(NamedTuple):
    """A place in a shard where reading may begin.

    `before` is what lies before it (decompressed bytes; rows for Parquet), `address` where it is (compressed bytes;
    number of the row group).
    """

    before: int = 0
    address: int = 0


@dataclass
class MemberStarts:
    """The starts that a reader has passed, from the one it began at; those before the last answer are forgotten."""

    passed: list[Start] = field(default_factory=lambda: [Start()])

    def before(self, place: int) -> Start:
        """The last start at or before `place` (decompressed bytes; rows); places must ascend."""
        last = max(i for i, start in enumerate(self.passed) if start.before <= place)
        del self.passed[:last]
        return self.passed[0]


def decompressed(
    blocks: Iterator[bytes], compression: str | None, starts: MemberStarts | None = None
) -> Iterator[bytes]:
    """Decompressed bytes of a shard in pieces of any size; CorruptStreamError where it is damaged or ends too soon.

    `compression` is gzip, zstd, lz4, bz2, xz or None (the blocks as they are). A file of no bytes is damaged. `blocks`
    begin at the last of `starts`, a member, which makes no difference to what follows; members are added to it.
    """
    if compression is None:
        return blocks
    if compression in ARROW_STREAMS:
        return _arrow(blocks, compression)
    passed = (starts or MemberStarts()).passed
    return _members(_slices(blocks, passed[-1].address), MEMBERS[compression], passed)


def _slices(blocks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """The same bytes cut at the multiples of FEED_BYTES of the shard; they begin at byte `offset` of it."""
    rest, wanted = b"", FEED_BYTES - offset % FEED_BYTES
    for block in blocks:
        joined, begin = rest + block, 0
        while begin + wanted <= len(joined):
            yield joined[begin : begin + wanted]
            begin, wanted = begin + wanted, FEED_BYTES
        rest = joined[begin:]
    if rest:
        yield rest


def _members(slices: Iterator[bytes], new_member: Callable[[], _Member], passed: list[Start]) -> Iterator[bytes]:
    """Output of all members from the last of `passed` on; the start of each further one is added to it."""
    member: _Member | None = new_member()
    before, end = passed[-1]  # decompressed bytes so far; compressed offset behind the slice
    for data in slices:
        end += len(data)
        while data:
            if member is None:
                # Zero bytes after a member are padding, as gzip(1), xz(1) and Python's gzip have it.
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = new_member()
                passed.append(Start(before, end - len(data)))
            for piece in _feed(member, data):
                before += len(piece)
                yield piece
            data = member.unused_data if member.eof else b""
            member = None if member.eof else member
    if member is not None:
        raise CorruptStreamError("the compressed stream ends too soon")


def skipped(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The pieces without their first `count` bytes."""
    for piece in pieces:
        if count < len(piece):
            yield piece[count:]
        count = max(0, count - len(piece))


def _feed(member: _Member, data: bytes) -> Iterator[bytes]:
    piece = _decompress(member, data)
    while piece:
        yield piece
        if member.eof or len(piece) < OUTPUT_BYTES:
            return
        piece = _decompress(member, b"")


def _decompress(member: _Member, data: bytes) -> bytes:
    try:
        return member.decompress(data, OUTPUT_BYTES)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:  # bz2 raises OSError
        raise CorruptStreamError(str(error)) from None


class _BlockFile(io.RawIOBase):
    """A file for pyarrow over blocks; reads are full up to the end, so that block borders do not show."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest, self.total = blocks, b"", 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        wanted = 2**62 if size is None or size < 0 else size
        parts = [self._rest]
        while sum(map(len, parts)) < wanted and (block := next(self._blocks, None)) is not None:
            parts.append(block)
        joined = b"".join(parts)
        data, self._rest = joined[:wanted], joined[wanted:]
        self.total += len(data)
        return data


def _arrow(blocks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Through pyarrow: it bounds the output and notices a truncated frame, which the zstandard package does not."""
    source = _BlockFile(blocks)
    stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), compression)
    while piece := _read_arrow(stream):
        yield piece
    if source.total == 0:
        raise CorruptStreamError("the compressed stream ends too soon")


def _read_arrow(stream: pa.CompressedInputStream) -> bytes:
    try:
        return stream.read(OUTPUT_BYTES)
    except OSError as error:
        raise CorruptStreamError(str(error)) from None
