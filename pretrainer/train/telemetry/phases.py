"""What a rank is doing right now, and for how long it did what: for the watchdog and for goodput.

`enter` is an assignment and a clock reading, so the loop may call it at every block. A thread tells the recorder the
current phase every `period_s`: it never blocks a step, and its silence means that the process itself stands still.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PERIOD_S = 5.0
PERIODS_PER_STALL = 10.0


def pulse_period_s(stall_timeout_s: float) -> float:
    """Seconds between two pulses of a rank: some within the time that makes a stall, none more often than needed."""
    return min(PERIOD_S, stall_timeout_s / PERIODS_PER_STALL) if stall_timeout_s else PERIOD_S


def process_age_s() -> float:
    """Seconds since this process was started, before its imports; since the first import where there is no /proc."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.perf_counter() - _IMPORTED_S
    return up_s - ticks / os.sysconf("SC_CLK_TCK")


_IMPORTED_S = time.perf_counter()


class Phases:
    """The phase of one rank. Phases: start, load, data, agree, step, validate, evaluate, sample,
    checkpoint, resize.

    `tell` gets a dict now and then (from a thread of its own): rank, world, pid, node, phase, step, block, changes.
    """

    def __init__(
        self, rank: int, world: int, pid: int, node: str, tell: Callable[[dict[str, Any]], object], period_s: float
    ) -> None:
        self.who = {"rank": rank, "world": world, "pid": pid, "node": node}
        self.now: dict[str, Any] = {"phase": "start", "step": 0, "block": None, "changes": 0, "begun": False}
        self._tell, self._period_s, self._ended = tell, period_s, threading.Event()
        self._since_s, self._seconds = time.perf_counter(), defaultdict[str, float](float)
        self._thread = threading.Thread(target=self._pulse, name="phases", daemon=True)

    def begin(self) -> Phases:
        self._thread.start()
        return self

    def enter(self, phase: str, step: int, block: int | None = None) -> None:
        """The rank does something else from now on: `block` is the slot block that it waits for, if it does."""
        self._count()
        begun = self.now["begun"] or self.now["phase"] == "step"
        self.now = {"phase": phase, "step": step, "block": block, "changes": self.now["changes"] + 1, "begun": begun}

    def hide(self, hidden_s: float) -> None:
        """So many seconds of the waits that have just ended cost nothing: the device was still at the step before."""
        for phase in ("data", "agree"):
            seconds = min(hidden_s, self._seconds[phase])
            self._seconds[phase] -= seconds
            self._seconds["step"] += seconds
            hidden_s -= seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last `take`; the current phase goes on."""
        self._count()
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def end(self) -> None:
        self._ended.set()

    def _count(self) -> None:
        now_s = time.perf_counter()
        self._seconds[self.now["phase"]] += now_s - self._since_s
        self._since_s = now_s

    def _pulse(self) -> None:
        while True:
            try:
                self._tell({**self.who, **self.now})
            except Exception as error:  # a lost recorder is the loop's to report: this thread only stays quiet
                log.warning("the phase of rank %d was not told: %r", self.who["rank"], error)
            if self._ended.wait(self._period_s):
                return
