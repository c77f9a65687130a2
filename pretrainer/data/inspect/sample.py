"""Documents of a source for a look at it: plans over a temporary folder, and a sample that is spread over its units."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pretrainer.config import Config
from pretrainer.data.curation import check_curation, resource_uris
from pretrainer.data.decontamination.freeze import freeze_decontamination
from pretrainer.data.plan import SourcePlan, draft_plans
from pretrainer.data.readers.source import Manifest
from pretrainer.data.resources import freeze_resources
from pretrainer.data.stages import raw_chunks
from pretrainer.schema import DOCUMENTS, ChunkReport, DeadLetter
from pretrainer.storage import Store

SPREAD_UNITS = 16
"""A sample comes from at least so many units of its source where it has them, so that no one shard decides."""
MAX_SAMPLE_BYTES = 256 * 2**20
"""A sample of very long documents ends here, because all of it is held in memory."""


@dataclass
class Sample:
    """Documents of one source in the order of its stream, and what happened to the records around them.

    `records`, `bytes_read` and `dead_letters` are of the whole chunks that the documents were taken from.
    """

    docs: pa.Table  # schema.DOCUMENTS
    records: int = 0
    bytes_read: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)

    def count(self, report: ChunkReport) -> None:
        self.records += report.read
        self.bytes_read += report.bytes_read
        self.dead_letters += report.dead_letters


@contextmanager
def drafted(config: Config) -> Iterator[list[SourcePlan]]:
    """A plan by source over a folder that is gone afterwards; the run folder is neither read nor written."""
    check_curation(config.data)
    manifest = Manifest.build(config.data.sources)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.create("manifest.arrow", manifest.to_bytes())
        freeze_resources(resource_uris(config.data), store)
        yield draft_plans(config.data, manifest, store, config.cluster.data_subcluster)


def freeze_references(config: Config, samples: Sequence[Sample], data: Store) -> None:
    """The index of decontamination: of the benchmarks alone, because a look at data holds no documents out."""
    held = [DOCUMENTS.empty_table() for _ in samples]
    background = [sample.docs.column("text").combine_chunks() for sample in samples]
    freeze_decontamination(config.data, held, background, data)


def draw(plan: SourcePlan, documents: int) -> Sample:
    """Up to `documents` of a source, shared out over its units in the order of epoch 0; chosen by hash in a chunk."""
    sample, parts = Sample(DOCUMENTS.empty_table()), [DOCUMENTS.empty_table()]
    taken, size = 0, 0
    for at in range(plan.units):
        quota = -(-(documents - taken) // max(1, min(plan.units, SPREAD_UNITS) - at))
        for part in _take(plan, plan.place(at).unit, quota, sample):
            parts.append(part)
            taken, size = taken + part.num_rows, size + part.nbytes
        if taken >= documents or size >= MAX_SAMPLE_BYTES:
            break
    sample.docs = pa.concat_tables(parts).combine_chunks()
    return sample


def _take(plan: SourcePlan, unit: int, quota: int, sample: Sample) -> Iterator[pa.Table]:
    """Chunks of a unit until the quota is full, each cut down to what is still missing."""
    size = 0
    for docs, report, _last in raw_chunks(plan, unit):
        sample.count(report)
        chosen = _fewer(docs, quota)
        quota, size = quota - chosen.num_rows, size + chosen.nbytes
        yield chosen
        if quota <= 0 or size >= MAX_SAMPLE_BYTES:
            return


def _fewer(docs: pa.Table, count: int) -> pa.Table:
    """`count` documents of a chunk with the lowest hashes of their ids, in their order."""
    if docs.num_rows <= count:
        return docs
    ranks = np.array([hash_rank(doc) for doc in docs.column("id").to_pylist()], np.uint64)
    return docs.take(np.sort(np.argsort(ranks, kind="stable")[:count]))


def hash_rank(document_id: str) -> int:
    """A number of 64 bits by which documents are chosen without an order of their own."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "big")
