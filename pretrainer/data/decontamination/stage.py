"""Decontamination as a stage: documents that hold too much of a reference text are dropped.

    overlap = matched words of a reference in one window of the document / words of the reference (a passage at most)

The largest overlap counts, for benchmark and held-out texts apart. A match of fewer than `ngram_words` words is none,
and a text with fewer words than that must be found whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.config import DecontaminationConfig
from pretrainer.data.decontamination.index import Index, Reference, load_index
from pretrainer.data.decontamination.matching import match_text, measure_texts, new_scratch
from pretrainer.data.decontamination.words import folding, read_words
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage
from pretrainer.errors import StreamError
from pretrainer.storage import Store

MEASURES = ("decontamination_overlap", "decontamination_held_out_overlap", "decontamination_hits")


class Hit(NamedTuple):
    """A document that holds too much of a reference text, with the matching stretch of both."""

    document: str  # id
    reference: Reference
    share: float
    document_text: str
    reference_text: str


def index_path(config: DecontaminationConfig) -> str:
    """Where a run's data folder has the index for this config."""
    return f"decontamination/{hashlib.sha256(repr(config).encode()).hexdigest()[:16]}.arrow"


def is_on(config: DecontaminationConfig) -> bool:
    return config.held_out or bool(config.benchmarks)


def stages_of_run(config: DecontaminationConfig, data_uri: str) -> list[Stage]:
    """The stage over a run's frozen index; none where nothing is to be looked for."""
    return [decontamination_stage(config, run_index(config, data_uri))] if is_on(config) else []


@lru_cache(maxsize=4)
def run_index(config: DecontaminationConfig, data_uri: str) -> Index:
    """The frozen index of a run, kept in the process."""
    try:
        return load_index(Store(data_uri).read(index_path(config)), config)
    except FileNotFoundError as error:
        raise StreamError(f"{error.filename} (of decontamination) is gone: put it back, or begin a new run") from None


def decontamination_stage(config: DecontaminationConfig, index: Index) -> Stage:
    """Drops documents in which more than max_overlap of a reference is found."""
    benchmark, held_out, _hits = MEASURES
    rules = (
        Rule("contaminated", benchmark, most=config.max_overlap),
        Rule("contaminated_held_out", held_out, most=config.max_overlap),
    )

    def measure(docs: pa.Table) -> Measured:
        return overlaps(docs.column("text"), index, config.max_overlap), docs

    return Stage("decontamination", measure, rules)


def overlaps(texts: pa.Array | pa.ChunkedArray, index: Index, max_overlap: float) -> dict[str, np.ndarray]:
    """MEASURES of N texts, [N] float64 each; hits are references of which more than max_overlap is found."""
    data, offsets = utf8_buffers(texts)
    out = np.zeros((offsets.size - 1, len(MEASURES)))
    if index.references.num_rows:
        tables = index.tables
        scratch = new_scratch(tables)
        measure_texts(data, offsets, folding(), tables, scratch, index.overlap, index.held_out, float(max_overlap), out)
    return dict(zip(MEASURES, np.ascontiguousarray(out.T), strict=True))


def find_hits(docs: pa.Table, index: Index, max_overlap: float) -> Iterator[Hit]:
    """Every reference of which a document holds more than max_overlap, by document and then by share, largest first."""
    texts, ids = docs.column("text").combine_chunks(), docs.column("id")
    for row in np.flatnonzero(overlaps(texts, index, max_overlap)["decontamination_hits"]).tolist():
        for share, reference, (first, end, g_first, g_end) in _matches(texts[row].as_py(), index):
            if share > max_overlap:
                source = index.reference(reference)
                begin = int(index.tables.starts[reference])
                there = _cut(texts[row].as_py().encode(), first, end)
                here = _words(source.text, g_first - begin, g_end - begin)
                yield Hit(ids[row].as_py(), source, share, there, here)


def contamination_report(docs: pa.Table, index: Index, max_overlap: float) -> Iterator[str]:
    """The hits as JSON lines: document, benchmark or source, line or id, share, and the matched text of both sides."""
    for hit in find_hits(docs, index, max_overlap):
        yield json.dumps(
            {
                "document": hit.document,
                "reason": "contaminated_held_out" if hit.reference.held_out else "contaminated",
                "reference": hit.reference.name,
                "line": hit.reference.line,
                "share": round(hit.share, 4),
                "document_text": hit.document_text,
                "reference_text": hit.reference_text,
            },
            ensure_ascii=False,
        )


def _matches(text: str, index: Index) -> list[tuple[float, int, Sequence[int]]]:
    """(share, reference, [bytes of the text from, to, words of the references from, to]), largest share first."""
    tables = index.tables
    scratch = new_scratch(tables)
    data, offsets = utf8_buffers(pa.array([text], pa.large_string()))
    touched = match_text(data[offsets[0] : offsets[1]], folding(), tables, scratch, index.overlap)
    found = scratch.touched[:touched].tolist()
    shares = [min(1.0, scratch.best[r] / tables.whole[r]) for r in found]
    matches = zip(shares, found, scratch.where[found].tolist(), strict=True)
    return sorted(matches, key=lambda match: (-match[0], match[1]))


def _words(text: str, first: int, end: int) -> str:
    """The text from its word `first` up to before its word `end`."""
    data = np.frombuffer(text.encode(), np.uint8)
    words, starts = np.empty(data.size // 2 + 1, np.uint64), np.empty(data.size // 2 + 2, np.int64)
    read_words(data, 0, folding(), words, starts, 0)
    return _cut(text.encode(), int(starts[first]), int(starts[end]))


def _cut(data: bytes, first: int, end: int) -> str:
    return data[first:end].decode().strip()
