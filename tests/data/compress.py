"""A compressor for each suffix that the readers know."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable

import pyarrow as pa


def _arrow(data: bytes, compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def zstd(data: bytes) -> bytes:
    return _arrow(data, "zstd")


def lz4(data: bytes) -> bytes:
    return _arrow(data, "lz4")


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data, ".gz": gzip.compress, ".zst": zstd, ".lz4": lz4, ".bz2": bz2.compress, ".xz": lzma.compress,
}
