"""Kills from outside while a run trains: the same batches in the same order, each once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.head import REPOSITORY, Head, Result, pipeline, tiny_config, two_sources

STEPS = 120


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    train = {"steps": STEPS, "checkpoint_every_steps": 20, "validate_every_steps": 60, "sample_every_steps": STEPS}
    data = {"sources": two_sources(folder / "corpus")}
    return tiny_config(folder, data["sources"], train={**train, "log_every_steps": 5})


@pytest.fixture(scope="module")
def undisturbed(head: Head, config: Path) -> Result:
    result = pipeline("pretrain", "--config", str(config), "run.name=undisturbed", env=head.env)
    assert result.code == 0, result.out + result.err
    return result


def begin(head: Head, config: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.pretrain", "--config", str(config), f"run.name={name}"],
        env={**os.environ, **head.env}, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], step: int, seen: list[str]) -> None:
    """Read the terminal until training is past a step, so that a kill hits it in mid-work."""
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        words = line.split()
        if len(words) > 2 and words[1] == "step" and int(words[2].split("/")[0].replace(",", "")) >= step:
            return
    raise AssertionError("the run ended before the kill:\n" + "".join(seen))


def train_workers(head: Head) -> list[psutil.Process]:
    """Trainer processes of this head."""
    found = []
    for process in psutil.Process(head.process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def train_with_a_kill(head: Head, config: Path, name: str, step: int) -> dict[str, Any]:
    """The summary of a run of two workers, of which one is killed after a step."""
    process, seen = begin(head, config, name), []
    wait_for_step(process, step, seen)
    victims = train_workers(head)
    assert len(victims) == 2
    victims[1].kill()
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, "".join(seen) + out + err
    summary = json.loads(Path(out.strip().splitlines()[-1]).read_text())
    assert summary["restarts"] >= 1
    return summary


def audit(config: Path, name: str) -> dict[int, str]:
    paths = sorted((config.parent / "runs" / name / "audit").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {line["step"]: line["digest"] for line in lines}


@pytest.mark.slow
def test_killed_trainer_resumes_with_the_same_batches(head: Head, config: Path, undisturbed: Result) -> None:
    summary = train_with_a_kill(head, config, "worker-killed", step=30)
    assert summary["status"] == "completed"
    assert summary["order_digest"] == undisturbed.summary["order_digest"]
    assert audit(config, "worker-killed") == audit(config, "undisturbed")


def leave_a_crash_between_upload_and_commit(run: Path) -> Path:
    """Files of a larger worker group in the next checkpoint's folder, and half of the list of what is committed."""
    snapshot = run / "checkpoints/checkpoint_manager_snapshot.json"
    newest = json.loads(snapshot.read_text())["latest_checkpoint_result"]["metrics"]["step"]
    planted = run / f"checkpoints/step-{newest + 10:09d}-a000000"
    planted.mkdir()
    (planted / "__9_0.distcp").write_bytes(b"of a rank that the next worker group does not have")
    snapshot.write_text(snapshot.read_text()[:100])
    return planted


@pytest.mark.slow
def test_killed_driver_and_the_same_command_again(head: Head, config: Path, undisturbed: Result) -> None:
    process, seen = begin(head, config, "driver-killed"), []
    wait_for_step(process, 30, seen)
    process.kill()
    process.wait(300)
    deadline = time.time() + 60
    while train_workers(head) and time.time() < deadline:
        time.sleep(0.5)
    planted = leave_a_crash_between_upload_and_commit(config.parent / "runs/driver-killed")
    again = pipeline("pretrain", "--config", str(config), "run.name=driver-killed", env=head.env)
    assert again.code == 0, again.out + again.err
    assert "a crash tore the list of checkpoints" in again.out and not (planted / "__9_0.distcp").exists()
    assert again.summary["order_digest"] == undisturbed.summary["order_digest"]
    assert audit(config, "driver-killed") == audit(config, "undisturbed")


@pytest.mark.slow
def test_stop_signal_saves_and_the_same_command_continues(head: Head, config: Path, undisturbed: Result) -> None:
    process, seen = begin(head, config, "stopped"), []
    wait_for_step(process, 30, seen)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, "".join(seen) + out + err
    stopped = json.loads(Path(out.strip().splitlines()[-1]).read_text())
    assert stopped["status"] == "stopped" and 30 <= stopped["steps"] < STEPS
    again = pipeline("pretrain", "--config", str(config), "run.name=stopped", env=head.env)
    assert again.code == 0 and again.summary["order_digest"] == undisturbed.summary["order_digest"]


@pytest.mark.slow
def test_killed_trainer_of_an_exact_run_leaves_the_same_weights(head: Head, tmp_path: Path) -> None:
    """Bit for bit those of one worker that nothing happened to."""
    train = {"exact": True, "steps": 60, "checkpoint_every_steps": 10, "validate_every_steps": 60, "log_every_steps": 1}
    config = tiny_config(tmp_path, two_sources(tmp_path / "corpus"), train=train, model={"dropout": 0.1})
    arguments = ("--config", str(config), "run.name=alone", "train.num_workers=1")
    alone = pipeline("pretrain", *arguments, env=head.env)
    summary = train_with_a_kill(head, config, "killed", step=25)
    assert len(summary["weights_sha256"]) == 64
    assert summary["weights_sha256"] == alone.summary["weights_sha256"]
