"""Ray's own autoscaler under an elastic job: see cluster_demo.py.

python -m pytest -q -m "" tests/faults/test_cluster_demo.py
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.head import BIN, REPOSITORY, free_port
from tests.faults.cluster_demo import demo, local_start


def test_the_config_is_one_that_ray_s_autoscaler_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    start = local_start()
    config = prepare_config(start.autoscaling_config("127.0.0.1:1", max_nodes=3, node_cpus=2, idle_minutes=1))
    validate_config(config)
    node = config["available_node_types"]["node"]
    assert (node["min_workers"], node["max_workers"], node["resources"]["CPU"]) == (0, 3, 2)
    assert config["available_node_types"]["ray.head.default"]["resources"]["CPU"] == 0, "nothing runs on the head"


ASK = """
import ray
ray.init(logging_level=40)
ask = ray.remote(num_cpus=1)(lambda: ray.get_runtime_context().get_assigned_resources())
print("ran on a node with", ray.get(ask.remote()))
"""


def test_the_local_cluster_grows_from_nothing_for_a_job_and_back(tmp_path: Path) -> None:
    """As its file says: started, its line of exports taken over, a job submitted, ended with Ctrl-C."""
    command = [sys.executable, str(REPOSITORY / "cluster/local/start.py"), "--max-nodes", "1", "--idle-minutes", "0.05"]
    port = ["--dashboard-port", str(free_port())]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            ["bash", "-c", 'trap "" INT; exec "$@"', "begun in the background", *command, *port],
            stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        line = waited(lambda: re.search(r"^export (.*)$", (tmp_path / "said").read_text(), re.MULTILINE), process)
        told = dict(word.split("=", 1) for word in line[1].split())
        cluster = local_start().LocalCluster(process, told["RAY_ADDRESS"], told["RAY_API_SERVER_ADDRESS"])
        assert not cluster.nodes() and Path(told["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o077 == 0
        submit = [str(BIN / "ray"), "job", "submit", "--", "python", "-c", ASK]
        refused = subprocess.run(submit, env={**os.environ, **told, "RAY_AUTH_MODE": "disabled"}, capture_output=True)
        assert refused.returncode != 0 and not cluster.nodes()
        done = subprocess.run(submit, env={**os.environ, **told}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and "ran on a node with {'CPU': 1.0}" in done.stdout, done.stdout + done.stderr
        waited(lambda: not cluster.nodes(), process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0 and family and not any(child.is_running() for child in family)
        assert not Path(told["RAY_AUTH_TOKEN_PATH"]).exists()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


WANT = """
import time
import ray
from ray.autoscaler.sdk import request_resources
from pretrainer.train.elasticity.resize import AutoscalerRequest
ray.init(logging_level=40)
asking, most, deadline_s = AutoscalerRequest([1, 2, 8], patience_s=10), 0, time.monotonic() + 200
while most < 2 and time.monotonic() < deadline_s:
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    asked, most = asking.look(time.monotonic(), nodes), max(nodes, most)
    request_resources(bundles=[{"CPU": 1}] * asked)
    print(asked, nodes, flush=True)
    time.sleep(0.2)
"""


def test_a_request_that_no_cluster_can_hold_is_lowered_until_it_is_granted(tmp_path: Path) -> None:
    """Ray's autoscaler starts nothing for eight workers where it may start two: why AutoscalerRequest is there."""
    start = local_start().LocalCluster.start
    cluster = start(tmp_path, max_nodes=2, dashboard_port=free_port(), RAY_AUTH_MODE="disabled")
    try:
        environment = {**os.environ, "RAY_ADDRESS": cluster.gcs, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            [sys.executable, "-c", WANT], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
        )
        watching = [process for process in psutil.process_iter() if "log_monitor.py" in words(process)
                    and cluster.gcs in words(process)]  # fmt: skip
    finally:
        cluster.stop()
    assert len(watching) == 1, "all nodes write into one folder"
    seen = [tuple(map(int, line.split())) for line in done.stdout.splitlines() if re.fullmatch(r"\d+ \d+", line)]
    asked = list(dict.fromkeys(asked for asked, _nodes in seen))
    assert asked[:2] == [8, 2] and seen[-1] == (8, 2), done.stdout + done.stderr
    assert all(nodes == 0 for _asked, nodes in seen[: [asked for asked, _nodes in seen].index(2)])


def words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def waited(until: Callable[[], Any], process: subprocess.Popen[bytes], patience_s: float = 300) -> Any:
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        assert process.poll() is None
        if found := until():
            return found
        time.sleep(0.5)
    raise TimeoutError


@pytest.mark.slow
def test_an_autoscaled_training_loses_nodes_and_trains_the_same_batches(tmp_path: Path) -> None:
    run = demo(tmp_path, steps=110, most=3)
    page = (run.folder / "report/report.html").read_text()
    assert "workers" in page and "<svg" in page
