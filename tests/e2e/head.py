"""A `ray start --head` of the tests' own, and the pipelines run against it as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

PATIENT = {"idle_worker_killing_time_threshold_ms": 600_000}
"""For `_system_config`, as all targets have it. Ray would end readers that share a CPU after 1 s, and start others."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Head:
    """A running head node that asks for a token. `env` is what a client needs to talk to it."""

    port: int
    dashboard_port: int
    process: subprocess.Popen
    env: dict[str, str]

    @classmethod
    def start(cls, folder: Path, cpus: int, **env: str) -> Head:
        port, dashboard, token = free_port(), free_port(), folder / "auth_token"
        token.write_text(secrets.token_hex(32))
        merged = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            **{f"RAY_{name}": str(value) for name, value in PATIENT.items()},
            "PATH": f"{BIN}:{os.environ['PATH']}",  # jobs find `python` as on a node with the environment activated
            "PYTHONHASHSEED": "0",
            **env,
        }
        process = subprocess.Popen(
            [
                str(BIN / "ray"),
                "start",
                "--head",
                "--block",
                f"--port={port}",
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={free_port()}",  # the default collides with another head's
                f"--num-cpus={cpus}",
                "--object-store-memory=500000000",
                "--disable-usage-stats",
            ],
            env=merged,
            stdout=(folder / "head.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        head = cls(port, dashboard, process, {**merged, "RAY_ADDRESS": f"127.0.0.1:{port}"})
        head.wait()
        return head

    def wait(self, timeout_s: float = 90) -> None:
        """Until the dashboard's port answers: it comes last."""
        deadline = time.time() + timeout_s
        while time.time() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.dashboard_port)) == 0:
                    return
            assert self.process.poll() is None, "ray start --head ended at once"
            time.sleep(0.5)
        raise TimeoutError("the head's dashboard did not come up")

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def stop(self) -> None:
        """Kill the head and all that it started; asked politely, Ray takes 30 s and leaves agents of the dashboard."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)
        psutil.wait_procs(family, timeout=30)


@dataclass
class Result:
    """A finished pipeline."""

    code: int
    out: str
    err: str
    summary: dict[str, Any] = field(default_factory=dict)


def pipeline(
    name: str, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 900, cwd: Path = REPOSITORY
) -> Result:
    """Run `python -m pipelines.<name> arguments` and read the summary whose path is the last line of its output."""
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", *arguments],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return with_summary(Result(done.returncode, done.stdout, done.stderr))


def submit(head: Head, *words: str, cwd: Path, timeout_s: float = 900, **env: str) -> subprocess.CompletedProcess[str]:
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


def job(head: Head, name: str, *arguments: str, cwd: Path) -> Result:
    """`ray job submit -- python -m pipelines.<name> arguments`: the job's exit, what its driver said, its summary."""
    done = submit(head, "--", "python", "-m", f"pipelines.{name}", *arguments, cwd=cwd)
    said = "".join(line for line in done.stdout.splitlines(True) if not SAID_BY_RAY.match(line))
    return with_summary(Result(done.returncode, said, done.stderr))


SAID_BY_RAY = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\t(INFO|SUCC|ERR) |Running entrypoint for job")


def with_summary(result: Result) -> Result:
    """The result with the summary whose path is the last line, if it is one."""
    last = result.out.strip().splitlines()[-1] if result.out.strip() else ""
    if last.endswith("summary.json") and Path(last).exists():
        result.summary = json.loads(Path(last).read_text())
    return result


IN_TURN = """
import contextlib, importlib, io, json, sys
from pipelines.driver.cli import run_main
main = importlib.import_module("pipelines." + sys.argv[1]).main
for arguments in json.load(sys.stdin):
    sys.argv[1:], out, err = arguments, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_main(main)
        except SystemExit as end:
            code = end.code
    print("told", json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def in_turn(name: str, commands: Sequence[Sequence[str]], env: dict[str, str], timeout_s: float = 900) -> list[Result]:
    """What `python -m pipelines.<name> arguments` says for each of these arguments, from one process."""
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, name], input=json.dumps(commands), env={**os.environ, **env}, cwd=REPOSITORY,
        capture_output=True, text=True, timeout=timeout_s, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    told = [line.removeprefix("told ") for line in done.stdout.splitlines() if line.startswith("told ")]
    return [Result(*json.loads(line)) for line in told]


def corpus(folder: Path, documents: int = 160, characters: int = 2500) -> Path:
    """JSONL of standard-library code, with an exact and a near duplicate and one broken line."""
    import sysconfig

    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = [
        text[i : i + characters]
        for path in files
        for text in [path.read_text(encoding="utf-8", errors="replace")]
        for i in range(0, 5000 if documents <= 160 else 20_000, characters)
        if len(text) >= i + characters and len(text) > 5000
    ][:documents]
    assert len(code) == documents
    code[40], code[60] = code[10], code[11] + "\n# changed at its end\n"
    size = documents // 4
    for start in range(0, len(code), size):
        lines = [
            json.dumps({"text": text, "id": f"doc-{start + n}"}) for n, text in enumerate(code[start : start + size])
        ]
        (folder / f"part-{start * 160 // documents:03d}.jsonl").write_text("\n".join(lines) + "\n")
    broken = folder / "part-040.jsonl"
    broken.write_text(broken.read_text() + '{"text": "no end\n')
    return folder


def tiny_config(folder: Path, sources: list[dict[str, Any]], **sections: dict[str, Any]) -> Path:
    """A config of seconds: a model of a few thousand parameters, six steps of eight slot blocks."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "storage": str(folder / "runs")},
        "data": {
            "sources": sources,
            "seq_len": 32,
            "slot_sequences": 2,
            "pack_window_tokens": 4096,
            "chunk_bytes": 16_384,
            "held_out_share": 0.1,
            "held_out_chunks": 2,
            "held_out_max_tokens": 1024,
            "mix_cycle": 8,
            "read_cpus": 0.15,
            "look_ahead_chunks": 4,
        },
        "tokenizer": {"vocab_size": 600, "train_bytes": 100_000},
        "model": {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1},
        "train": {
            "num_workers": 2,
            "steps": 6,
            "global_batch_tokens": 512,
            "cpus_per_worker": 0.25,
            "threads_per_worker": 1,
            "warmup_steps": 2,
            "learning_rate": 0.01,
            "checkpoint_every_steps": 3,
            "validate_every_steps": 3,
            "sample_every_steps": 6,
            "log_every_steps": 1,
        },
    }
    for name, changes in sections.items():
        values.setdefault(name, {}).update(changes)
    path = folder / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def two_sources(folder: Path, documents: int = 160, characters: int = 2500) -> list[dict[str, Any]]:
    """The corpus as two sources with shares 3 : 1."""
    corpus(folder, documents, characters)
    return [
        {
            "name": "early",
            "uris": [f"{folder}/part-000.jsonl", f"{folder}/part-040.jsonl"],
            "preset": "code",
            "share": 0.75,
            "id_column": "id",
            "max_epochs": 3,
        },
        {
            "name": "late",
            "uris": [f"{folder}/part-080.jsonl", f"{folder}/part-120.jsonl"],
            "preset": "code",
            "share": 0.25,
            "id_column": "id",
            "max_epochs": 3,
        },
    ]


def hard_config(folder: Path, steps: int, documents: int = 160, **sections: dict[str, Any]) -> Path:
    """Everything at once that could disturb an order, small: two mixed sources of many chunks each with duplicates,
    best-fit packing, shuffled windows, two segments with other shares and another sequence length, chunk borders
    inside steps, 8 slot blocks per step.

    An epoch of a source has about 170 tokens for each of the documents.
    """
    sources = [{**source, "max_epochs": 16} for source in two_sources(folder / "corpus", documents, characters=700)]
    data = {
        "packing": "best_fit",
        "pack_window_tokens": 8192,
        "chunk_bytes": 1024,
        "slot_sequences": 4,
        "curriculum": [{"until": 0.5, "shares": [0.75, 0.25]}, {"until": 1.0, "shares": [0.25, 0.75], "seq_len": 64}],
    }
    train = {"steps": steps, "global_batch_tokens": 1024, "cpus_per_worker": 0.2, "checkpoint_every_steps": 10}
    ours = {"data": data, "train": train}
    return tiny_config(folder, sources, **{k: ours.get(k, {}) | sections.get(k, {}) for k in {**ours, **sections}})
