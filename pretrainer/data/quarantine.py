"""Poison content: what kills its reader is left out by a verdict that is written down, and the run goes on.

    <root>/quarantine/<task>/try-<id>     a process began the task
    <root>/quarantine/<task>/stop-<n>     a verdict: what is left out, and why

| task | root | what may be left out |
|---|---|---|
| a unit | ledger | reading and the stages before dedup: the rest of a shard, or a document |
| a chunk | ledger | the stages behind dedup and the tokenizer: a document |
| held_out | ledger | the tokenizer, of held-out documents: a document, from evaluation |
| a unit, held_out | `held_out.pilot_store` | what is read before the ledger has its name: the same |

A reader gives a damaged record as a dead letter; this is for what no reader survives: a crash in compiled code, more
memory than the node has, a loop without an end. Such content takes its process with it, so each process that begins a
task leaves a mark first. A task that was begun `data.max_shard_failures` times is done by a **probe**, a process of its
own that tells before each record how far it is. Only if the probe fails at one place twice is that place the verdict: a
task whose processes died with their nodes is done as ever. Errors of storage are no content and give no verdict.

The verdict is durable before anything is done by it, so every later start and every epoch reads the same; where a clock
or a memory limit decided, it counts as input from then on (P1). So does what the extractor's limits say of a page of
HTML (`readers.extract.BY_CLOCK`): it is written down as a verdict of its unit, with that reason.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pretrainer.data.readers.reading import Stop
from pretrainer.errors import PretrainerError, StreamError
from pretrainer.schema import QUARANTINED
from pretrainer.storage import Store

PROBE_SILENCE_S = 120.0
"""A probe that reads no further record for so long hangs."""
START_TIMES = 10
"""It may take so many times as long to begin."""
FAILED, CANNOT_TELL = 11, 12
"""Exit codes of the probe: the content failed with an exception; storage or the config did."""
POLL_S = 0.1
T = TypeVar("T")
Tell = Callable[[int, int, bool], None]
"""Told (piece, row, is_rest) of what would be the verdict, before the process does what it may die of."""
Attempt = Callable[[tuple[Stop, ...], Tell], None]
"""A task as a probe does it: without what the stops name, step by step. Goes to another process, so it must pickle."""


class Quarantine:
    """Marks and verdicts of one task: the number of a unit, or a name.

    Where an object `done` exists the content came through once, and what was made of it is durable: no verdict then.
    """

    def __init__(self, root: Store, task: int | str, done: str | None = None) -> None:
        self._root, self._done = root, done
        self._folder = f"quarantine/{task:09d}" if isinstance(task, int) else f"quarantine/{task}"
        names = [path.rsplit("/", 1)[-1] for path, _size, _version in self._root.list(self._folder)]
        self._marks = [f"{self._folder}/{name}" for name in names if name.startswith("try-")]
        self.stops = tuple(self._read(name) for name in sorted(names) if name.startswith("stop-"))

    def begin(self) -> None:
        """Leave a mark; call it before the content is touched."""
        self._marks.append(f"{self._folder}/try-{uuid.uuid4().hex}")
        self._root.create(self._marks[-1], b"")

    def end(self) -> None:
        """The task was done to its end: it needs no marks, those of earlier processes included."""
        for mark in self._marks:
            self._root.delete(mark)

    def is_suspect(self, max_failures: int) -> bool:
        """Whether a probe must do the task: it was begun so many times since the last verdict."""
        killers = [stop for stop in self.stops if stop.reason == QUARANTINED]
        return len(self._marks) >= max_failures * (len(killers) + 1)

    def add_if(self, stop: Stop | None) -> bool:
        """Write a verdict down, if there is a new one. Another process may have come to it; StorageError if not to it.

        What is left out already and kills all the same would be tried for ever.
        """
        if stop is None or stop[:3] in {each[:3] for each in self.stops}:
            return False
        if self._done is not None and self._root.exists(self._done):
            return False
        name = f"stop-{len(self.stops):03d}"
        self._root.create(f"{self._folder}/{name}", json.dumps(stop._asdict(), sort_keys=True).encode())
        self.stops = (*self.stops, stop)
        return True

    def _read(self, name: str) -> Stop:
        return Stop(**json.loads(self._root.read(f"{self._folder}/{name}")))


def guarded(
    quarantine: Quarantine, max_failures: int, attempt: Attempt, work: Callable[[tuple[Stop, ...]], Iterable[T]]
) -> Iterator[T]:
    """What a task gives without what its stops name; what kills it is one stop more. `attempt` is the same for a probe.

    After an exception `work` is called again, and must give what it has not given yet.
    """
    if quarantine.is_suspect(max_failures):
        quarantine.add_if(find_stop(attempt, quarantine.stops))
    quarantine.begin()
    while True:
        try:
            yield from work(quarantine.stops)
            return quarantine.end()
        except PretrainerError:
            raise
        except Exception:  # of content, perhaps: the probe finds out
            if not quarantine.add_if(find_stop(attempt, quarantine.stops)):
                raise


def is_left_out(docs: pa.Table, stops: Sequence[Stop]) -> np.ndarray:
    """[N] bool: whether stops by shard and row name a document (schema.DOCUMENTS)."""
    named = {(stop.piece, stop.row) for stop in stops}
    places = zip(docs.column("shard").to_pylist(), docs.column("row").to_pylist(), strict=True)
    return np.array([place in named for place in places], bool)


def find_stop(attempt: Attempt, stops: tuple[Stop, ...]) -> Stop | None:
    """The place that two probes die at, or None if one of them comes through; stops are left out already."""
    first = _probe(attempt, stops)
    return first if first is not None and _probe(attempt, stops) == first else None


def _probe(attempt: Attempt, stops: tuple[Stop, ...]) -> Stop | None:
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        place, task = Path(folder, "place"), Path(folder, "task")
        place.write_bytes(b"")
        task.write_bytes(pickle.dumps((attempt, stops)))  # of ours, for a process of ours
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


def progress_to(path: str) -> Tell:
    """Writes what would be the verdict over the beginning of a file, without a buffer: the process may die any time."""
    file = os.open(path, os.O_WRONLY)

    def tell(piece: int, row: int, is_rest: bool) -> None:
        os.pwrite(file, json.dumps([piece, row, is_rest]).ljust(64).encode(), 0)

    return tell
