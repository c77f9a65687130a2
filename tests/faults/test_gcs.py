"""With its state in Redis, Ray's control store may die while a run trains: the run goes on and nothing is lost.

    python -m pytest -q -m "" tests/faults/test_gcs.py

It needs the program `redis-server`, which Debian has as a package of that name.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.head import free_port, tiny_config, two_sources
from tests.faults.chaos import Run, client_env, raylets

STEPS, KILL_AFTER = 120, 20
PASSWORD = "0123456789abcdef"


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Redis server with a password, and Ray told of it, as cluster/kuberay does it."""
    program, port = shutil.which("redis-server"), free_port()
    assert program, "install the program: apt-get install redis-server"
    process = subprocess.Popen(
        [program, "--port", str(port), "--requirepass", PASSWORD, "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert process.poll() is None
        time.sleep(0.1)
    monkeypatch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{port}")
    yield
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_control_store_dies_and_the_run_goes_on(redis: None, tmp_path: Path) -> None:
    train = {"steps": STEPS, "checkpoint_every_steps": 20, "validate_every_steps": STEPS, "sample_every_steps": STEPS}
    sources = [{**source, "max_epochs": 12} for source in two_sources(tmp_path / "corpus")]
    config = tiny_config(tmp_path, sources, train=train)
    with raylets(1, num_cpus=4, redis_password=PASSWORD) as cluster:
        undisturbed = Run(config, "undisturbed", client_env(cluster))
        expected = undisturbed.finish()
        run = Run(config, "disturbed", client_env(cluster))
        try:
            run.wait(lambda: run.steps_seen() and run.steps_seen()[-1] >= KILL_AFTER, f"step {KILL_AFTER}")
            cluster.head_node.kill_gcs_server()
            time.sleep(5)
            cluster.head_node.start_gcs_server()
            at = run.steps_seen()[-1]
            summary = run.finish()
        finally:
            run.stop()
    assert at < STEPS, "the control store was gone while the run trained"
    assert summary["status"] == "completed" and summary["order_digest"] == expected["order_digest"]
    assert run.digests() == undisturbed.digests() and summary["restarts"] == 0
