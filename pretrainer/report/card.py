"""The run card as plain values, card.json: model card, data card, and what it takes to derive the run again.

What is not known is None, and nothing is filled in for it; `pipelines.reproduce` reads `config` and `digests`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrainer.plan.hardware import Prices
from pretrainer.report.costs import cost, energy
from pretrainer.report.facts import Facts, Plain
from pretrainer.report.story import Story, tell
from pretrainer.report.weak import findings
from pretrainer.storage import redact

VERSION = 1
SETTINGS = ("config", "model.settings", "data.decontamination")
"""Parts in which None is a value."""
MOST_MARKS = 1000


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the card says beside the facts of the report; all of it is read from the run folder."""

    shards: Plain = field(default_factory=dict)
    """By source: number, bytes, and path and size of each where they are not too many."""
    tokenizer: Plain = field(default_factory=dict)
    digests: Plain = field(default_factory=dict)
    """manifest, tokenizer, fingerprint and its parts, order_digest by steps."""
    labels: Plain = field(default_factory=dict)
    """By source: documents kept by licence and by language, of the decision log."""
    segments: tuple[Plain, ...] = ()
    exported: Plain = field(default_factory=dict)
    """Which checkpoint was written as a model folder, by what rule, and SHA-256 of its weights' file."""


def card(facts: Facts, inputs: Inputs, prices: Prices) -> dict[str, Any]:
    """The content of card.json."""
    story, hardware = tell(facts), hardware_of(facts)
    devices, hours = hardware["devices"], hardware["device_hours"]
    driver: Plain = (facts.of("driver") or [{}])[-1]
    return {
        "card": VERSION,
        "run": _run(facts),
        "model": _model(facts),
        "init": _init(facts),
        "data": _data(facts, inputs),
        "tokenizer": dict(inputs.tokenizer) or None,
        "training": _training(facts, story),
        "instabilities": [_heal(heal) for heal in facts.heals],
        "checkpoint": dict(inputs.exported) or None,
        "evaluation": _evaluation(facts),
        "to_look_at": findings(facts, story),
        "hardware": hardware,
        "cost": cost(devices, hours, prices),
        "energy": energy(devices, hours),
        "software": {name: driver.get(name) for name in ("git_commit", "git_changes", "software")},
        "digests": dict(inputs.digests),
        "config": clean(facts.config),
    }


def _run(facts: Facts) -> dict[str, Any]:
    times = [event["at_s"] for event in facts.events if event.get("at_s")]
    about = {"name": facts.run, "folder": facts.uri, "status": facts.status, "message": facts.message or None}
    return {**about, "began_s": times[0] if times else None, "ended_s": times[-1] if times else None}


def _model(facts: Facts) -> dict[str, Any]:
    counts = {name: facts.summary.get(name) for name in ("parameters", "active_parameters")}
    settings = facts.config.get("model") or {}
    context = settings.get("context") or (facts.config.get("data") or {}).get("seq_len")
    return {**counts, "vocab_size": facts.vocab_size, "context": context, "settings": settings}


def _init(facts: Facts) -> dict[str, Any] | str | None:
    """What the run began with; a word where that is nothing, None where nobody knows."""
    settings = clean(facts.config.get("init"))
    if settings is None:
        return None
    if not settings["uri"]:
        return "none, the weights were drawn"
    known = facts.summary.get("init") or {}
    names = ("uri", "checkpoint", "replay", "replay_share")
    found = {name: settings[name] for name in names if name in settings}
    return {**found, "weights_sha256": known.get("weights_sha256"), "forgetting": facts.summary.get("forgetting")}


def _data(facts: Facts, inputs: Inputs) -> dict[str, Any]:
    settings = clean((facts.config.get("data") or {}).get("sources", ()))
    return {
        "sources": {source["name"]: _source(source, facts, inputs) for source in settings},
        "mixture": dict(facts.mixture) or None,
        "segments": list(inputs.segments) or None,
        "decontamination": clean((facts.config.get("data") or {}).get("decontamination")),
    }


def _training(facts: Facts, story: Story) -> dict[str, Any]:
    stretches = [{"first_step": first, "end_step": end, "workers": w} for first, end, w in story.worlds]
    early = (facts.summary["early_stop"] or "no") if "early_stop" in facts.summary else None
    names = ("train_loss", "warnings", "tokens_per_s", "data_wait_fraction", "checkpoints")
    return {
        "steps": facts.steps,
        "of_steps": facts.total_steps,
        "tokens": facts.steps * facts.batch_tokens if facts.batch_tokens else None,
        **{name: facts.summary.get(name) for name in names},
        "early_stop": early,
        "worker_groups": [dict(attempt) for attempt in facts.attempts] or None,
        "restarts": max(0, len(facts.attempts) - 1) if facts.attempts else None,
        "world_sizes": stretches or None,
        "what_happened": [mark._asdict() for mark in story.marks[:MOST_MARKS]],
        "goodput": dict(facts.goodput) or None,
    }


def _evaluation(facts: Facts) -> dict[str, Any]:
    return {
        "held_out": {name: facts.summary.get(name) for name in _HELD_OUT},
        "by_source": facts.summary.get("validation") or None,
        "tasks": facts.newest_tasks() or None,
    }


_HELD_OUT = ("val_loss", "perplexity", "val_bits_per_byte", "gzip_bits_per_byte", "unigram_bits_per_byte")


def _source(settings: Plain, facts: Facts, inputs: Inputs) -> dict[str, Any]:
    name = settings["name"]
    labels, counts = inputs.labels.get(name) or {}, facts.sources.get(name)
    return {
        **{field: settings[field] for field in ("uris", "format", "preset", "max_epochs")},
        "shards": inputs.shards.get(name),
        "documents": dict(counts) if counts else None,
        "held_out": facts.held_out.get(name),
        "licences": labels.get("licence"),
        "languages": labels.get("language"),
    }


def _heal(heal: Plain) -> dict[str, Any]:
    names = ("step", "reason", "policy", "loss", "grad_norm", "loss_bound", "grad_norm_bound", "first_step", "end_step",
             "message", "action", "documents", "documents_count")  # fmt: skip
    return {name: heal.get(name) for name in names}


def hardware_of(facts: Facts) -> dict[str, Any]:
    """Devices by their names, and the hours in which a worker held one, starts and waits included."""
    devices = sorted({event["device"] for event in facts.of("start") if event.get("device")})
    worker_s = facts.goodput.get("worker_s")
    return {
        "devices": devices,
        "device_hours": None if worker_s is None else worker_s / 3600,
        "clusters": [event["cluster"] for event in facts.of("driver")] or None,
    }


def clean(value: Any) -> Any:
    """The same without secrets in its texts."""
    if isinstance(value, Mapping):
        return {name: clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def not_recorded(value: Any, path: str = "") -> Iterator[str]:
    """Names of everything in a card that is None, config fields aside: there it is a value."""
    if value is None:
        yield path
    elif isinstance(value, Mapping) and path not in SETTINGS:
        for name, item in value.items():
            yield from not_recorded(item, f"{path}.{name}" if path else name)
