"""The decision log: one row per document read, with what became of it, why, and every measure that was taken.

    <ledger>/read/<unit>-<chunk>.arrow           the stages before dedup, durable before dedup sees the chunk
    <ledger>/decisions/<unit>-<chunk>.parquet    the whole, written in front of the chunk's record

Both are functions of the chunk alone, so they are the same for every number of workers and after every retry. A later
chunk names the document that it repeats by that document's `read` file; nothing is kept in memory for it.
Read them with any Parquet reader, for example `pyarrow.dataset.dataset("<ledger>/decisions")`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrainer.data.dedup import sealed
from pretrainer.data.dedup.dedup import NO_DUPLICATE
from pretrainer.data.dedup.positions import held_out_index, is_sealed, split_position, split_sealed
from pretrainer.data.filters.stage import Verdict
from pretrainer.data.ledger.pages import ChunkKey
from pretrainer.data.ledger.segments import split_segment
from pretrainer.data.plan import SourcePlan, load_manifest
from pretrainer.schema import DeadLetter, from_ipc, to_ipc
from pretrainer.storage import Store

READ, DEDUP = "read", "dedup"
"""Stages beside those of config.STAGES and `quarantine`."""
COLUMNS = (
    "source", "shard", "row", "id", "url", "language", "licence", "kept", "stage", "reason", "duplicate_of",
    "similarity",
)  # fmt: skip


def record_read(
    plan: SourcePlan, key: ChunkKey, docs: pa.Table, verdict: Verdict, dead_letters: Sequence[DeadLetter]
) -> None:
    """Write down what the stages before dedup said of the documents of a chunk, and which records are dead letters."""
    paths = load_manifest(plan.data_uri).tables[plan.index].column("path")
    columns = {
        "shard": paths.take(docs.column("shard")).combine_chunks(),
        **{name: docs.column(name).combine_chunks() for name in ("row", "id", "url")},
        **{name: pa.array(cells, pa.large_string()) for name, cells in verdict.labels.items()},
        "kept": pa.array(verdict.kept, pa.bool_()),
        "stage": pa.array(verdict.stages, pa.string()),
        "reason": pa.array(verdict.reasons, pa.string()),
        **_measures(verdict.measures),
    }
    table = pa.concat_tables([pa.table(columns), _dead(dead_letters)], promote_options="default")
    plan.ledger.root.create(_read_path(key), to_ipc(table))


def record_decisions(plan: SourcePlan, key: ChunkKey, verdict: Verdict) -> None:
    """Write the log of a chunk; `verdict` is what the stages behind dedup said of the documents that it kept."""
    rows = from_ipc(plan.ledger.root.read(_read_path(key)))
    passed = np.flatnonzero(rows.column("kept").to_numpy(zero_copy_only=False))
    decided = split_segment(plan.ledger.read_segment(key))[0]
    is_unique = decided.column("kept").to_numpy(zero_copy_only=False)
    left, dropped = passed[is_unique], passed[~is_unique]
    columns = {name: np.array(rows.column(name).to_pylist(), object) for name in ("kept", "stage", "reason")}
    columns |= {"duplicate_of": np.full(len(rows), None, object), "similarity": np.full(len(rows), np.nan, object)}
    repeats = decided.filter(pa.array(~is_unique))
    columns["kept"][dropped], columns["stage"][dropped] = False, DEDUP
    columns["reason"][dropped] = repeats.column("reason").to_pylist()
    columns["similarity"][dropped] = repeats.column("similarity").to_pylist()
    columns["duplicate_of"][dropped] = [document_name(plan, at) for at in repeats.column("duplicate_of").to_pylist()]
    fell = np.array([reason is not None for reason in verdict.reasons], bool)
    columns["kept"][left] = verdict.kept
    columns["stage"][left[fell]] = np.array(verdict.stages, object)[fell]
    columns["reason"][left[fell]] = np.array(verdict.reasons, object)[fell]
    plan.ledger.root.create(f"decisions/{key.name}.parquet", _parquet(plan, rows, columns, verdict.measures, left))


def document_name(plan: SourcePlan, position: int) -> str | None:
    """Id of the document at a position of dedup's order; None for a drop that repeats no single document."""
    if position >= 0:
        unit, chunk, number = split_position(position)
        return _ids_before_dedup(plan, ChunkKey(unit, chunk))[number]
    return name_outside(plan, position)


def name_outside(plan: SourcePlan, position: int) -> str | None:
    """The same for what is not of the stream: a held-out document, or a sealed one by its index and number in it."""
    if position == NO_DUPLICATE:
        return None
    if is_sealed(position):
        number, index = split_sealed(position)
        return f"{sealed.freeze(plan.config.dedup, plan.ledger.root)[number].uri}#{index}"
    return held_out_ids(plan)[held_out_index(position)]


@lru_cache(maxsize=8)
def held_out_ids(plan: SourcePlan) -> list[str]:
    """Ids of the held-out documents of a source, in the order of their positions."""
    content = Store(plan.data_uri).read(f"held_out/{plan.source.name}.documents.arrow")
    return from_ipc(content).column("id").to_pylist()


@lru_cache(maxsize=256)
def _ids_before_dedup(plan: SourcePlan, key: ChunkKey) -> list[str]:
    rows = from_ipc(plan.ledger.root.read(_read_path(key)))
    return rows.filter(rows.column("kept")).column("id").to_pylist()


def _read_path(key: ChunkKey) -> str:
    return f"read/{key.name}.arrow"


def _measures(measures: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
    """Null where a document had left before it was measured."""
    return {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in measures.items()}


def _dead(letters: Sequence[DeadLetter]) -> pa.Table:
    return pa.table(
        {
            "shard": pa.array([letter.shard for letter in letters], pa.large_string()),
            "row": pa.array([letter.row for letter in letters], pa.int64()),
            "id": pa.array([f"{letter.shard}#{letter.row}" for letter in letters], pa.large_string()),
            "kept": pa.array([False] * len(letters), pa.bool_()),
            "stage": pa.array([READ] * len(letters), pa.string()),
            "reason": pa.array([letter.reason for letter in letters], pa.string()),
        }
    )


def _parquet(
    plan: SourcePlan,
    rows: pa.Table,
    columns: Mapping[str, np.ndarray],
    measures: Mapping[str, np.ndarray],
    measured: np.ndarray,
) -> bytes:
    """`measured` are the rows that the measures of the stages behind dedup are of."""
    types = {"kept": pa.bool_(), "stage": pa.string(), "reason": pa.string(), "duplicate_of": pa.large_string()}
    types["similarity"] = pa.float32()
    for name, kind in types.items():
        values = pa.array(columns[name], kind, from_pandas=True)
        if name in rows.column_names:
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        else:
            rows = rows.append_column(name, values)
    for name, values in measures.items():
        spread = np.full(len(rows), np.nan)
        spread[measured] = values
        rows = rows.append_column(name, pa.array(spread, pa.float64(), from_pandas=True))
    rows = rows.append_column("source", pa.array([plan.source.name] * len(rows), pa.large_string()))
    others = [name for name in rows.column_names if name not in COLUMNS]
    sink = pa.BufferOutputStream()
    pq.write_table(rows.select([*COLUMNS, *others]), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
