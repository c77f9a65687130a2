"""Documents kept away from training: chosen by hash, packed for evaluation, with what simple models need for them."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pretrainer.config import SourceConfig
from pretrainer.data import fingerprint
from pretrainer.data.curation import edit_held_out
from pretrainer.data.dedup.dedup import DedupIndex, Sketches, signatures
from pretrainer.data.packing.packing import empty_row, pack_window, slot_block
from pretrainer.data.plan import SourcePlan
from pretrainer.data.quarantine import Quarantine, guarded, is_left_out
from pretrainer.data.readers.reading import Stop
from pretrainer.data.stages import (
    attempt_unit,
    curate_chunk,
    do_guarded,
    raw_chunks,
    record_by_clock,
    tokenize_documents,
)
from pretrainer.errors import SourceError
from pretrainer.schema import ChunkReport, from_ipc, to_ipc
from pretrainer.storage import Store


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents of one source and what simple models need for them."""

    documents: int
    bytes: int
    tokens: int
    gzip_bits_per_byte: float
    unigram_bits_per_byte: float


BACKGROUND_BYTES = 8 * 2**20
"""Text of each source that tells decontamination which phrases are common."""


class Pilot(NamedTuple):
    """What the first chunks of a source give."""

    held: pa.Table  # schema.DOCUMENTS, held out: chosen by hash, without near-copies of each other
    share: float  # of the bytes, that filters keep
    background: pa.LargeStringArray  # texts that are not held out, chosen by hash, up to BACKGROUND_BYTES


def hold_out(plan: SourcePlan) -> tuple[pa.Table, float]:
    """(held-out documents, share of the bytes that filters keep) of a source; see `Pilot`."""
    return run_pilot(plan)[:2]


def run_pilot(plan: SourcePlan) -> Pilot:
    """Read and filter the first chunks of a source and hold documents out; SourceError when nothing is kept.

    What kills its reader, or the stages that edit what is held out, is left out as in the stream (`quarantine`). The
    stream finds it for itself: its ledger has no name yet.
    """
    units = [plan.place(p).unit for p in range(min(plan.config.held_out_chunks, plan.units))]
    read = first_chunk.options(label_selector=plan.labels)
    chunks = ray.get([read.remote(plan, unit) for unit in units])
    docs = pa.concat_tables([docs for docs, _sketches, _report in chunks])
    if docs.num_rows == 0:
        raise SourceError(_nothing_kept(plan.source, [report for _docs, _sketches, report in chunks]))
    sketches = Sketches.from_table(pa.concat_tables([from_ipc(s) for _docs, s, _report in chunks]))
    ranks = np.array([_hash_share(plan.source.name, doc) for doc in docs.column("id").to_pylist()])
    chosen = np.flatnonzero(ranks < plan.config.held_out_share)
    chosen = chosen if len(chosen) else np.array([ranks.argmin()])
    chosen = chosen[np.argsort(ranks[chosen], kind="stable")]
    background = _background(docs.column("text"), ranks.argsort(kind="stable")[len(chosen) :])
    kept = DedupIndex(plan.config.dedup).decide(np.arange(len(chosen), dtype=np.int64), sketches.select(chosen)).kept
    share = sum(pc.binary_length(docs.column("text")).to_pylist()) / sum(r.bytes_read for _d, _s, r in chunks)
    held = ray.get(_edited.options(label_selector=plan.labels).remote(plan, docs.take(chosen[kept])))
    return Pilot(held, min(1.0, share), background)


def _background(texts: pa.ChunkedArray, order: np.ndarray) -> pa.LargeStringArray:
    """The first texts in this order, as many as BACKGROUND_BYTES hold."""
    sizes = pc.binary_length(texts).to_numpy()[order]
    return texts.take(order[np.cumsum(sizes) <= BACKGROUND_BYTES]).combine_chunks()


@ray.remote(num_cpus=1)
def first_chunk(plan: SourcePlan, unit: int) -> tuple[pa.Table, bytes, ChunkReport]:
    """(filtered documents, IPC of their sketches, report) of the first chunk of a unit."""
    return read_first_chunk(plan, unit)


def read_first_chunk(plan: SourcePlan, unit: int) -> tuple[pa.Table, bytes, ChunkReport]:
    """What `first_chunk` gives."""

    def read(stops: Sequence[Stop]) -> Iterator[tuple[pa.Table, bytes, ChunkReport]]:
        for docs, report, _last in islice(raw_chunks(plan, unit, stops=stops), 1):
            record_by_clock(plan, unit, quarantine, report)
            kept, sketches = curate_chunk(plan, docs, report)
            yield kept, to_ipc(sketches.to_table()), report

    quarantine, attempt = Quarantine(pilot_store(plan), unit), partial(attempt_unit, plan, unit, 1)
    (found,) = guarded(quarantine, plan.config.max_shard_failures, attempt, read)
    return found


@ray.remote(num_cpus=1)
def _edited(plan: SourcePlan, docs: pa.Table) -> pa.Table:
    return edit_guarded(plan, docs)


def edit_guarded(plan: SourcePlan, docs: pa.Table) -> pa.Table:
    """`curation.edit_held_out` without the documents that kill it."""
    return do_guarded(plan, Quarantine(pilot_store(plan), "held_out"), partial(edit_held_out, plan), docs)


def pilot_store(plan: SourcePlan) -> Store:
    """Where verdicts on what is read before the stream stand, by unit of the manifest.

    Named by what makes units and rows what they are; the rest of the config, and mended code, change no verdict.
    """
    name = f"{plan.source.name}-{fingerprint.digest([plan.config.chunk_bytes, plan.source.format])}"
    return Store(plan.data_uri).child(f"pilots/{name}")


def _hash_share(*key: str) -> float:
    """Hash of a key as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256("\0".join(key).encode()).digest()[:7], "big") / 2**56


def _nothing_kept(source: SourceConfig, reports: Sequence[ChunkReport]) -> str:
    dropped: dict[str, int] = {}
    for report in reports:
        for reason, count in report.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    dead = [letter for report in reports for letter in report.dead_letters]
    read = sum(report.read for report in reports)
    first = f"; the first: {dead[0].shard} row {dead[0].row}: {dead[0].reason} ({dead[0].detail})" if dead else ""
    return (
        f"source {source.name}: no document is left of the first {read:,} records: {len(dead):,} could not be read"
        f"{first}; dropped by {dropped or 'no filter'}. Check uris, format, text_column={source.text_column!r} and "
        f"preset={source.preset!r} of the source (preset: none keeps everything)"
    )


def freeze_held_out(plans: Sequence[SourcePlan], held: Sequence[pa.Table], data: Store) -> dict[str, HeldOut]:
    """Pack the held-out documents for evaluation and write their dedup sketches; by source, with baselines."""
    if data.exists("held_out/summary.json"):
        raw = json.loads(data.read("held_out/summary.json"))
        return {name: HeldOut(**values) for name, values in raw.items()}
    out = {plan.source.name: _write_held_out(plan, docs, data) for plan, docs in zip(plans, held, strict=True)}
    data.write("held_out/summary.json", json.dumps({k: asdict(v) for k, v in out.items()}, indent=1).encode())
    return out


def _write_held_out(plan: SourcePlan, docs: pa.Table, data: Store) -> HeldOut:
    sketches = signatures(docs.column("text"), plan.config.dedup, docs.column("url"))
    data.create(f"held_out/{plan.source.name}.sketches.arrow", to_ipc(sketches.to_table()))
    data.create(f"held_out/{plan.source.name}.documents.arrow", to_ipc(docs))
    docs, tokenized = ray.get(_tokenized.options(label_selector=plan.labels).remote(plan, docs))
    lengths = np.array([len(t) for t in tokenized.column("tokens")])
    used = max(1, int(np.searchsorted(np.cumsum(lengths), plan.config.held_out_max_tokens, side="right")))
    docs, tokenized = docs.slice(0, used), tokenized.slice(0, used)
    data.create(f"held_out/{plan.source.name}.arrow", to_ipc(_held_out_rows(plan, tokenized)))
    size = sum(tokenized.column("bytes").to_pylist())
    zipped = sum(len(gzip.compress(text.encode(), 9, mtime=0)) for text in docs.column("text").to_pylist())
    return HeldOut(used, size, int(lengths[:used].sum()), 8 * zipped / size, _unigram_bits(tokenized) / size)


@ray.remote(num_cpus=1)
def _tokenized(plan: SourcePlan, docs: pa.Table) -> tuple[pa.Table, pa.Table]:
    return tokenize_guarded(plan, docs)


def tokenize_guarded(plan: SourcePlan, docs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(documents, schema.TOKENIZED of them) without the documents that kill the tokenizer."""
    return do_guarded(plan, Quarantine(plan.ledger.root, "held_out"), partial(_tokenize, plan), docs)


def _tokenize(plan: SourcePlan, docs: pa.Table, stops: Sequence[Stop] = ()) -> tuple[pa.Table, pa.Table]:
    docs = docs.filter(pa.array(~is_left_out(docs, stops)))
    return docs, tokenize_documents(plan, docs)


def _held_out_rows(plan: SourcePlan, tokenized: pa.Table) -> pa.Table:
    """Packed rows, padded to whole slot blocks, as SLOT_BLOCK rows."""
    size, seq_len = plan.config.slot_sequences, plan.config.seq_len
    rows, _packed = pack_window(
        [tokenized.combine_chunks()], seq_len, plan.config.packing, plan.specials, ("held out",)
    )
    rows += [empty_row(seq_len, plan.specials)] * (-len(rows) % size)
    return pa.concat_tables(
        [slot_block(rows[b : b + size], plan.index, b // size, 0) for b in range(0, len(rows), size)]
    )


def _unigram_bits(tokenized: pa.Table) -> float:
    """Bits that the best fixed token distribution needs for these documents, each with its eos: unigrams' floor."""
    ids = np.concatenate([np.asarray(t.values) for t in tokenized.column("tokens")])
    counts = np.append(np.bincount(ids), tokenized.num_rows)
    counts = counts[counts > 0]
    return float(-(counts * (np.log(counts) - math.log(counts.sum()))).sum() / math.log(2))
