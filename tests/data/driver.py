"""Ray drivers of tests: scripts on plain Ray that print what they saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.head import Head

TIMEOUT_S = 600.0
PRELUDE = """
import json, os, threading, time, pyarrow as pa, ray, ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions
ray.init(logging_level=40, log_to_driver=False)
context = DataContext.get_current()
context.enable_progress_bars = False
context.execution_options = ExecutionOptions(preserve_order=True)

def rows(n):
    return ray.data.from_items([{"n": n}], override_num_blocks=1)

def count_up(table):
    for i in range(table.column("n")[0].as_py()):
        yield pa.table({"i": [i]})

def split(ds, world, equal):
    out = [[] for _ in range(world)]
    def read(rank, shard):
        for table in shard.iter_batches(batch_size=None, batch_format="pyarrow"):
            out[rank].append(table.column("i").to_pylist())
    threads = [threading.Thread(target=read, args=(r, s)) for r, s in enumerate(ds.streaming_split(world, equal=equal))]
    [t.start() for t in threads]; [t.join() for t in threads]
    return out
"""


SERVER = """
import sys
fresh = context.copy()
for line in sys.stdin:
    DataContext._set_current(fresh.copy())
    exec(json.loads(line), {**globals(), "context": DataContext.get_current()})
    print("done", flush=True)
"""


class Driver:
    """One Ray driver that runs script after script, each with a data context of its own: to begin one takes seconds."""

    def __init__(self, head: Head, errors: Path) -> None:
        self.errors = errors
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PRELUDE + SERVER], env={**os.environ, **head.env}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip

    def saw(self, script: str) -> Any:
        """What the script prints last."""
        assert self.process.stdin and self.process.stdout
        late = threading.Timer(TIMEOUT_S, self.process.kill)
        late.start()
        self.process.stdin.write(json.dumps(script) + "\n")
        self.process.stdin.flush()
        told = list(self._lines())
        late.cancel()
        return json.loads(told[-1])

    def _lines(self) -> Iterator[str]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line == "done\n":
                return
            if line.strip() and "(raylet)" not in line:  # the raylet may say on standard output that an actor was ended
                yield line
        raise AssertionError(self.errors.read_text()[-3000:])


def saw_alone(head: Head, script: str) -> Any:
    """What a driver of its own prints last, for a script that ends its process."""
    done = subprocess.run([sys.executable, "-c", PRELUDE + script], env={**os.environ, **head.env}, capture_output=True,
                          text=True, timeout=TIMEOUT_S, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line.strip() and "(raylet)" not in line]
    return json.loads(told[-1])
