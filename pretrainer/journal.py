"""A run's events in its own folder, so that its story can be told from storage alone, without MLflow or a cluster.

    events/<driver>-<first>.jsonl    events first, first + 1, … of one driver, a line each; never changed

Object storage has no append: a thread collects events and writes them as one new object, every 5 s at first and every
300 s later (in between a sixtieth of the driver's age), so a driver writes about 300 objects in its first five hours
and 12 an hour after them. Nobody waits for it, and storage that fails is tried again at the next turn. A driver that is
killed takes what it has not written with it; the audit log, the decisions of healing/ and the summary do not depend on
it. A step that is trained again is told again: readers let the last one count.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pretrainer.errors import PretrainerError
from pretrainer.storage import Store

log = logging.getLogger(__name__)

EVENTS = "events"
FIRST_INTERVAL_S, LAST_INTERVAL_S, SHARE_OF_AGE = 5.0, 300.0, 1 / 60
READ_THREADS = 16
BULKY = ("steps", "values", "documents", "expert_tokens")
"""What of an event is not kept: what the audit log and healing/ have, and measures by layer, which MLflow has."""


def interval_s(age_s: float) -> float:
    """Seconds between two objects of a driver of this age."""
    return min(LAST_INTERVAL_S, max(FIRST_INTERVAL_S, SHARE_OF_AGE * age_s))


class Journal:
    """Writes the events of one driver; `number` is that of its lease. It may travel until the first `put`."""

    def __init__(self, run_uri: str, number: int) -> None:
        self.run_uri, self.number = run_uri, number
        self._writer: _Writer | None = None

    def put(self, event: Mapping[str, Any]) -> None:
        """Take an event; returns at once, and raises nothing that could end the training that tells it."""
        try:
            line = line_of(event)
        except (TypeError, ValueError) as error:
            return log.warning("an event %s of the run is no JSON and is not kept: %s", event.get("kind"), error)
        if self._writer is None:
            self._writer = _Writer(Store(self.run_uri), self.number)
        self._writer.put(line)

    def flush(self, timeout_s: float) -> bool:
        """Write what waits, now; whether everything is in storage within the time."""
        return self._writer is None or self._writer.flush(timeout_s)


class _Writer:
    def __init__(self, run: Store, number: int) -> None:
        self.run, self.number, self.began_s = run, number, time.monotonic()
        self.waiting: list[str] = []
        self.written = 0  # events that are in storage
        self.batch: list[str] = []  # on its way, the same bytes at every attempt
        self.hurry = False
        self.changed = threading.Condition()
        threading.Thread(target=self._work, name="journal", daemon=True).start()

    def put(self, line: str) -> None:
        with self.changed:
            self.waiting.append(line)
            self.changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        with self.changed:
            self.hurry = True
            self.changed.notify_all()
            return self.changed.wait_for(lambda: not self.waiting, timeout_s)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                self.changed.wait_for(lambda: self.hurry, interval_s(time.monotonic() - self.began_s))
                self.batch = self.batch or list(self.waiting)
            is_written = self._write()
            with self.changed:
                if is_written:
                    del self.waiting[: len(self.batch)]
                    self.written, self.batch = self.written + len(self.batch), []
                self.hurry = self.hurry and is_written and bool(self.waiting)
                self.changed.notify_all()

    def _write(self) -> bool:
        try:
            self.run.create(object_path(self.number, self.written), "".join(self.batch).encode())
        except (PretrainerError, OSError) as error:
            log.warning("%d events of the run are not in its folder yet: %s", len(self.batch), error)
            return False
        return True


def object_path(number: int, first: int) -> str:
    return f"{EVENTS}/{number:06d}-{first:09d}.jsonl"


def line_of(event: Mapping[str, Any]) -> str:
    """An event as a line of JSON, which has no number for what is not finite."""
    kept = {name: value for name, value in event.items() if name not in BULKY}
    steps = summed_up(event.get("steps", [])) if event["kind"] == "steps" else {}
    return json.dumps(_finite({**kept, **steps})) + "\n"


def summed_up(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What stays of the steps of an interval: means and largest values of those that have finite ones."""
    if not steps:
        return {}
    out: dict[str, Any] = {"first_step": steps[0]["step"], "learning_rate": steps[-1].get("learning_rate")}
    for name in ("loss", "grad_norm"):
        values = [step[name] for step in steps if math.isfinite(step.get(name, math.nan))]
        out |= {name: sum(values) / len(values), f"{name}_max": max(values)} if values else {}
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(run: Store) -> list[dict[str, Any]]:
    """Every event of the run that is in storage, by driver and then as it came; [] for a run without any."""
    paths = [entry.path for entry in run.list(EVENTS)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return [json.loads(line) for data in pool.map(run.read, paths) for line in data.splitlines()]
