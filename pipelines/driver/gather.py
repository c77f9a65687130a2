"""Everything that a run folder says of its run, for the report and the card; no cluster is asked, and nothing is
changed. Works on a run that goes on, that has ended in any way, and on one that never came to its first step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from pipelines.driver.documents import document_counts
from pipelines.driver.run_status import status_of
from pretrainer.config import Config
from pretrainer.config_load import parse_config
from pretrainer.data.curriculum import realised_shares
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import Frozen, data_folder, thaw
from pretrainer.errors import StorageError, UserError
from pretrainer.journal import read_events
from pretrainer.report.facts import Facts
from pretrainer.storage import Store, redact
from pretrainer.train.checkpoints.committed import committed_checkpoint
from pretrainer.train.scoring.selection import read_points
from pretrainer.train.stability.healing import HEALING, read_heals
from pretrainer.train.telemetry.audit import ATTEMPTS
from pretrainer.train.telemetry.auditlog import read_log
from pretrainer.train.telemetry.goodput import Goodput

T = TypeVar("T")
TOLD = 20  # documents of a decision
READ_ATTEMPTS, READ_AGAIN_S = 10, 0.2
PAGE = "report/report.html"
RESULTS = "evaluation/evaluation.json"


def gather(run: Store) -> Facts:
    """The facts of a run. Raises UserError where there is no run."""
    config = _config(run)
    if config is None and not run.list("data") and not run.list("lease"):
        raise UserError(f"{run.uri} is no run folder: give a run folder or the name of a run")
    frozen = thawed(run)
    events = read_events(run) or events_of_audit(run)
    summary, steps = _json(run, "summary.json", {}), committed_steps(run, events)
    status = status_of(run, summary, config)
    return Facts(
        run=run.uri.rstrip("/").rsplit("/", 1)[-1] if config is None else config.run.name,
        uri=redact(run.uri),
        status=status,
        message=message_of(status, summary, events),
        config=json.loads(json.dumps(asdict(config))) if config else {},
        total_steps=config.total_steps if config else None,
        batch_tokens=config.train.global_batch_tokens if config else None,
        steps=steps,
        summary=summary,
        events=events,
        heals=decisions(run),
        attempts=[_json(run, entry.path, {}) for entry in run.list(ATTEMPTS)],
        sources=summary.get("sources") or (document_counts(frozen) if frozen else {}),
        mixture=mixture(config, frozen, steps) if config and frozen else {},
        held_out={name: asdict(held) for name, held in frozen.held_out.items()} if frozen else {},
        goodput=goodput(run, config, steps) if config else {},
        evaluation=evaluation_points(run),
        samples=samples(frozen, events) if frozen else (),
        vocab_size=frozen.vocab_size if frozen else None,
        fingerprint=frozen.fingerprint if frozen else None,
        order_digest=order_digest(events, summary, steps),
    )


def committed_steps(run: Store, events: list[dict[str, Any]]) -> int:
    """In the newest committed checkpoint. On a local disk its list cannot be read in the moment in which it is written
    anew, and a crash may have torn it: then the events count."""
    for _attempt in range(READ_ATTEMPTS):
        try:
            committed = committed_checkpoint(run)
            return committed[1] if committed else 0
        except StorageError:
            time.sleep(READ_AGAIN_S)
    return max((event["step"] for event in events if event["kind"] == "checkpoint"), default=0)


def _there(read: Callable[[], T], otherwise: T) -> T:
    """What can be read, or this where the run has not come to it."""
    try:
        return read()
    except (FileNotFoundError, UserError):
        return otherwise


def _json(run: Store, path: str, otherwise: Any) -> Any:
    return _there(lambda: json.loads(run.read(path)), otherwise)


def thawed(run: Store) -> Frozen | None:
    """What the run has frozen; None before it has."""
    config = _config(run)
    return None if config is None else _there(lambda: thaw(config, data_folder(config, run), run.child("data")), None)


def _config(run: Store) -> Config | None:
    return _there(lambda: parse_config(run.read_text("config.yaml"), where=f"{run.uri}/config.yaml"), None)


def message_of(status: str, summary: dict[str, Any], events: list[dict[str, Any]]) -> str:
    fatal = [event["message"] for event in events if event["kind"] == "fatal"]
    if status == "interrupted":
        return "Its driver shows no life; the same command goes on from the last checkpoint."
    if status == "running":
        return ""
    return str(summary.get("message") or (fatal[-1] if fatal and status == "failed" else ""))


def events_of_audit(run: Store) -> list[dict[str, Any]]:
    """Of a run without a journal: its losses, as the audit log has them."""
    found: list[dict[str, Any]] = []
    log = read_log(run)
    for attempt in log.attempts:
        found.append({"kind": "start", **asdict(attempt), "at_s": attempt.time_s})
        lines = (line for one in log.objects if one.attempt == attempt.attempt for line in one.lines)
        found += [
            {"kind": "steps", "step": line.step + 1, "loss": line.loss, "grad_norm": line.grad_norm} for line in lines
        ]
    return found


def decisions(run: Store) -> list[dict[str, Any]]:
    out = []
    for heal in read_heals(run):
        documents = _json(run, f"{HEALING}/documents/{heal.number:06d}.json", None)
        named = {} if documents is None else {"documents": documents[:TOLD], "documents_count": len(documents)}
        out.append({**heal.to_json(), "message": heal.message, "action": heal.action, **named})
    return out


def mixture(config: Config, frozen: Frozen, step: int) -> dict[str, dict[str, float]]:
    """By source, its share of the slot blocks: asked, and realised up to a step."""
    shares = realised_shares(frozen.segments, step, config.slot_blocks_per_step)
    names = [source.name for source in config.data.sources]
    return {name: {"asked": a, "realised": r} for name, (a, r) in zip(names, shares, strict=True)}


def goodput(run: Store, config: Config, steps: int) -> dict[str, Any]:
    saved = _json(run, "goodput.json", None)
    return Goodput.resume(0.0, saved).report(steps * config.train.global_batch_tokens) if saved else {}


def evaluation_points(run: Store) -> list[dict[str, Any]]:
    """What was scored while the run trained, and behind it what pipelines.evaluate was asked for."""
    asked = _json(run, RESULTS, {}).get("checkpoints", [])
    return [*read_points(run), *({**point, "cadence": "asked"} for point in asked if point["step"] is not None)]


def samples(frozen: Frozen, events: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, text), each step as it was sampled last."""
    ids = {event["step"]: event["ids"] for event in events if event["kind"] == "sample"}
    tokenizer = load_tokenizer(frozen.plans[0].data_uri) if ids else None
    return [(step, tokenizer.decode(ids[step])) for step in sorted(ids)] if tokenizer else []


def order_digest(events: list[dict[str, Any]], summary: dict[str, Any], steps: int) -> str | None:
    """Of the steps that are committed."""
    if summary.get("steps") == steps and summary.get("order_digest"):
        return str(summary["order_digest"])
    found = [event["order_digest"] for event in events if event["kind"] == "checkpoint" and event["step"] == steps]
    return found[-1] if found else None
