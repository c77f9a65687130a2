"""A worker is killed before your eyes, and the batches are the same: about two minutes on 2 cores.

    python -m tests.faults.demo_crash        (make demo-crash)

Trains a small model with two workers, kills one with SIGKILL in mid-training, lets the run finish, and then derives
every step again from the raw text, in one process, without anything that the run has curated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.e2e.head import REPOSITORY, tiny_config, two_sources

STEPS, KILL_AFTER = 120, 45


def trainers(driver: int) -> list[psutil.Process]:
    """The trainer processes under a driver that started its own cluster."""
    return [p for p in psutil.Process(driver).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def train(config: Path) -> int:
    """Run it, its terminal shown; one trainer is killed when step KILL_AFTER is done."""
    command = [sys.executable, "-m", "pipelines.pretrain", "--config", str(config), "run.name=crash"]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    run = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True)
    killed = False
    assert run.stdout is not None
    for line in run.stdout:
        print(line, end="", flush=True)
        if not killed and f"step {KILL_AFTER:>6}/" in line:
            victim = trainers(run.pid)[0]
            victim.kill()
            killed = True
            print(f"\n>>> SIGKILL to trainer {victim.pid}, in the middle of step {KILL_AFTER + 1} or so\n", flush=True)
    assert killed, "the run ended before the kill"
    return run.wait()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="demo-crash-") as name:
        folder = Path(name)
        every = {"checkpoint": 20, "validate": STEPS, "sample": STEPS, "log": 5}
        train_fields = {"steps": STEPS, **{f"{what}_every_steps": steps for what, steps in every.items()}}
        config = tiny_config(folder, two_sources(folder / "corpus"), train=train_fields)
        if code := train(config):
            return code
        print("\n>>> Every step is derived again from the raw text and compared with what was trained:\n", flush=True)
        verify = [sys.executable, "-m", "pipelines.verify", str(folder / "runs/crash"), "--recompute", f"0:{STEPS}"]
        return subprocess.run(verify, cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
