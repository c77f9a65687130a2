"""What is fixed before the stream starts, once per run: manifest, held-out documents, tokenizer, fingerprints.

Each reads a fixed number of bytes, so the time to the first step does not grow with the corpus. Everything is a pure
function of inputs and config and is created once in the run's data folder; a second start reads it back.

    data/manifest.arrow             the frozen shards
    data/tokenizer.model|.json      the frozen tokenizer
    data/held_out/<source>.arrow    packed held-out rows (schema.SLOT_BLOCK)
    data/held_out/<source>.sketches.arrow   their index entries
    data/held_out/summary.json      documents, bytes and baselines by source
    data/fingerprint.json           everything that decides the tokens, by name
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import ray

from pretrainer.config import Config, SourceConfig, TokenizerConfig
from pretrainer.data import fingerprint
from pretrainer.data.dedup import DedupIndex, Sketches, signatures
from pretrainer.data.mixture import Mixture, make_mixture, mixing_weights
from pretrainer.data.packing import empty_row, pack_window, slot_block
from pretrainer.data.plan import SourcePlan
from pretrainer.data.source import Manifest
from pretrainer.data.stages import curate_chunk, raw_chunks, tokenize_documents
from pretrainer.data.tokenizer import SentencePieceTokenizer, Tokenizer
from pretrainer.data.tokenizer_train import train_tokenizer
from pretrainer.data.units import UnitPlan, permute
from pretrainer.errors import SourceError, UserError
from pretrainer.schema import ChunkReport, Specials, from_ipc, to_ipc
from pretrainer.storage import Store

log = logging.getLogger(__name__)

PACKING_MODULES = ("pretrainer.data.packing", "pretrainer.data.packer")
CURATION_MODULES = tuple(
    f"pretrainer.data.{name}" for name in ("readers", "source", "in_order", "stages", "tokenizer_train")
)
NOT_IN_FINGERPRINT = (
    "pretrainer.config",
    "pretrainer.errors",
    "pretrainer.storage",
    "pretrainer.data.ledger",
    "pretrainer.data.plan",
)
LIBRARIES = ("pyarrow", "numpy", "numba", "xxhash", "sentencepiece", "tokenizers")


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents of one source and what simple models need for them."""

    documents: int
    bytes: int
    tokens: int
    gzip_bits_per_byte: float
    unigram_bits_per_byte: float


@dataclass(frozen=True)
class Frozen:
    """Everything the stream and the trainer need to know about the data of a run."""

    plans: tuple[SourcePlan, ...]
    mixture: Mixture
    vocab_size: int
    held_out: dict[str, HeldOut]
    fingerprint: str
    manifest_bytes: tuple[int, ...] = ()
    changes: tuple[str, ...] = ()  # parts of the fingerprint that differ from the last start of this run


def freeze(config: Config, data: Store) -> Frozen:
    """Make or read back everything that is fixed before the stream starts; needs a Ray cluster."""
    manifest = freeze_manifest(config, data)
    sizes = [manifest_bytes(manifest, i) for i in range(len(config.data.sources))]
    weights = mixing_weights(config.data.sources, sizes)
    drafts = [
        SourcePlan(i, data.uri, config.data, "", "", len(UnitPlan(manifest, i, config.data.chunk_bytes)))
        for i in range(len(config.data.sources))
    ]
    held = [hold_out(plan) for plan in drafts]
    tokenizer = freeze_tokenizer(config.tokenizer, drafts, weights, held, data)
    parts = fingerprint_parts(config, manifest, tokenizer, held)
    plans = tuple(
        replace(
            plan,
            curation=fingerprint.digest(parts[plan.source.name]["curation"]),
            packing=fingerprint.digest(parts[plan.source.name]),
            specials=Specials(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id),
        )
        for plan in drafts
    )
    mixture = make_mixture(weights, config.data.mix_cycle)
    parts["order"] = {"shares": mixture.shares, "slot_blocks_per_step": config.slot_blocks_per_step}
    changes = freeze_fingerprint(parts, data)
    summary = freeze_held_out(plans, held, tokenizer, data)
    return Frozen(
        plans, mixture, tokenizer.vocab_size, summary, fingerprint.digest(parts), tuple(sizes), tuple(changes)
    )


def freeze_manifest(config: Config, data: Store) -> Manifest:
    """The manifest of the first start; a shard that changed since stops the run."""
    live = Manifest.build(config.data.sources)
    if data.exists("manifest.arrow"):
        frozen = Manifest.from_bytes(data.read("manifest.arrow"))
        frozen.check_unchanged(live)
        return frozen
    data.create("manifest.arrow", live.to_bytes())
    return live


def manifest_bytes(manifest: Manifest, source: int) -> int:
    """|D_i|: bytes of a source's shards as listed."""
    return sum(shard.size for shard in manifest.shards(source))


# Held-out documents ---------------------------------------------------------------------------------------------------
def hold_out(plan: SourcePlan) -> pa.Table:
    """Held-out documents of a source (schema.DOCUMENTS): by hash, from the first chunks, without near-copies."""
    units = [plan.place(p).unit for p in range(min(plan.config.held_out_chunks, plan.units))]
    chunks = ray.get([_first_chunk.remote(plan, unit) for unit in units])
    docs = pa.concat_tables([docs for docs, _sketches, _report in chunks])
    if docs.num_rows == 0:
        raise SourceError(_nothing_kept(plan.source, [report for _docs, _sketches, report in chunks]))
    sketches = Sketches.from_table(pa.concat_tables([from_ipc(s) for _docs, s, _report in chunks]))
    ranks = np.array([_hash_share(plan.source.name, doc) for doc in docs.column("id").to_pylist()])
    chosen = np.flatnonzero(ranks < plan.config.held_out_share)
    chosen = chosen if len(chosen) else np.array([ranks.argmin()])
    chosen = chosen[np.argsort(ranks[chosen], kind="stable")]
    kept = DedupIndex(plan.config.dedup).decide(np.arange(len(chosen), dtype=np.int64), sketches.select(chosen)).kept
    return docs.take(chosen[kept])


@ray.remote(num_cpus=1)
def _first_chunk(plan: SourcePlan, unit: int) -> tuple[pa.Table, bytes, ChunkReport]:
    docs, report, _last = next(iter(raw_chunks(plan, unit)))
    kept, sketches = curate_chunk(plan, docs, report)
    return kept, to_ipc(sketches.to_table()), report


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


# Tokenizer ------------------------------------------------------------------------------------------------------------
def freeze_tokenizer(
    config: TokenizerConfig,
    plans: Sequence[SourcePlan],
    weights: Sequence[float],
    held: Sequence[pa.Table],
    data: Store,
) -> Tokenizer:
    """The run's tokenizer: read back, loaded from `tokenizer.uri`, or trained on a fixed byte budget."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if data.exists(name):
            return Tokenizer.from_bytes(data.read(name))
    if config.uri is not None:
        content = _read_tokenizer(config.uri)
    else:
        texts = [t for texts in sample_texts(plans, weights, held, config.train_bytes).values() for t in texts]
        content = ray.get(_train_tokenizer.remote(texts, config.kind, config.vocab_size))
    tokenizer = Tokenizer.from_bytes(content)
    data.create("tokenizer.model" if isinstance(tokenizer, SentencePieceTokenizer) else "tokenizer.json", content)
    return tokenizer


def _read_tokenizer(uri: str) -> bytes:
    try:
        return Store(uri).read()
    except FileNotFoundError:
        raise UserError(
            f"tokenizer.uri={uri!r} does not exist: give a sentencepiece .model or a Hugging Face tokenizer.json"
        ) from None


@ray.remote(num_cpus=1)
def _train_tokenizer(texts: list[str], kind: Literal["bpe", "unigram"], vocab_size: int) -> bytes:
    return train_tokenizer(texts, kind, vocab_size)


def sample_texts(
    plans: Sequence[SourcePlan], weights: Sequence[float], held: Sequence[pa.Table], budget_bytes: int
) -> dict[str, list[str]]:
    """Filtered texts by source, from units in an order chosen by hash, in the proportions of the mixture."""
    return {
        plan.source.name: list(_take_bytes(_sampled_documents(plan, held_out), int(budget_bytes * weight)))
        for plan, weight, held_out in zip(plans, weights, held, strict=True)
    }


def _sampled_documents(plan: SourcePlan, held: pa.Table, parallel: int = 2) -> Iterator[str]:
    excluded = set(held.column("id").to_pylist())
    order = permute(plan.units, f"tokenizer/{plan.config.order_seed}/{plan.source.name}".encode()[:64])
    for start in range(0, plan.units, parallel):
        refs = [_first_chunk.remote(plan, order(i)) for i in range(start, min(start + parallel, plan.units))]
        for docs, _sketches, _report in ray.get(refs):
            rows = zip(docs.column("id").to_pylist(), docs.column("text").to_pylist(), strict=True)
            yield from (text for doc, text in rows if doc not in excluded)


def _take_bytes(texts: Iterator[str], budget: int) -> Iterator[str]:
    left = budget
    for text in texts:
        yield text[: max(0, left)]
        left -= len(text.encode())
        if left <= 0:
            return


def sample_documents(config: Config, budget_bytes: int | None = None) -> dict[str, list[str]]:
    """Texts by source for a look at the data, the same ones the tokenizer would be trained on; nothing is written."""
    manifest = Manifest.build(config.data.sources)
    weights = mixing_weights(
        config.data.sources, [manifest_bytes(manifest, i) for i in range(len(config.data.sources))]
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.create("manifest.arrow", manifest.to_bytes())
        plans = [
            SourcePlan(i, store.uri, config.data, "", "", len(UnitPlan(manifest, i, config.data.chunk_bytes)))
            for i in range(len(config.data.sources))
        ]
        held = [hold_out(plan) for plan in plans]
        return sample_texts(plans, weights, held, budget_bytes or config.tokenizer.train_bytes)


# Fingerprint ----------------------------------------------------------------------------------------------------------
def fingerprint_parts(
    config: Config, manifest: Manifest, tokenizer: Tokenizer, held: Sequence[pa.Table]
) -> dict[str, dict]:
    """Everything that decides the tokens of each source, by name."""
    curation_code = fingerprint.code_version(CURATION_MODULES, NOT_IN_FINGERPRINT)
    packing_code = fingerprint.code_version(PACKING_MODULES, (*NOT_IN_FINGERPRINT, "pretrainer.data.stages"))
    libraries, data = fingerprint.library_versions(LIBRARIES), config.data
    parts: dict[str, dict] = {}
    for i, source in enumerate(data.sources):
        curation = {
            "manifest": fingerprint.digest([(shard.path, shard.size) for shard in manifest.shards(i)]),
            "tokenizer": tokenizer.digest,
            "code": curation_code,
            "libraries": libraries,
            "held_out": hashlib.sha256(to_ipc(held[i].select(["id"]))).hexdigest()[:16],
            "order_seed": data.order_seed,
            "chunk_bytes": data.chunk_bytes,
            "max_document_bytes": data.max_document_bytes,
            "dedup": asdict(data.dedup),
            **{name: getattr(source, name) for name in ("name", "format", "text_column", "id_column", "preset")},
        }
        parts[source.name] = {
            "curation": curation,
            "code": packing_code,
            "seq_len": data.seq_len,
            "packing": data.packing,
            "pack_window_tokens": data.pack_window_tokens,
            "slot_sequences": data.slot_sequences,
            "max_epochs": source.max_epochs,
        }
    return parts


def freeze_fingerprint(parts: dict, data: Store) -> list[str]:
    """Write the parts down; returns what changed since the last start of this run, if anything did."""
    flat = _flatten(parts)
    changes: list[str] = []
    if data.exists("fingerprint.json"):
        changes = fingerprint.changed(
            json.loads(data.read("fingerprint.json")), json.loads(json.dumps(flat, default=str))
        )
    data.write("fingerprint.json", json.dumps(flat, indent=1, sort_keys=True, default=str).encode())
    return changes


def _flatten(value: dict, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, item in value.items():
        out.update(_flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return out


# Held-out rows and baselines ------------------------------------------------------------------------------------------
def freeze_held_out(
    plans: Sequence[SourcePlan], held: Sequence[pa.Table], tokenizer: Tokenizer, data: Store
) -> dict[str, HeldOut]:
    """Pack the held-out documents for evaluation and write their dedup sketches; by source, with baselines."""
    if data.exists("held_out/summary.json"):
        raw = json.loads(data.read("held_out/summary.json"))
        return {name: HeldOut(**values) for name, values in raw.items()}
    out = {plan.source.name: _write_held_out(plan, docs, data) for plan, docs in zip(plans, held, strict=True)}
    data.write("held_out/summary.json", json.dumps({k: asdict(v) for k, v in out.items()}, indent=1).encode())
    return out


def _write_held_out(plan: SourcePlan, docs: pa.Table, data: Store) -> HeldOut:
    sketches = signatures(docs.column("text").combine_chunks(), plan.config.dedup)
    data.create(f"held_out/{plan.source.name}.sketches.arrow", to_ipc(sketches.to_table()))
    data.create(f"held_out/{plan.source.name}.documents.arrow", to_ipc(docs))
    tokenized = tokenize_documents(plan, docs)
    lengths = np.array([len(t) for t in tokenized.column("tokens")])
    used = max(1, int(np.searchsorted(np.cumsum(lengths), plan.config.held_out_max_tokens, side="right")))
    docs, tokenized = docs.slice(0, used), tokenized.slice(0, used)
    data.create(f"held_out/{plan.source.name}.arrow", to_ipc(_held_out_rows(plan, tokenized)))
    size = sum(tokenized.column("bytes").to_pylist())
    zipped = sum(len(gzip.compress(text.encode(), 9, mtime=0)) for text in docs.column("text").to_pylist())
    return HeldOut(used, size, int(lengths[:used].sum()), 8 * zipped / size, _unigram_bits(tokenized) / size)


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
