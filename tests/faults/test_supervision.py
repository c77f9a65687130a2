"""Workers that hang and failures that get nowhere: real processes, disturbed from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.head import Head, pipeline, tiny_config, two_sources
from tests.faults.chaos import Run
from tests.faults.test_kill import train_workers

STEPS = 80


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervision")
    every = {"checkpoint": 20, "validate": STEPS, "sample": STEPS, "log": 2}
    train = {"steps": STEPS, **{f"{what}_every_steps": steps for what, steps in every.items()}}
    return tiny_config(folder, two_sources(folder / "corpus"), train=train)


@pytest.fixture
def start(head: Head, config: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(name: str, *arguments: str) -> Run:
        runs.append(Run(config, name, head.env, *arguments))
        return runs[-1]

    yield begin
    for run in runs:
        run.stop()


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_and_the_run_goes_on(
    head: Head, config: Path, start: Callable[..., Run]
) -> None:
    undisturbed = pipeline("pretrain", "--config", str(config), "run.name=undisturbed", env=head.env)
    run = start("stopped-rank", "train.stall_timeout_s=10")
    run.wait(lambda: run.steps_seen() and run.steps_seen()[-1] >= 26, "step 26")
    victim = train_workers(head)[1]
    os.kill(victim.pid, signal.SIGSTOP)
    stalled = run.wait_for("stalled: ")
    assert "rank" in stalled and "restart from the last checkpoint" in stalled
    summary = run.finish()
    assert summary["status"] == "completed" and summary["restarts"] == 1
    assert summary["order_digest"] == undisturbed.summary["order_digest"]
    assert sum(summary["goodput"]["share"].values()) == pytest.approx(1)
    assert summary["goodput"]["share"]["recovery"] > 0 and summary["goodput"]["share"]["useful"] > 0


@pytest.mark.slow
def test_failures_without_a_new_checkpoint_end_the_run(head: Head, start: Callable[..., Run]) -> None:
    run = start("circle", "train.max_failures=1", "train.checkpoint_every_steps=80")
    for number in (1, 2):
        seen = len(run.text())
        run.wait(lambda: len(train_workers(head)) == 2, "two trainers")
        run.wait_for("workers begin at step", seen if number == 2 else 0)
        for worker in train_workers(head):
            worker.kill()
        run.wait(lambda: not train_workers(head), "the trainers to be gone") if number == 1 else None
    assert run.process.wait(600) == 1
    assert "failed 2 times without a new checkpoint" in run.text() and "train.max_failures" in run.text()
