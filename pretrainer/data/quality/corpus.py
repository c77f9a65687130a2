"""Documents to train a quality model on: read from URIs as a run reads its sources, without Ray, each text once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.config import SourceConfig
from pretrainer.data.filters.normalise import as_large_string, exact_hashes, normalise_texts
from pretrainer.data.readers.formats import read_unit
from pretrainer.data.readers.source import Manifest
from pretrainer.data.readers.units import UnitPlan, permute
from pretrainer.errors import SourceError

CHUNK_BYTES = 8 * 2**20
MAX_DOCUMENT_BYTES = 32 * 2**20


class Corpus(NamedTuple):
    """Different texts in an order that their hashes decide, so that no order of files or URIs changes a model."""

    texts: pa.LargeStringArray  # [N]
    hashes: np.ndarray  # [N, 2] uint64, exact_hash of each
    read: int
    unreadable: int


def read_corpus(name: str, uris: Sequence[str], text_column: str, max_bytes: int, seed: int) -> Corpus:
    """Up to about max_bytes of text, from units in an order chosen by hash; SourceError if there is none."""
    source = SourceConfig(name=name, uris=tuple(uris), text_column=text_column, preset="none")
    parts, unreadable, size = [], 0, 0
    for docs, dead in _chunks(source, seed):
        texts = normalise_texts(docs.column("text"))
        parts.append(texts)
        unreadable, size = unreadable + dead, size + (pc.sum(pc.binary_length(texts)).as_py() or 0)
        if size >= max_bytes:
            break
    texts = pa.concat_arrays(parts)
    if len(texts) == 0:
        raise SourceError(
            f"--{name}: no document could be read ({unreadable:,} records are unreadable): check the URIs and "
            f"--text-column {text_column}"
        )
    return each_once(texts, seed)._replace(read=len(texts), unreadable=unreadable)


def _chunks(source: SourceConfig, seed: int) -> Iterator[tuple[pa.Table, int]]:
    """(documents, dead letters) of each chunk."""
    units = UnitPlan(Manifest.build([source]), 0, CHUNK_BYTES)
    order = permute(len(units), f"quality/{seed}/{source.name}".encode())
    for position in range(len(units)):
        for docs, report, _last in read_unit(units.pieces(order(position)), source, CHUNK_BYTES, MAX_DOCUMENT_BYTES):
            yield docs, len(report.dead_letters)


def each_once(texts: pa.Array, seed: int) -> Corpus:
    """One of each text (as exact dedup compares them), ordered by a hash that the seed keys."""
    array = as_large_string(texts)
    hashes = exact_hashes(array)
    _, first = np.unique(hashes, axis=0, return_index=True)
    key = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little") | 1
    ranks = hashes[first, 1] * np.uint64(key)  # odd: a bijection, and its upper bits depend on all bits
    chosen = first[np.lexsort((hashes[first, 0], ranks))]
    return Corpus(array.take(pa.array(chosen)), hashes[chosen], len(array), 0)


def without_common(left: Corpus, right: Corpus) -> tuple[Corpus, Corpus, int]:
    """Both without the texts that they have in common, and how many those are: nobody knows which set they are of."""
    common = _as_items(left.hashes), _as_items(right.hashes)
    in_right, in_left = np.isin(common[0], common[1]), np.isin(common[1], common[0])
    return _select(left, ~in_right), _select(right, ~in_left), int(in_right.sum())


def _as_items(hashes: np.ndarray) -> np.ndarray:
    """[N, 2] uint64 as [N] void of 16 bytes, to compare rows."""
    return np.ascontiguousarray(hashes).view([("high", np.uint64), ("low", np.uint64)]).ravel()


def _select(corpus: Corpus, keep: np.ndarray) -> Corpus:
    return corpus._replace(texts=corpus.texts.filter(pa.array(keep)), hashes=corpus.hashes[keep])
