"""Kernels are compiled once on a machine, however many processes begin at once.

    python -m pytest -q tests/data/test_compiled.py
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrainer.data import compiled

PROCESSES = 3
BEGIN = """
import sys, time, numpy as np
from pathlib import Path
from pretrainer.data import compiled
from pretrainer.data.dedup import minhash
go, ready = Path(sys.argv[1]), Path(sys.argv[2])
ready.touch()
while not go.exists(): time.sleep(0.001)
minhash.hash_words(np.frombuffer(b"some words", np.uint8), 0, 10, np.zeros(70_000, np.uint8), np.zeros(9, np.uint64),
                   np.zeros(0, np.int64))
print(sum(minhash.hash_words.stats.cache_misses.values()), sum(minhash.hash_words.stats.cache_hits.values()))
"""


def test_one_process_compiles_and_the_others_load(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    go, ready = tmp_path / "go", [tmp_path / f"ready-{n}" for n in range(PROCESSES)]
    started = [
        subprocess.Popen([sys.executable, "-c", BEGIN, str(go), str(here)], env=env, stdout=subprocess.PIPE, text=True)
        for here in ready
    ]
    deadline_s = time.monotonic() + 120
    while not all(here.exists() for here in ready):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    go.touch()
    seen = sorted(process.communicate(timeout=120)[0].strip() for process in started)
    assert seen == ["0 1"] * (PROCESSES - 1) + ["1 0"]


def test_a_lock_that_cannot_be_had_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled._taken(tmp_path / "no folder" / "kernel.lock") is None
    monkeypatch.setattr(compiled, "LOCK_PATIENCE_S", 0.1)
    path = tmp_path / "kernel.lock"
    first = compiled._taken(path)
    assert first is not None and compiled._taken(path) is None, "somebody holds it for too long"
    os.close(first)
    again = compiled._taken(path)
    assert again is not None
    os.close(again)

    def unsupported(descriptor: int, how: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert compiled._taken(path) is None


def test_a_kernel_may_call_itself(tmp_path: Path) -> None:
    calls: list[int] = []

    def compile_for(depth: int) -> int:
        calls.append(depth)
        return alone(depth - 1) if depth else len(calls)

    alone = compiled._by_one_process(compile_for, tmp_path / "kernel.lock")
    assert alone(2) == 3 and not compiled._held
