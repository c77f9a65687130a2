"""Poison shards: content that kills its reader is left out by a verdict that is written down, and the run goes on.

    <ledger>/quarantine/<unit>/try-<id>     a process began to read the unit
    <ledger>/quarantine/<unit>/stop-<n>     a verdict: what is left out, and why

A reader gives a damaged record as a dead letter; this is for what no reader survives: a crash in compiled code, more
memory than the node has, a loop without an end. Such content takes its process with it, so each process that begins a
unit leaves a mark first. A unit that was begun `data.max_shard_failures` times is read by a **probe**, a process of its
own that tells after each record how far it is. Only if the probe fails at one place twice is that place the verdict: a
unit whose readers died with their nodes is read as ever. Errors of storage are no content and give no verdict.

Where reading fails, the rest of the shard is left out; where curation of a document fails, that document. The verdict
is durable before anything is read by it, so every later start and every epoch reads the same; where a clock or a memory
limit decided, it counts as input from then on (P1).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pretrainer.data.ledger.ledger import Ledger
from pretrainer.data.plan import SourcePlan
from pretrainer.data.readers.reading import Stop
from pretrainer.errors import StreamError

PROBE_SILENCE_S = 120.0
"""A probe that reads no further record for so long hangs."""
START_TIMES = 10
"""It may take so many times as long to begin."""
FAILED, CANNOT_TELL = 11, 12
"""Exit codes of the probe: the content failed with an exception; storage or the config did."""
POLL_S = 0.1


class Quarantine:
    """Marks and verdicts of one unit."""

    def __init__(self, ledger: Ledger, unit: int) -> None:
        self._root, self._folder = ledger.root, f"quarantine/{unit:09d}"
        names = [path.rsplit("/", 1)[-1] for path, _size, _version in self._root.list(self._folder)]
        self._marks = [f"{self._folder}/{name}" for name in names if name.startswith("try-")]
        self.stops = tuple(self._read(name) for name in sorted(names) if name.startswith("stop-"))

    def begin(self) -> None:
        """Leave a mark; call it before the content is touched."""
        self._marks.append(f"{self._folder}/try-{uuid.uuid4().hex}")
        self._root.create(self._marks[-1], b"")

    def end(self) -> None:
        """The unit was read to its end: it needs no marks, those of earlier processes included."""
        for mark in self._marks:
            self._root.delete(mark)

    def is_suspect(self, max_failures: int) -> bool:
        """Whether a probe must read the unit: it was begun so many times since the last verdict."""
        return len(self._marks) >= max_failures * (len(self.stops) + 1)

    def add_if(self, stop: Stop | None) -> bool:
        """Write a verdict down, if there is one. Another process may have come to it too; StorageError if not to it."""
        if stop is None:
            return False
        name = f"stop-{len(self.stops):03d}"
        self._root.create(f"{self._folder}/{name}", json.dumps(stop._asdict(), sort_keys=True).encode())
        self.stops = (*self.stops, stop)
        return True

    def _read(self, name: str) -> Stop:
        return Stop(**json.loads(self._root.read(f"{self._folder}/{name}")))


def probe_unit(plan: SourcePlan, unit: int, stops: tuple[Stop, ...]) -> Stop | None:
    """The place in a unit that two probes die at, or None if one of them comes through; stops are left out already."""
    first = _probe(plan, unit, stops)
    return first if first is not None and _probe(plan, unit, stops) == first else None


def _probe(plan: SourcePlan, unit: int, stops: tuple[Stop, ...]) -> Stop | None:
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        place, task = Path(folder, "place"), Path(folder, "task")
        place.write_bytes(b"")
        task.write_bytes(pickle.dumps((plan, unit, stops)))  # of ours, for a process of ours
        log = Path(folder, "log").open("w+b")
        command = [sys.executable, "-m", "pretrainer.data.probe", str(task), str(place)]
        with log, subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as process:
            ended = _wait(process, place)
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()
        if process.returncode in (0, CANNOT_TELL) or not place.read_bytes():
            return None
        cause = _cause(process.returncode, said) if ended else f"no further record was read in {PROBE_SILENCE_S:g} s"
        piece, row, is_rest = json.loads(place.read_bytes())
        return Stop(piece, row, is_rest, cause)


def _wait(process: subprocess.Popen[bytes], place: Path) -> bool:
    """Whether it ended by itself; it is killed when its place has not changed for too long.

    Before it has told the first one it is starting, which may take minutes on a busy node and says nothing of content.
    """
    seen, since_s = place.read_bytes(), time.monotonic()
    while process.poll() is None:
        now = place.read_bytes()
        if now != seen:
            seen, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > PROBE_SILENCE_S * (1 if seen else START_TIMES):
            process.kill()
            process.wait()
            return False
        time.sleep(POLL_S)
    return True


def _cause(code: int, said: list[str]) -> str:
    if code == FAILED:
        return said[-1] if said else "an exception"
    if code < 0:
        return f"its reader was killed by {signal.Signals(-code).name}"
    raise StreamError(f"a probe ended with code {code}: {' '.join(said[-3:])}")


def progress_to(path: str) -> Callable[[int, int, bool], None]:
    """Writes what would be the verdict over the beginning of a file, without a buffer: the process may die any time."""
    file = os.open(path, os.O_WRONLY)

    def tell(piece: int, row: int, is_rest: bool) -> None:
        os.pwrite(file, json.dumps([piece, row, is_rest]).ljust(64).encode(), 0)

    return tell
