"""A cluster that grows and shrinks on this machine: a head that runs nothing, and nodes that Ray's autoscaler starts.

It starts them when a job asks for them and ends them when nobody does. Every node is a real raylet; only the machine is
the same.

    python cluster/local/start.py [--max-nodes 3] [--node-cpus 1] [--idle-minutes 1]

Nobody joins it or submits to it without its token, which lives as long as the cluster. It prints a line that begins
with `export`: paste it in another terminal, and then

    ray job submit -- python -m pipelines.pretrain "train.num_workers=[1,3]" train.cpus_per_worker=0.5 \
        cluster.autoscaling=true cluster.shared_storage=true

Ctrl-C ends the cluster and all of its nodes. Nothing here is for production: see cluster/README.md for that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # what Ray's simulated provider takes for the head
STORE_BYTES = 150_000_000  # of a node's object store
ENDING = (signal.SIGINT, signal.SIGTERM)


def autoscaling_config(gcs: str, max_nodes: int, node_cpus: int, idle_minutes: float) -> dict[str, Any]:
    """What `ray start --autoscaling-config` takes.

    Ray ships a provider that simulates nodes, but not the example that its own AutoscalingCluster reads (2.56 to
    2.60). Ours adds to it (simulated_nodes.py).
    """
    node = {"CPU": node_cpus, "object_store_memory": STORE_BYTES}
    on_a_machine = {f"{part}_commands": [] for part in (
        "initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"
    )}  # fmt: skip
    return {
        **on_a_machine,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "cluster_name": "local",
        "max_workers": max_nodes,
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 100.0,
        "provider": {
            "type": "external",
            "module": "simulated_nodes.SimulatedNodes",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": gcs,
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "node": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
        },
        "head_node_type": "ray.head.default",
    }


def head_environment() -> dict[str, str]:
    """Of the head, and through it of every node."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # jobs find `python` as it is here
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_idle_worker_killing_time_threshold_ms": "600000",  # see pipelines/driver/cli.py
        "RAY_health_check_period_ms": "1000",  # a node that is gone is noticed after 5 of these (3 s each by default)
    }


def token_environment(folder: Path) -> dict[str, str]:
    """A new token in a file that only this user can read; what the head, its nodes and its clients must have set."""
    path = folder / "auth_token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LocalCluster:
    """A head, its dashboard and whatever nodes there are just now."""

    process: subprocess.Popen[bytes]
    gcs: str
    dashboard: str

    @classmethod
    def start(
        cls, folder: Path, max_nodes: int, node_cpus: int = 1, idle_minutes: float = 1.0, dashboard_port: int = 8265,
        **environment: str,
    ) -> LocalCluster:
        """Returns when the dashboard answers; what the head prints goes to a file in the folder."""
        port, config = free_port(), folder / "autoscaling.json"
        gcs = f"{ray.util.get_node_ip_address()}:{port}"
        config.write_text(json.dumps(autoscaling_config(gcs, max_nodes, node_cpus, idle_minutes)))
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
            f"--port={port}", f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={free_port()}",
            "--num-cpus=0", f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={config}",
            "--disable-usage-stats",
        ]  # fmt: skip
        with (folder / "head.log").open("wb") as log:
            process = subprocess.Popen(
                command, env={**head_environment(), **environment}, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        cluster = cls(process, gcs, f"http://127.0.0.1:{dashboard_port}")
        try:
            cluster.wait(dashboard_port)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def wait(self, dashboard_port: int, timeout_s: float = 120) -> None:
        """Until the dashboard answers: it comes last."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", dashboard_port)) == 0:
                    return
            if self.process.poll() is not None:
                raise SystemExit("ray start --head ended at once: is the dashboard's port taken?")
            time.sleep(0.5)
        raise SystemExit(f"the dashboard did not answer within {timeout_s:g} s")

    def nodes(self) -> dict[str, psutil.Process]:
        """Node id -> raylet of every simulated node; the autoscaler's process has started them."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() != "raylet" or self.gcs not in " ".join(process.cmdline()):
                    continue
                node_id = process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING", HEAD_ID)
                if node_id != HEAD_ID and process.status() != psutil.STATUS_ZOMBIE:
                    found[node_id] = process
        return dict(sorted(found.items()))

    def stop(self) -> None:
        """Kill the head, its nodes and all that they started."""
        family = [self.process.pid, *(raylet.pid for raylet in self.nodes().values())]
        everyone = []
        for pid in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                everyone += [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone, timeout=30)
        self.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--max-nodes", type=int, default=3)
    parser.add_argument("--node-cpus", type=int, default=1)
    parser.add_argument("--idle-minutes", type=float, default=1.0, help="a node that nobody uses goes after so long")
    parser.add_argument("--dashboard-port", type=int, default=8265)
    options = parser.parse_args()
    for ends in ENDING:  # a shell's background jobs ignore SIGINT
        signal.signal(ends, end)
    with contextlib.suppress(KeyboardInterrupt):
        serve(options)


def end(*_: object) -> None:
    """A second signal must not leave nodes behind."""
    for ends in ENDING:
        signal.signal(ends, signal.SIG_IGN)
    raise KeyboardInterrupt


def serve(options: argparse.Namespace) -> None:
    """Until a signal ends it, and the cluster with it."""
    with tempfile.TemporaryDirectory(prefix="local-cluster-") as folder:
        token = token_environment(Path(folder))
        cluster = LocalCluster.start(
            Path(folder), options.max_nodes, options.node_cpus, options.idle_minutes, options.dashboard_port, **token
        )
        try:
            known = {"RAY_ADDRESS": cluster.gcs, "RAY_API_SERVER_ADDRESS": cluster.dashboard, **token}
            print("export " + " ".join(f"{name}={value}" for name, value in known.items()))
            print(f"dashboard {cluster.dashboard}, 0 of up to {options.max_nodes} nodes; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(1)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
