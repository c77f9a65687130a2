"""`ray job submit -- python -m pipelines.pretrain`, literally, with token authentication off and on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.head import BIN, REPOSITORY, Head, tiny_config, two_sources


def submit(head: Head, *words: str, cwd: Path, timeout_s: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` with PATH set as in an activated virtual environment; waits for the job and its logs."""
    merged = {k: v for k, v in {**os.environ, **head.env, **env}.items() if k != "RAY_ADDRESS"}
    merged |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_API_SERVER_ADDRESS": head.dashboard}
    for _attempt in range(20):
        done = subprocess.run(["ray", "job", "submit", *words], env=merged, cwd=cwd, capture_output=True, text=True,
                              timeout=timeout_s, check=False)  # fmt: skip
        if "No available agent" not in done.stdout + done.stderr:  # the node's agent comes up after the dashboard
            break
        time.sleep(2)
    return done


def last_path(output: str) -> Path:
    """The last line of the driver that is the path of a summary."""
    return Path([line for line in output.splitlines() if line.endswith("summary.json")][-1])


@pytest.mark.slow
def test_job_with_working_dir_and_fields(head: Head, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, two_sources(tmp_path / "corpus"))
    done = submit(head, "--working-dir", ".", "--", "python", "-m", "pipelines.pretrain", "--config", str(config),
                  "run.name=job", "train.steps=3", cwd=REPOSITORY)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(last_path(done.stdout).read_text())["status"] == "completed"
    assert "succeeded" in done.stdout


def test_job_with_a_mistake_fails_with_its_message(head: Head, tmp_path: Path) -> None:
    done = submit(head, "--", "python", "-m", "pipelines.pretrain", "train.step=3", cwd=tmp_path)
    assert done.returncode != 0
    assert "train.steps" in done.stdout + done.stderr and "Traceback" not in done.stdout


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head that asks for a token, and the file with it."""
    folder = tmp_path_factory.mktemp("guarded")
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    head = Head.start(folder, cpus=4, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    yield head, token
    head.stop()


def test_literal_job_from_any_directory_with_token(guarded: tuple[Head, Path], tmp_path: Path) -> None:
    """The default config, the quickstart, shortened by the environment of nobody: the literal command, few steps."""
    head, token = guarded
    home = tmp_path / "home"
    home.mkdir()
    refused = submit(head, "--", "python", "-m", "pipelines.pretrain", cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    fields = ["train.steps=2", f"run.storage={home}"]
    fields += ["data.sources.0.max_bytes=1000000", "tokenizer.train_bytes=500000"]
    done = submit(head, "--", "python", "-m", "pipelines.pretrain", *fields, cwd=tmp_path, RAY_AUTH_MODE="token",
                  RAY_AUTH_TOKEN_PATH=str(token))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(last_path(done.stdout).read_text())
    assert summary["status"] == "completed" and summary["steps"] == 2
    assert token.read_text() not in done.stdout + done.stderr
