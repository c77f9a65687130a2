"""The run card, beside the exported model: README.md for people and card.json for programs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from pipelines.driver.gather import gather, thawed
from pretrainer.data.identity import FINGERPRINT
from pretrainer.data.plan import SourcePlan, load_manifest, load_tokenizer
from pretrainer.data.prologue import Frozen
from pretrainer.plan.hardware import load_prices
from pretrainer.report.card import Inputs, card
from pretrainer.report.card_text import as_markdown
from pretrainer.report.facts import Facts
from pretrainer.storage import Store
from pretrainer.train.telemetry.audit import AUDIT
from pretrainer.train.telemetry.auditlog import object_range

CARD, TEXT = "card.json", "README.md"
MOST_SHARDS = 1000  # that are listed one by one
MOST_DIGESTS = 64  # of the chain of steps
MOST_LABELS = 50


def card_files(run: Store, exported: dict[str, Any]) -> dict[str, bytes]:
    """The two files by name; `exported` says which checkpoint was written, by what rule, and its weights' SHA-256."""
    facts = gather(run)
    content = card(facts, read_inputs(run, facts, exported), load_prices())
    return {CARD: json.dumps(content, indent=1, default=str).encode(), TEXT: as_markdown(content).encode()}


def read_inputs(run: Store, facts: Facts, exported: dict[str, Any]) -> Inputs:
    frozen = thawed(run)
    if frozen is None:
        return Inputs(exported=exported)
    return Inputs(
        shards=shards(frozen),
        tokenizer=tokenizer(frozen),
        digests=digests(run, frozen, facts),
        labels={plan.source.name: labels(plan) for plan in frozen.plans},
        segments=segments(frozen),
        exported=exported,
    )


def shards(frozen: Frozen) -> dict[str, Any]:
    """By source: how many objects and bytes, and each one's path and size where they are not too many in all."""
    manifest = load_manifest(frozen.plans[0].data_uri)
    is_short = sum(len(table) for table in manifest.tables) <= MOST_SHARDS
    found: dict[str, Any] = {}
    for index, name in enumerate(manifest.names):
        rows = [(shard.path, shard.size) for shard in manifest.shards(index)]
        about = {"count": len(rows), "bytes": sum(size for _path, size in rows)}
        found[name] = about | ({"objects": rows} if is_short else {})
    return found


def tokenizer(frozen: Frozen) -> dict[str, Any]:
    found = load_tokenizer(frozen.plans[0].data_uri)
    kind = "Hugging Face tokenizer.json" if found.is_json else "sentencepiece model"
    return {"kind": kind, "vocab_size": found.vocab_size, "sha256": found.digest}


def digests(run: Store, frozen: Frozen, facts: Facts) -> dict[str, Any]:
    """Everything that `pipelines.reproduce` derives again."""
    data = frozen.plans[0].data_uri
    chain = order_digests(run, facts.steps)
    last = chain.get(facts.steps, facts.order_digest)
    return {
        "manifest": load_manifest(data).order_digest(),
        "tokenizer": load_tokenizer(data).digest,
        "fingerprint": frozen.fingerprint,
        "fingerprint_parts": json.loads(Store(data).read(FINGERPRINT)),
        "order_digest": {"steps": facts.steps, "digest": last},
        "order_digests": {str(steps): digest for steps, digest in chain.items()},
        "weights_sha256": facts.summary.get("weights_sha256"),
    }


def order_digests(run: Store, steps: int) -> dict[int, str]:
    """Steps -> order digest behind them, at the ends of a bounded number of audit objects, the last one of `steps`.

    Steps that were trained twice have the same digests both times (`pipelines.verify` proves it).
    """
    ends = {}
    for entry in run.list(AUDIT, recursive=False):
        named = object_range(entry.path)
        if named is not None and named[1] < steps:
            ends[named[1] + 1] = entry.path
    chosen = sorted(ends)[:: -(-len(ends) // MOST_DIGESTS) or 1] if ends else []
    return {end: last_digest(run, ends[end]) for end in sorted({*chosen, *sorted(ends)[-1:]})}


def last_digest(run: Store, path: str) -> str:
    return str(json.loads(run.read(path).splitlines()[-1])["order_digest"])


def segments(frozen: Frozen) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"first_step": s.first_step, "end_step": s.end_step, "seq_len": s.seq_len, "shares_asked": list(s.asked)}
        for s in frozen.segments
    )


def labels(plan: SourcePlan) -> dict[str, Any]:
    """Kept documents by licence and by language, of the decision log; None where the run kept none (data.decisions)."""
    paths = [entry.path for entry in plan.ledger.root.list("decisions") if entry.path.endswith(".parquet")]
    counts: dict[str, Counter[str]] = {"licence": Counter(), "language": Counter()}
    for path in paths:
        with plan.ledger.root.open(path) as file:
            rows = pq.read_table(file, columns=["kept", *counts])
        kept = rows.filter(rows.column("kept"))
        for name, count in counts.items():
            count.update(kept.column(name).to_pylist())
    return {name: _largest(count) if paths else None for name, count in counts.items()}


def _largest(count: Counter[str]) -> dict[str, int]:
    """The most frequent ones; a document without a label is under "none named"."""
    named = {str(label or "none named"): n for label, n in count.most_common(MOST_LABELS)}
    rest = sum(count.values()) - sum(named.values())
    return {**named, **({"others": rest} if rest else {})}
