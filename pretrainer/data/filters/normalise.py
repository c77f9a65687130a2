"""Text normalisation: what a document is stored as, and what exact dedup compares.

Two different jobs, kept apart on purpose. `normalise_text` changes what the model will read, so it does the least
that every later stage can rely on. `dedup_key` is only hashed and thrown away, so it may forget more.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


def as_large_string(texts: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """Any string array or column as one contiguous LargeStringArray without nulls; raises ValueError on nulls.

    Readers turn a record without text into a dead letter, so a null here is a bug and not an input.
    """
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} texts are null; records without text are dead letters")
    return array if array.type == pa.large_string() else array.cast(pa.large_string())


def utf8_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(data uint8 [bytes], offsets int64 [N + 1]): text i is data[offsets[i]:offsets[i + 1]]; no copy, read-only."""
    array = as_large_string(texts)
    _, offsets_buffer, data_buffer = array.buffers()
    if len(array) == 0 or offsets_buffer is None:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return data, offsets


def from_utf8_buffers(data: np.ndarray, offsets: np.ndarray) -> pa.LargeStringArray:
    """Inverse of `utf8_buffers`; the bytes behind the last offset are dropped."""
    buffers = pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data[: offsets[-1]].copy())
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, *buffers)


def normalise_text(text: str) -> str:
    """Text as it is stored and tokenized: CRLF and CR become LF, U+0000 is removed, nothing else changes.

    Tabs, indentation, trailing blanks, blank lines, composed and decomposed letters all carry meaning in some source
    (Python's indentation, Markdown's line breaks, a test of Unicode handling), so no whitespace is collapsed and no
    Unicode normal form is applied. U+0000 goes because sentencepiece ends a text there; line ends, because otherwise
    the same file checked out on two systems would be two documents and every line rule would count differently.
    Idempotent: a CR that stood before a removed U+0000 is a line end of its own.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def normalise_texts(texts: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """`normalise_text` of every entry; an array that needs no change is returned as it is."""
    array = as_large_string(texts)
    for old, new in (("\r\n", "\n"), ("\r", "\n"), ("\0", "")):
        # Looking first is about 5x cheaper than rewriting, and most chunks contain none of the three.
        if pc.any(pc.match_substring(array, old)).as_py():
            array = pc.replace_substring(array, old, new)
    return array


def dedup_key(text: str) -> str:
    """What exact dedup compares: NFC, runs of whitespace as one blank, none at the ends; letter case is kept.

    Copies of a page differ in line wrapping, indentation and composition of accents, which say nothing about the
    content. CCNet (Wenzek et al. 2020, section 3.1) goes further: lower case, digits as 0, no punctuation, no accents.
    It hashes paragraphs; on whole documents and on code that would merge texts that differ (constants, versions,
    `Name` and `name`). What differs only that much is left to near-dup, which verifies.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_hash(text: str) -> bytes:
    """128-bit XXH3 of the dedup key in UTF-8, big-endian (the canonical form, equal on every platform)."""
    return xxhash.xxh3_128_digest(dedup_key(text).encode("utf-8"))


def exact_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """`exact_hash` of every entry: [N, 2] uint64, columns (high, low)."""
    digests = b"".join([exact_hash(text) for text in as_large_string(texts).to_pylist()])
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
