"""The index of a run, built once before its first step and read back ever after."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from pretrainer.config import DataConfig, DecontaminationConfig
from pretrainer.data.decontamination.benchmarks import read_benchmarks
from pretrainer.data.decontamination.index import Reference, build_index
from pretrainer.data.decontamination.stage import index_path, is_on
from pretrainer.data.filters.normalise import as_large_string
from pretrainer.storage import Store


def freeze_decontamination(
    config: DataConfig, held: Sequence[pa.Table], background: Sequence[pa.Array], data: Store
) -> None:
    """Write the index of a config unless the run has it; a benchmark that changes later changes no running run.

    `held` and `background` are each source's held-out documents (schema.DOCUMENTS) and a sample of its other texts.
    """
    path = index_path(config.decontamination)
    if not is_on(config.decontamination) or data.exists(path):
        return
    benchmarks = read_benchmarks(config.decontamination)
    references = benchmarks.references + (held_out_references(config, held) if config.decontamination.held_out else [])
    sample = pa.concat_arrays([pa.array([], pa.large_string()), *map(as_large_string, background)])
    data.create(path, build_index(references, config.decontamination, sample, benchmarks.files))


def held_out_references(config: DataConfig, held: Sequence[pa.Table]) -> list[Reference]:
    """Every held-out document as a reference, by source and id."""
    return [
        Reference(source.name, doc, text, held_out=True)
        for source, docs in zip(config.sources, held, strict=True)
        for doc, text in zip(docs.column("id").to_pylist(), docs.column("text").to_pylist(), strict=True)
    ]


def index_digest(config: DecontaminationConfig, data: Store) -> dict[str, str]:
    """The index as a part of the fingerprint, with the texts and the digests of the benchmark files in it."""
    if not is_on(config):
        return {}
    return {"decontamination": hashlib.sha256(data.read(index_path(config))).hexdigest()[:32]}
