"""Where a run stands, from its folder alone: no cluster, no GPU, no MLflow; nothing is changed.

    python -m pipelines.status RUN
    python -m pipelines.status RUN --json

RUN is a run folder (path or URI) or the name of a run under run.storage. The exit code is 0 whatever became of the run,
and 2 where there is none. What the driver tells comes from the newest objects of its journal, up to five minutes old.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.driver.cli import run_main
from pipelines.driver.run_status import status_of
from pretrainer.config import Config, RunConfig
from pretrainer.config_load import parse_config
from pretrainer.errors import UserError
from pretrainer.journal import EVENTS
from pretrainer.lease import state
from pretrainer.storage import Store, redact, resolve_run
from pretrainer.train.checkpoints.committed import committed_checkpoint
from pretrainer.train.telemetry.goodput import Goodput

Event = dict[str, Any]

ATTEMPTS, HEALING = "audit/attempts", "healing"  # of train.audit and train.healing, which would load torch
NEWEST_OBJECTS = 20
"""Of the journal: an hour and a half of a long run, and all of a short one's first two minutes."""
TOLD = 5
DRIVERS = {
    "alive": "alive",
    "silent": "gone without a word; the same command goes on from the last checkpoint",
    "released": "none: the last one ended in order",
    "none": "none yet",
}


@dataclass(frozen=True)
class Status:
    """What a run folder says; None where it does not say it (yet).

    status: not started, running, interrupted (no driver lives), stopped, failed, completed. step: the newest that is
    known to be trained, committed or not. warnings, heals: the newest.
    """

    run: str
    uri: str
    status: str
    message: str
    driver: str
    step: int
    total_steps: int | None
    tokens: int | None
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    goodput: float | None
    checkpoint_step: int | None
    checkpoint_age_s: float | None
    lead_steps: float | None
    curated: dict[str, float]
    world_size: int | None
    worker_groups: int
    warnings: tuple[str, ...]
    heals: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.status", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines for people")
    options = parser.parse_args(arguments)
    status = read_status(resolve_run(options.run, options.storage), time.time())
    print(json.dumps(asdict(status)) if options.json else "\n".join(status_lines(status)))
    return 0


def read_status(run: Store, now_s: float) -> Status:
    """Look at a run folder. Raises UserError where there is no run. now_s: seconds since 1970."""
    config = read_config(run)
    summary, attempts = _json(run, "summary.json") or {}, run.list(ATTEMPTS)
    driver, _number = state(run, config.cluster.takeover_s if config else 60.0)
    if config is None and driver == "none" and not attempts:
        raise UserError(f"{redact(run.uri)} is no run folder: give a run folder or the name of a run")
    events, committed = newest_events(run), committed_checkpoint(run)
    checkpoint_step, status = committed[1] if committed else None, status_of(run, summary, config)
    steps, lead = _last(events, "steps"), _last(events, "lead")
    saved = _last(events, "checkpoint", step=checkpoint_step)
    step = max(steps["step"] if steps else 0, checkpoint_step or 0)
    newest = _json(run, attempts[-1].path) if attempts else None
    rate = steps["tokens_per_s"] if steps else None
    return Status(
        run=config.run.name if config else run.location.path.rsplit("/", 1)[-1],
        uri=redact(run.uri),
        status=status,
        message=message_of(status, summary, events),
        driver=DRIVERS[driver],
        step=step,
        total_steps=config.total_steps if config else None,
        tokens=step * config.train.global_batch_tokens if config else None,
        loss=steps["loss"] if steps and "loss" in steps else summary.get("train_loss"),
        tokens_per_s=rate,
        eta_s=eta_s(config, step, rate) if config and status == "running" else None,
        goodput=goodput_of(run),
        checkpoint_step=checkpoint_step,
        checkpoint_age_s=max(0.0, now_s - saved["at_s"]) if saved else None,
        lead_steps=lead["steps_ahead"] if lead else None,
        curated=lead["curated"] if lead else {},
        world_size=newest["world_size"] if newest else None,
        worker_groups=len(attempts),
        warnings=tuple(warnings_of(events, summary))[-TOLD:],
        heals=tuple(heal_line(_json(run, entry.path)) for entry in run.list(HEALING, recursive=False)[-TOLD:]),
    )


def read_config(run: Store) -> Config | None:
    """The run's resolved config; None before there is one."""
    try:
        return parse_config(run.read_text("config.yaml"), where=f"{run.uri}/config.yaml")
    except FileNotFoundError:
        return None


def newest_events(run: Store) -> list[Event]:
    """What the newest objects of the journal hold, oldest first."""
    paths = [entry.path for entry in run.list(EVENTS)][-NEWEST_OBJECTS:]
    return [json.loads(line) for path in paths for line in run.read(path).splitlines()]


def message_of(status: str, summary: dict[str, Any], events: Sequence[Event]) -> str:
    """Why a run is not at work."""
    fatal = _last(events, "fatal")
    if status in ("stopped", "failed"):
        return str(summary.get("message") or (fatal["message"] if fatal else ""))
    last = next((event for event in reversed(events) if event["kind"] in ("waiting", "start")), None)
    return str(last["message"]) if status == "running" and last and last["kind"] == "waiting" else ""


def eta_s(config: Config, step: int, tokens_per_s: float | None) -> float | None:
    """Seconds to the last step at the newest rate."""
    left = (config.total_steps - step) * config.train.global_batch_tokens
    return None if not tokens_per_s else left / tokens_per_s


def goodput_of(run: Store) -> float | None:
    """0 to 1, over all drivers, up to the newest checkpoint; None before the first."""
    saved = _json(run, "goodput.json")
    return None if saved is None else float(Goodput.resume(0.0, saved).report(0)["fraction"])


def warnings_of(events: Sequence[Event], summary: dict[str, Any]) -> Iterator[str]:
    """Of the journal's newest objects; of the summary for a run that has no journal."""
    kinds = ("warning", "failure", "stall", "preempted", "evaluation_failed", "copy_failed")
    told = [event for event in events if event["kind"] in kinds]
    for one in told if events else summary.get("warnings", []):
        what = one.get("kind", "warning").replace("_", " ")
        yield f"{'' if what == 'warning' else what + ': '}{one.get('message') or 'step ' + str(one['step'])}"


def heal_line(heal: dict[str, Any]) -> str:
    """A decision of train.healing."""
    first, end = heal["first_step"], heal["end_step"]
    left_out = f", steps {first:,} to {end - 1:,} left out" if end > first else ""
    return f"step {heal['step']:,}: {heal['reason'].replace('_', ' ')}, {heal['policy']}{left_out}"


def _last(events: Sequence[Event], kind: str, **fields: Any) -> Event | None:
    """The newest event of a kind that has these values."""
    matching = (e for e in reversed(events) if e["kind"] == kind and all(e.get(k) == v for k, v in fields.items()))
    return next(matching, None)


def _json(run: Store, path: str) -> Any:
    """The content of an object; None if there is none."""
    try:
        return json.loads(run.read(path))
    except FileNotFoundError:
        return None


def status_lines(status: Status) -> list[str]:
    """For people; what is not known is left out."""
    rows = [
        ("status", f"{status.status}{f': {status.message}' if status.message else ''}"),
        ("driver", status.driver),
        ("step", _step(status)),
        ("loss", _shown(status.loss, ".4f")),
        ("tokens", _shown(status.tokens, ",")),
        ("speed", f"{status.tokens_per_s:,.0f} tokens/s" if status.tokens_per_s and status.status == "running" else ""),
        ("ETA", duration(status.eta_s) if status.eta_s is not None else ""),
        ("goodput", _shown(status.goodput, ".1%")),
        ("checkpoint", _checkpoint(status)),
        ("curation", _curation(status)),
        ("workers", f"{status.world_size} in worker group {status.worker_groups}" if status.world_size else ""),
        *(("warning", text) for text in status.warnings),
        *(("healed", text) for text in status.heals),
    ]
    return [f"run {status.run} in {status.uri}", *(f"  {name:<12}{text}" for name, text in rows if text)]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _step(status: Status) -> str:
    total = status.total_steps
    return f"{status.step:,}" + (f" of {total:,} ({status.step / total:.1%})" if total else "")


def _checkpoint(status: Status) -> str:
    if status.checkpoint_step is None:
        return "none yet"
    age = f", {duration(status.checkpoint_age_s)} ago" if status.checkpoint_age_s is not None else ""
    return f"step {status.checkpoint_step:,}{age}"


def _curation(status: Status) -> str:
    parts = ", ".join(f"{name} {share:.1%}" for name, share in status.curated.items())
    return "" if status.lead_steps is None else f"{status.lead_steps:,.0f} steps ahead of training; curated: {parts}"


def duration(seconds: float) -> str:
    """3725.0 -> 1:02:05."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


if __name__ == "__main__":
    run_main(main)
