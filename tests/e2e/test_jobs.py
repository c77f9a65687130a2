"""`ray job submit -- python -m pipelines.pretrain`, literally, on a cluster that asks for a token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.head import REPOSITORY, Head, pipeline, submit, tiny_config, two_sources


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


def answer(url: str, token: str | None) -> int:
    """Status code of a request for this page."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_nothing_is_told_or_taken(head: Head, tmp_path: Path) -> None:
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"])
    for page in ("/api/jobs/", "/nodes?view=summary", "/api/v0/actors"):
        assert answer(head.dashboard + page, None) == 401, page
        assert answer(head.dashboard + page, "f" * 32) in (401, 403), page
        assert answer(head.dashboard + page, token.read_text()) == 200, page
    refused = submit(head, "--", "python", "-m", "pipelines.pretrain", cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0 and "submitted" not in refused.stdout
    done = pipeline("pretrain", "--dry-run", env={**head.env, "RAY_AUTH_MODE": "disabled"})
    assert done.code == 2 and "refused this client" in done.err and "RAY_AUTH_MODE is disabled" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow  # in the default run a job trains a smaller model: the reference of conftest.py
def test_literal_job_from_any_directory(head: Head, tmp_path: Path) -> None:
    """The default config, the quickstart, and few steps of it."""
    home = tmp_path / "home"
    home.mkdir()
    fields = ["train.steps=2", f"run.storage={home}"]
    fields += ["data.sources.0.max_bytes=1000000", "tokenizer.train_bytes=500000"]
    done = submit(head, "--", "python", "-m", "pipelines.pretrain", *fields, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(last_path(done.stdout).read_text())
    assert summary["status"] == "completed" and summary["steps"] == 2
    assert Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text() not in done.stdout + done.stderr
