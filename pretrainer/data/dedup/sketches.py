"""What dedup needs to know of documents: made in parallel, looked up in order, stored for what was kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.config import DedupConfig
from pretrainer.data.dedup import lsh, minhash
from pretrainer.data.dedup.keys import exact_hashes, url_hashes
from pretrainer.data.dedup.lines import hash_lines
from pretrainer.data.dedup.minhash import MIN_SHINGLES
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.dedup.substring import hash_all_words
from pretrainer.data.filters.urls import canonical_urls
from pretrainer.errors import StreamError

_RAGGED = ("sketch", "lines", "line_bounds", "words", "word_starts")


@dataclass(frozen=True)
class Sketches:
    """Sketches of N documents; what the config leaves off is None (`bands`: B = 0)."""

    hashes: np.ndarray  # [N, 2] uint64, (high, low) of the exact hash
    bands: np.ndarray  # [N, B] uint32, LSH keys
    shingle_count: np.ndarray  # [N] int32, different shingles
    scheme: str
    sketch: Ragged | None = None  # uint64, the odd sketch of the shingles
    urls: np.ndarray | None = None  # [N, 2] uint64, 0 for no URL
    lines: Ragged | None = None  # uint64
    words: Ragged | None = None  # uint32; of a stored document its kept pieces, a separator behind each
    line_bounds: Ragged | None = None  # int64; on the way to dedup alone
    word_starts: Ragged | None = None  # int32; on the way to dedup alone
    text_bytes: np.ndarray | None = None  # [N] int64; on the way to dedup alone

    def __len__(self) -> int:
        return len(self.hashes)

    def select(self, which: np.ndarray | slice) -> Sketches:
        """The documents of a mask [N] bool, of indices [M] in that order, or of a slice."""
        ragged = {name: rows.select(which) for name in _RAGGED if (rows := getattr(self, name)) is not None}
        flat = {name: rows[which] for name in ("urls", "text_bytes") if (rows := getattr(self, name)) is not None}
        return replace(self, hashes=self.hashes[which], bands=self.bands[which],
                       shingle_count=self.shingle_count[which], **ragged, **flat)

    def entries(self, words: Ragged | None = None) -> Sketches:
        """What the index stores of these documents, the words that were kept of them in place of all."""
        return replace(self, words=words if self.words is not None else None, line_bounds=None, word_starts=None,
                       text_bytes=None)

    def to_table(self) -> pa.Table:
        """Columns hash (16 bytes big-endian), minhash (band keys, 4 B bytes little-endian), shingle_count and, where
        the config has them, lists of the other fields; the scheme as metadata."""
        columns = {
            "hash": _fixed_binary(self.hashes.astype(">u8")),
            "minhash": _fixed_binary(self.bands.astype("<u4")),
            "shingle_count": pa.array(self.shingle_count, pa.int32()),
        }
        if self.urls is not None:
            columns["url"] = _fixed_binary(self.urls.astype(">u8"))
        if self.text_bytes is not None:
            columns["text_bytes"] = pa.array(self.text_bytes, pa.int64())
        columns |= {name: rows.to_array() for name in _RAGGED if (rows := getattr(self, name)) is not None}
        schema = pa.schema([(name, c.type) for name, c in columns.items()], metadata={"scheme": self.scheme})
        return pa.Table.from_arrays(list(columns.values()), schema=schema)

    @classmethod
    def from_table(cls, table: pa.Table) -> Sketches:
        """Inverse of `to_table`; raises StreamError if the table does not name its scheme."""
        scheme = (table.schema.metadata or {}).get(b"scheme")
        if scheme is None:
            raise StreamError("a table of sketches does not name its scheme, so it cannot be compared")
        there = set(table.column_names)
        return cls(
            _from_fixed_binary(table.column("hash"), ">u8").astype(np.uint64),
            _from_fixed_binary(table.column("minhash"), "<u4").astype(np.uint32),
            table.column("shingle_count").to_numpy().astype(np.int32),
            scheme.decode(),
            urls=_from_fixed_binary(table.column("url"), ">u8").astype(np.uint64) if "url" in there else None,
            text_bytes=table.column("text_bytes").to_numpy() if "text_bytes" in there else None,
            **{name: Ragged.from_column(table.column(name)) for name in _RAGGED if name in there},
        )


def _fixed_binary(rows: np.ndarray) -> pa.Array:
    contiguous = np.ascontiguousarray(rows)
    width = rows.shape[1] * rows.itemsize
    return pa.Array.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(contiguous)])


def _from_fixed_binary(column: pa.ChunkedArray, dtype: str) -> np.ndarray:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    width = column.type.byte_width
    data = np.frombuffer(array.buffers()[1], np.uint8) if len(array) and width else np.zeros(0, np.uint8)
    rows = data[array.offset * width : (array.offset + len(array)) * width]
    return rows.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize)


def scheme_of(config: DedupConfig) -> str:
    """The scheme id of this config's exact hashes and near-dup sketches; two schemes never compare."""
    if not config.near:
        return "exact-only"
    scheme = minhash.scheme_id(config.shingle_size, config.permutations, config.shingle_unit)
    return f"{scheme}-{config.bands}x{config.rows_per_band}-odd1"


def signatures(
    texts: pa.Array | pa.ChunkedArray, config: DedupConfig, urls: pa.Array | pa.ChunkedArray | None = None
) -> Sketches:
    """Sketches of N texts and, where URLs are compared, of their addresses; a pure function of each and the config."""
    hashes = exact_hashes(texts)
    count = len(hashes)
    bands, shingle_count, sketch = np.zeros((count, 0), np.uint32), np.zeros(count, np.int32), None
    if config.near:
        values, shingle_count, sketch = minhash.signatures(
            texts, config.shingle_size, config.permutations, config.bands * config.rows_per_band, config.shingle_unit
        )
        bands = np.empty((count, config.bands), np.uint32)
        lsh.band_keys(values, config.rows_per_band, bands)
    made = Sketches(hashes, bands, shingle_count, scheme_of(config), sketch)
    if config.url:
        made = replace(made, urls=_url_hashes(urls, count))
    if config.lines.max_documents:
        lines = hash_lines(texts, config)
        made = replace(made, lines=lines.hashes, line_bounds=lines.bounds)
    if config.substring_tokens:
        words = hash_all_words(texts)
        made = replace(made, words=words.hashes, word_starts=words.starts)
    return replace(made, text_bytes=_text_bytes(texts)) if config.edits_text else made


def _url_hashes(urls: pa.Array | pa.ChunkedArray | None, count: int) -> np.ndarray:
    if urls is None:
        return np.zeros((count, 2), np.uint64)
    return url_hashes(canonical_urls(urls.combine_chunks() if isinstance(urls, pa.ChunkedArray) else urls))


def _text_bytes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.binary_length(texts), np.int64)


__all__ = ["MIN_SHINGLES", "Sketches", "scheme_of", "signatures"]
