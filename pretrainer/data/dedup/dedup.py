"""Duplicate decisions: which documents of a stream are kept, and what of their text, decided in its order.

The rules, each with a test:

- The survivor is the earliest document in the order. Only kept documents enter the index.
- A look-up ignores entries at or after the document's own position. So a chunk that is decided again on a live
  index, or on one that was rebuilt from recorded sketches, gets its first answer; no document matches itself.
- Exact: equal 128-bit hashes of `dedup_key`. URL (off by default): equal 128-bit hashes of the canonical address.
- Near: a shared LSH band makes a *candidate* (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4),
  and only a similarity of at least `threshold`, by the odd sketches of both whole shingle sets, drops it; never a band
  alone, never a similarity through a third document.
- A document with fewer than MIN_SHINGLES different shingles is exempt from near-dup: its similarity is a step function
  of a few words (one changed word of 14 changes five of ten 5-grams). It neither looks up nor is found; exact dedup
  sees it.
- Held-out documents have negative positions, so they precede all training documents and win against them; documents of
  sealed indexes stand between the two.
- Lines and repeated spans (`lines`, `substring`, both off by default) are removed from what is kept then; a document of
  which too little is left is dropped, and enters nothing.

Cost per kept document, see `memory`: with B = 18 bands and 1,200 shingles about 0.7 KB. A look-up costs B hash probes
and one comparison of two sketches per candidate of a possible size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from pretrainer.config import DedupConfig
from pretrainer.data.dedup import lsh
from pretrainer.data.dedup.lines import LineIndex
from pretrainer.data.dedup.minhash import MIN_SHINGLES
from pretrainer.data.dedup.oddsketch import MIN_WORDS
from pretrainer.data.dedup.positions import (
    held_out_index,
    held_out_position,
    is_sealed,
    position,
    sealed_position,
    split_position,
    split_sealed,
)
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.dedup.removal import merge_ranges
from pretrainer.data.dedup.sketches import Sketches, scheme_of, signatures
from pretrainer.data.dedup.substring import SubstringIndex
from pretrainer.errors import ConfigError, StreamError

__all__ = [
    "MIN_SHINGLES", "NO_DUPLICATE", "Decisions", "DedupIndex", "Sketches", "held_out_index", "held_out_position",
    "is_sealed", "position", "scheme_of", "sealed_position", "signatures", "split_position", "split_sealed",
]  # fmt: skip

T = TypeVar("T")

DUPLICATE_EXACT, DUPLICATE_NEAR, DUPLICATE_URL = "duplicate_exact", "duplicate_near", "duplicate_url"
DUPLICATE_SEALED, DUPLICATE_LINES, DUPLICATE_SUBSTRING = "duplicate_sealed", "duplicate_lines", "duplicate_substring"
HELD_OUT, HELD_OUT_NEAR = "held_out", "held_out_near"

NO_DUPLICATE = np.iinfo(np.int64).min
"""`Decisions.duplicate_of` of a kept document, and of one that was dropped for its lines or spans; no document has
this position."""


@dataclass(frozen=True)
class Decisions:
    """What became of N documents."""

    kept: np.ndarray  # [N] bool
    reasons: list[str | None]  # None if kept
    duplicate_of: np.ndarray  # [N] int64, position of the earliest document that it duplicates, or NO_DUPLICATE
    similarity: np.ndarray  # [N] float32, Jaccard; 1 for equal texts and URLs, 0 if kept, the share removed otherwise
    entries: Sketches  # of the kept documents, as the index stores them
    removed: Ragged | None = None  # int64, byte ranges that leave each text (first, end, …); None: none ever does


class DedupIndex:
    """The kept documents of one source and what precedes them, ready to be looked up. Not safe for threads."""

    def __init__(self, config: DedupConfig) -> None:
        self._config = config
        self._scheme = scheme_of(config)
        self._bands = config.bands if config.near else 0
        self._tables = lsh.empty_tables(1024, 2048, 1024 * MIN_WORDS, self._bands, config.url)
        self._lines = LineIndex(config.lines.max_documents) if config.lines.max_documents else None
        self._spans = SubstringIndex(config.substring_tokens) if config.substring_tokens else None

    def __len__(self) -> int:
        """Documents in the index."""
        return int(self._tables.used[lsh.ENTRIES])

    @property
    def comparisons(self) -> int:
        """Pairs of sketches compared so far."""
        return int(self._tables.used[lsh.COMPARISONS])

    def memory_bytes(self) -> int:
        """Bytes of all arrays, spare room included."""
        others = [index.memory_bytes() for index in (self._lines, self._spans) if index is not None]
        return sum(array.nbytes for array in self._tables) + sum(others)

    def decide(self, positions: np.ndarray, sketches: Sketches) -> Decisions:
        """Decide N documents at strictly ascending positions [N] int64 and insert those that are kept.

        Raises StreamError if positions do not ascend, if the sketches have another scheme, or if another document is
        already recorded at one of the positions.
        """
        if np.any(np.diff(positions) <= 0):
            raise StreamError("documents were not given to dedup in their order")
        documents = self._prepare(positions, sketches)
        if self._config.edits_text:
            return self._decide_text(documents, sketches)
        return self._decide_whole(documents, sketches, insert=True)

    def insert(self, positions: np.ndarray, sketches: Sketches) -> None:
        """Insert N documents as kept: recorded ones of a rebuild, or held-out and sealed ones.

        A document that is there already changes nothing. The order is free, but where lines or spans are removed those
        of the stream must ascend. Raises StreamError as `decide` does.
        """
        documents = self._prepare(positions, sketches)
        _refuse_contradiction(documents.positions, lsh.insert_all(self._tables, documents))
        for i in np.flatnonzero(positions >= 0).tolist() if self._config.edits_text else []:
            self._add_text(int(positions[i]), sketches, i, None)

    def reserve(self, documents: int, words: int) -> None:
        """Make room for exactly so many more documents with so many words of sketches: for what is known before."""
        self._make_room(documents, words, spare=False)

    def _prepare(self, positions: np.ndarray, sketches: Sketches) -> lsh.Documents:
        """The documents as the kernels take them, with room for N more entries made."""
        if sketches.scheme != self._scheme:
            raise StreamError(f"sketches of scheme {sketches.scheme!r} do not compare with those of {self._scheme!r}")
        if len(positions) != len(sketches):
            raise StreamError(f"{len(positions)} positions for {len(sketches)} documents")
        # One type for all calls (writable, C order): numba compiles anew for every other.
        where, hashes = _fixed(positions, np.int64), _fixed(sketches.hashes, np.uint64)
        urls = np.zeros((0, 2), np.uint64)
        if self._config.url:
            urls = _fixed(_needed(sketches.urls, "data.dedup.url"), np.uint64)
        bands = _fixed(sketches.bands, np.uint32)
        keys = np.empty((len(sketches), 2 + self._config.url + self._bands), np.uint32)
        lsh.make_keys(where, hashes, urls, bands, keys)
        sketch = sketches.sketch or Ragged(np.zeros(0, np.uint64), np.zeros(len(sketches) + 1, np.int64))
        sizes = np.where(np.diff(sketch.offsets) > 0, sketches.shingle_count, 0)
        self._make_room(len(sketches), len(sketch.values))
        return lsh.Documents(where, keys, hashes, urls, _fixed(sizes, np.int32), _fixed(sketch.offsets[:-1], np.int64),
                             _fixed(sketch.values, np.uint64))

    def _decide_whole(self, documents: lsh.Documents, sketches: Sketches, insert: bool) -> Decisions:
        found, share = np.empty(len(sketches), np.int64), np.empty(len(sketches), np.float64)
        contradiction = lsh.decide_all(self._tables, documents, self._config.exact, self._config.threshold, insert,
                                       found, share)
        _refuse_contradiction(documents.positions, contradiction)
        kept = found == lsh.NONE
        duplicate_of = np.where(kept, NO_DUPLICATE, self._tables.positions[found])
        reasons = [_reason(*pair) for pair in zip(duplicate_of.tolist(), share.tolist(), strict=True)]
        similarity = np.minimum(share, 1.0).astype(np.float32)
        return Decisions(kept, reasons, duplicate_of, similarity, sketches.select(kept).entries())

    # text -----------------------------------------------------------------------------------------------------------
    def _decide_text(self, documents: lsh.Documents, sketches: Sketches) -> Decisions:
        """One document after the other: whether it is kept depends on what is left of it."""
        parts, removed, words = [], [], []
        for i in range(len(sketches)):
            one = _slice(documents, i)
            decided = self._decide_whole(one, sketches.select(slice(i, i + 1)), insert=False)
            ranges, pieces = np.empty((0, 2), np.int64), None
            if decided.kept[0]:
                reason, share, ranges, spans = self._repeated(int(documents.positions[i]), sketches, i)
                if reason is not None:
                    decided = replace(decided, kept=np.zeros(1, bool), reasons=[reason],
                                      similarity=np.array([share], np.float32))
                    ranges = ranges[:0]
                else:
                    _refuse_contradiction(one.positions, lsh.insert_all(self._tables, one))
                    pieces = self._add_text(int(documents.positions[i]), sketches, i, spans)
                    words.append(pieces)
            parts.append(decided)
            removed.append(ranges.ravel())
        kept = np.concatenate([np.zeros(0, bool), *(part.kept for part in parts)])
        return Decisions(
            kept, [part.reasons[0] for part in parts],
            np.array([part.duplicate_of[0] for part in parts], np.int64),
            np.array([part.similarity[0] for part in parts], np.float32),
            sketches.select(kept).entries(Ragged.of(words, np.uint32)), Ragged.of(removed, np.int64),
        )

    def _repeated(self, where: int, sketches: Sketches, i: int) -> tuple[str | None, float, np.ndarray, np.ndarray]:
        """(reason to drop it or None, share of its bytes that repeats, byte ranges to remove, spans of words)."""
        size = max(1, int(_needed(sketches.text_bytes, "data.dedup")[i]))
        ranges, spans, whole = np.empty((0, 2), np.int64), np.empty((0, 2), np.int64), False
        if self._lines is not None:
            common = self._lines.common(where, _needed(sketches.lines, "data.dedup.lines")[i])
            ranges = merge_ranges(_needed(sketches.line_bounds, "data.dedup.lines")[i].reshape(-1, 2)[common])
            share = _length(ranges) / size
            if 1 - share < self._config.lines.min_share_left:
                return DUPLICATE_LINES, share, ranges, spans
        if self._spans is not None:
            spans = self._spans.find(where, _needed(sketches.words, "data.dedup.substring_tokens")[i])
            starts = np.append(_needed(sketches.word_starts, "data.dedup.substring_tokens")[i], size)
            repeated = starts[spans].astype(np.int64)
            share = _length(repeated) / size
            if share > self._config.substring_max_share:
                return DUPLICATE_SUBSTRING, share, ranges, spans
            whole = self._config.substring_mode == "drop"
            ranges = ranges if whole else merge_ranges(np.concatenate([ranges, repeated]))
        return None, 0.0, ranges, spans

    def _add_text(self, where: int, sketches: Sketches, i: int, spans: np.ndarray | None) -> np.ndarray:
        """Count the lines and store the words of a kept document; returns the words stored. No spans: as recorded."""
        if self._lines is not None:
            self._lines.add(where, _needed(sketches.lines, "data.dedup.lines")[i])
        if self._spans is None:
            return np.zeros(0, np.uint32)
        words = _needed(sketches.words, "data.dedup.substring_tokens")[i]
        pieces = words if spans is None else self._spans.keep(words, spans)
        self._spans.add(where, pieces)
        return pieces

    # room -----------------------------------------------------------------------------------------------------------
    def _make_room(self, documents: int, words: int, spare: bool = True) -> None:
        """Grow entries and sketches by a quarter and slots by half, so that the load stays at 3/4 or below."""
        t = self._tables
        entries, sketch_words = len(self) + documents, int(t.used[lsh.SKETCH_WORDS]) + words
        if entries > lsh.MAX_ENTRIES:
            raise StreamError(f"the dedup index is full: it holds at most {lsh.MAX_ENTRIES:,} documents of one source")
        if entries > len(t.positions) or sketch_words > len(t.sketches):
            more = 5 if spare else 4
            self._refuse_too_large()
            t = _grown(t, max(entries, more * len(t.positions) // 4) if entries > len(t.positions) else 0,
                       max(sketch_words, more * len(t.sketches) // 4) if sketch_words > len(t.sketches) else 0)
        needed = 4 * (int(t.used[lsh.MAX_KEYS]) + documents) // 3 + 1
        if needed > t.slot_keys.shape[1]:
            shape = len(t.keys), max(needed, 3 * t.slot_keys.shape[1] // 2 if spare else 0)
            keys, heads = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
            lsh.rehash(t, keys, heads)
            t = t._replace(slot_keys=keys, slot_heads=heads)
        self._tables = t

    def _refuse_too_large(self) -> None:
        limit, bytes_ = self._config.max_memory_bytes, self.memory_bytes()
        if limit and bytes_ > limit:
            raise ConfigError(
                f"data.dedup.max_memory_bytes={limit:,} is not enough: the index of {len(self):,} kept documents takes "
                f"{bytes_:,} bytes. Raise it on a machine with more memory, or use fewer data.dedup.bands"
            )


def _fixed(array: np.ndarray, dtype: type) -> np.ndarray:
    return np.require(array, dtype, ["C", "W"])


def _needed(value: T | None, field: str) -> T:
    """A part of the sketches that the config asks for; StreamError where they were made without it."""
    if value is None:
        raise StreamError(f"sketches were made without what {field} needs")
    return value


def _slice(d: lsh.Documents, i: int) -> lsh.Documents:
    """Document i alone."""
    urls = d.urls[i : i + 1] if len(d.urls) else d.urls
    return d._replace(positions=d.positions[i : i + 1], keys=d.keys[i : i + 1], hashes=d.hashes[i : i + 1], urls=urls,
                      sizes=d.sizes[i : i + 1], starts=d.starts[i : i + 1])


def _length(ranges: np.ndarray) -> int:
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def _grown(t: lsh.Tables, entries: int, words: int) -> lsh.Tables:
    """The same tables with room for so many documents and words of sketches, 0 for as many as now."""
    def resized(array: np.ndarray, length: int) -> np.ndarray:
        larger = np.zeros((length, *array.shape[1:]), array.dtype)
        larger[: len(array)] = array
        return larger

    if words:
        t = t._replace(sketches=resized(t.sketches, words))
    if entries:
        names = ("next_node", "positions", "hashes", "sizes", "starts", *(["urls"] if len(t.urls) else []))
        for name in names:  # one after the other: at most one array is held twice at a time
            t = t._replace(**{name: resized(getattr(t, name), entries)})
    return t


def _refuse_contradiction(positions: np.ndarray, which: int) -> None:
    if which != lsh.NONE:
        raise StreamError(f"another document is already recorded at position {positions[which]}")


def _reason(duplicate_of: int, share: float) -> str | None:
    if duplicate_of == NO_DUPLICATE:
        return None
    if is_sealed(duplicate_of):
        return DUPLICATE_SEALED
    if duplicate_of < 0:
        return HELD_OUT_NEAR if share <= 1 else HELD_OUT
    return {lsh.EXACT_MATCH: DUPLICATE_EXACT, lsh.URL_MATCH: DUPLICATE_URL}.get(share, DUPLICATE_NEAR)
