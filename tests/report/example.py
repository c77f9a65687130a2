"""A run in which everything has happened, as plain values."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from pretrainer.config import Config
from pretrainer.config_load import parse_config
from pretrainer.report.card import Inputs
from pretrainer.report.facts import Facts

HOSTILE = "<script>alert('x')</script> & \"quotes\" | a\nnew line"
SECRET = "AKIAIOSFODNN7EXAMPLE"
YAML = """
run: {name: example}
data:
  sources:
    - {name: web, uris: ["s3://bucket/web"], share: 0.75}
    - {name: code, uris: ["s3://bucket/code"], share: 0.25, preset: code}
  seq_len: 32
  slot_sequences: 2
model: {layers: 1, hidden: 32, heads: 2}
train: {steps: 200, global_batch_tokens: 512, log_every_steps: 10}
"""


def config() -> Config:
    return parse_config(YAML)


def steps_event(step: int, loss: float, world: int = 2) -> dict[str, Any]:
    return {
        "kind": "steps", "step": step, "first_step": step - 9, "loss": loss, "loss_max": loss + 0.1, "grad_norm": 1.0,
        "learning_rate": 1e-3, "tokens_per_s": 1000.0, "data_wait_fraction": 0.02, "mfu": None, "world_size": world,
        "source_losses": {"web": loss + 0.1, "code": loss - 0.3}, "at_s": 1000.0 + step,
    }  # fmt: skip


def validation(step: int, loss: float) -> dict[str, Any]:
    values = {"loss": loss, "perplexity": 2.7**loss, "bits_per_byte": loss / 2, "targets": 100}
    return {"kind": "validation", "step": step, "sources": {"web": values, "code": values}, "at_s": 1000.0 + step}


def start(step: int, world: int, **more: Any) -> dict[str, Any]:
    device = "NVIDIA H100 80GB HBM3"
    return {"kind": "start", "step": step, "world_size": world, "segment": 0, "device": device, "at_s": 1000.0 + step,
            **more}  # fmt: skip


def lead(step: int, ahead: float) -> dict[str, Any]:
    return {"kind": "lead", "step": step, "steps_ahead": ahead, "tokens_ahead": 6400,
            "curated": {"web": 0.5, "code": 1.0}, "at_s": 1000.0 + step}  # fmt: skip


def driver(number: int, at_s: float) -> dict[str, Any]:
    there = {"nodes": 1, "cpus": 2.0, "gpus": 0.0, "accelerators": [], "node_memory_bytes": None}
    return {"kind": "driver", "number": number, "cluster": there, "software": {"python": "3.11.7", "torch": "2.13.0"},
            "git_commit": "abc", "git_changes": False, "at_s": at_s}  # fmt: skip


def events() -> list[dict[str, Any]]:
    """100 steps with two workers, a death at 100, 60 to 150 with three, a new driver, 150 to 200 with one."""
    return [
        driver(1, 999.0),
        start(0, 2),
        validation(0, 6.4),
        *(steps_event(step, 6.4 - step / 100) for step in range(10, 101, 10)),
        {"kind": "checkpoint", "step": 60, "order_digest": "d60", "at_s": 1061.0},
        lead(80, 7.0),
        {"kind": "failure", "message": HOSTILE, "reason": None, "ranks": [1], "at_s": 1101.0},
        start(60, 3),
        lead(80, 12.5),
        *(steps_event(step, 6.2 - step / 100, 3) for step in range(70, 151, 10)),
        {"kind": "preempted", "step": 150, "seconds_left": 30.0, "at_s": 1151.0},
        {"kind": "failure", "message": "PreemptedError", "reason": "preempted", "ranks": [0], "at_s": 1152.0},
        driver(2, 1200.0),
        start(150, 1, at_s=1201.0),
        {"kind": "warning", "name": "restless", "step": 155, "message": "the loss varies", "at_s": 1202.0},
        *(steps_event(step, 6.2 - step / 100, 1) for step in range(160, 201, 10)),
        validation(200, 4.3),
        {"kind": "checkpoint", "step": 200, "order_digest": "d200", "at_s": 1201.0},
        {"kind": "finish", "status": "completed", "step": 200, "at_s": 1210.0},
    ]


def heal(**changes: Any) -> dict[str, Any]:
    return {
        "number": 0, "step": 89, "reason": "loss_spike", "policy": "report", "attempt": 1, "loss": 9.0,
        "grad_norm": 3.0, "loss_bound": 7.0, "grad_norm_bound": None, "first_step": 0, "end_step": 0, "to_step": -1,
        "from_step": 0, "time_s": 1090.0, "message": "step 89: loss 9 is above 7", "action": "nothing is done",
        "documents": [{"source": "web", "shard": "a.jsonl", "row": 3, "document": HOSTILE, "tokens": 1234}],
        "documents_count": 7, **changes,
    }  # fmt: skip


def counts(read: int, kept: int, dropped: dict[str, int], dead: int = 0) -> dict[str, Any]:
    return {"read": read, "kept": kept, "dropped": dropped, "dead_letters": dead, "quarantined": 0,
            "bytes_read": 100 * read, "bytes_kept": 90 * kept, "tokens": 60_000}  # fmt: skip


def task(acc: float, guess: float | None = 0.25) -> dict[str, Any]:
    return {"scoring": "choice", "shots": 5, "documents": 100, "guess": guess,
            "metrics": {"acc": {"value": acc, "stderr": 0.02}}}  # fmt: skip


SUMMARY: dict[str, Any] = {
    "status": "completed", "steps": 200, "train_loss": 4.2, "val_loss": 4.3, "val_bits_per_byte": 2.15,
    "perplexity": 73.7, "gzip_bits_per_byte": 2.5, "unigram_bits_per_byte": 3.1, "parameters": 30_000,
    "active_parameters": 30_000, "tokens_per_s": 1000.0, "data_wait_fraction": 0.02, "warnings": [],
    "weights_sha256": None, "order_digest": "d200", "checkpoint": "x", "export": "y", "validation": {},
    "checkpoints": {"saved": 2, "blocking_s": 0.1, "total_s": 1.0}, "early_stop": None,
}  # fmt: skip
SHARE = {"useful": 0.95, "start_up": 0.02, "data_wait": 0.01, "checkpoint": 0.01, "validation": 0.01, "lost_work": 0.0,
         "recovery": 0.0, "other": 0.0}  # fmt: skip


def facts(**changes: Any) -> Facts:
    """Of the whole run, with these fields changed."""
    ours = config()
    whole = Facts(
        run="example",
        uri="s3://bucket/runs/example",
        status="completed",
        config=json.loads(json.dumps(asdict(ours))),
        total_steps=200,
        batch_tokens=512,
        steps=200,
        summary=SUMMARY,
        events=events(),
        heals=[heal(), heal(number=1, step=119, policy="skip", first_step=119, end_step=120, action="119 is left out")],
        attempts=[{"attempt": n, "step": s, "world_size": w, "time_s": 1000.0 + s}
                  for n, (s, w) in enumerate([(0, 2), (60, 3), (150, 1)])],
        sources={"web": counts(100, 80, {"duplicate_near": 15, HOSTILE: 5}), "code": counts(50, 49, {}, 1)},
        mixture={"web": {"asked": 0.75, "realised": 0.75}, "code": {"asked": 0.25, "realised": 0.25}},
        held_out={name: {"documents": 40, "bytes": 9, "tokens": 3, "gzip_bits_per_byte": 2.5,
                         "unigram_bits_per_byte": 3.1} for name in ("web", "code")},
        goodput={"fraction": 0.95, "share": SHARE, "worker_s": 7200.0},
        evaluation=[{"step": step, "cadence": "medium", "tasks": {"arc": task(acc)}}
                    for step, acc in ((100, 0.3), (200, 0.4))],
        samples=[(20, HOSTILE), (200, "def main():")],
        vocab_size=600,
        fingerprint="f00d",
        order_digest="d200",
    )  # fmt: skip
    return replace(whole, **changes)


def empty(status: str = "running") -> Facts:
    """Of a run that has frozen nothing yet."""
    return Facts(run="new", uri="runs/new", status=status)


PARTS = {
    "web.curation.manifest": "m1", "web.curation.tokenizer": "t1", "web.curation.code": "c1",
    "web.curation.libraries.numpy": "2.4.6", "web.curation.libraries.python": "3.11", "web.curation.held_out": "h1",
    "web.curation.files": [], "web.curation.order_seed": 0, "web.seq_len": 32, "order.code": "o1",
}  # fmt: skip


def digests(**changes: Any) -> dict[str, Any]:
    """As a card has them."""
    order = {"60": "d60", "100": "d100", "200": "d200"}
    whole = {"manifest": "man", "tokenizer": "tok", "fingerprint": "f00d", "fingerprint_parts": PARTS,
             "order_digest": {"steps": 200, "digest": "d200"}, "order_digests": order,
             "weights_sha256": None}  # fmt: skip
    return {**whole, **changes}


def derived(**changes: Any) -> dict[str, Any]:
    """What a derivation of the same inputs gives."""
    order = {60: "d60", 61: "more", 100: "d100", 200: "d200"}
    return {"manifest": "man", "tokenizer": "tok", "fingerprint": "f00d", "fingerprint_parts": PARTS,
            "order_digests": order, **changes}  # fmt: skip


def inputs(**changes: Any) -> Inputs:
    objects = [("a.jsonl", 10), ("b.jsonl", 20)]
    whole = {
        "shards": {"web": {"count": 2, "bytes": 30, "objects": objects}, "code": {"count": 9, "bytes": 99}},
        "tokenizer": {"kind": "sentencepiece model", "vocab_size": 600, "sha256": "tok"},
        "digests": digests(),
        "labels": {"code": {"licence": {"MIT": 30, "none named": 19}, "language": None}},
        "segments": ({"first_step": 0, "end_step": 200, "seq_len": 32, "shares_asked": [0.75, 0.25]},),
        "exported": {"step": 200, "folder": "checkpoints/x", "rule": "the newest committed one", "sha256": "ab" * 32},
    }
    return Inputs(**{**whole, **changes})
