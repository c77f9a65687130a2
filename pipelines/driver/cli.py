"""What every pipeline's command line shares: arguments, the cluster, and errors that a person can read."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_ray_address_file
from ray._private import worker as ray_worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.runtime_env import RuntimeEnv

from pretrainer import subcluster
from pretrainer.config import Config
from pretrainer.config_load import format_help, load_config
from pretrainer.errors import PretrainerError, UserError, find_cause

log = logging.getLogger(__name__)


def run_main(main: Callable[[Sequence[str]], int]) -> None:
    """Run a pipeline: its exit code, or one message and the error's exit code; only our own bugs show a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        code = main(sys.argv[1:])
    except PretrainerError as error:
        print(f"\nerror: {find_cause(error) or error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code)


def config_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for `--config FILE section.field=value …`; --help lists every field."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipelines.{prog}",
        description=description,
        epilog="fields:\n" + format_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file, a short delta over the defaults (default: the quickstart)"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="any field of the list below")
    return parser


def read_config(options: argparse.Namespace) -> Config:
    return load_config(options.config, options.overrides)


@dataclass(frozen=True)
class Cluster:
    """What the cluster has."""

    cpus: float
    gpus: float
    nodes: int
    dashboard: str | None
    started_here: bool
    node_memory_bytes: float = math.inf  # what the largest node has for processes; inf where nobody knows
    accelerators: tuple[str, ...] = ()  # Ray's names of the kinds of GPU, such as H100
    data_cpus: float | None = None  # of the nodes in cluster.data_subcluster; None where trainers share them

    def left_by_data(self, needs: float) -> float:
        """CPUs for trainers, when the data stages have the CPUs that they need."""
        return self.cpus - (needs if self.data_cpus is None else self.data_cpus)

    def has_for_data(self, needs: float) -> bool:
        return (self.cpus if self.data_cpus is None else self.data_cpus) >= needs - 1e-6


def settled(config: Config, there: Cluster) -> Config:
    """The config on this cluster. One that was started here is one machine, which has no nodes for data alone."""
    if not there.started_here:
        return config
    return replace(config, cluster=replace(config.cluster, data_subcluster=None))


NOISE = (
    "The actor is dead because it was killed by `ray.kill`",  # the stream is dropped when the last step is done
    "PYTHON worker processes have been started on node",       # fractional CPUs mean several small processes
)
STATISTICS = "[state-dump]"  # 60 lines of a raylet that died, between the few that may say why


def quiet_noise() -> None:
    """Keep messages of Ray that frighten and mean nothing off the terminal; all others still come through."""
    show = ray_worker.print_to_stdstream
    if getattr(show, "is_quiet", False):
        return

    def without_noise(data: Any, ignore_prefix: bool) -> None:
        lines = [said for said in map(without_statistics, data["lines"]) if not any(noise in said for noise in NOISE)]
        if any(lines):
            show({**data, "lines": lines}, ignore_prefix)

    without_noise.is_quiet = True  # type: ignore[attr-defined]
    ray_worker.print_to_stdstream = without_noise


def without_statistics(message: str) -> str:
    return "\n".join(line for line in message.split("\n") if STATISTICS not in line)


@contextmanager
def cluster(config: Config) -> Iterator[Cluster]:
    """Join the cluster of this machine or job, or start one on this machine; leaves it as it was found."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")  # its 60 are most of a recovery
    address = running_cluster(config)
    quiet_noise()
    share_workers()
    joined = _start(config) if address is None else _join(config, address)
    try:
        yield joined
    finally:
        ray.shutdown()


PROBE_TIMEOUT_S = 3.0


def running_cluster(config: Config) -> str | None:
    """Address of the cluster that is named or runs on this machine; None where there is none.

    Ray leaves its address file behind when a head node dies, and a client then waits for minutes: so knock first.
    """
    named = os.environ.get("RAY_ADDRESS") or (config.cluster.address if config.cluster.address != "auto" else None)
    address = named or _address_file()
    if address is None or "://" in address or _answers(address):
        return address
    if named is None:
        return None
    raise UserError(f"no Ray cluster answers at {address}: start one there, or check cluster.address and RAY_ADDRESS")


def _address_file() -> str | None:
    path = Path(get_ray_address_file(None))
    return path.read_text().strip() or None if path.exists() else None


def _answers(address: str) -> bool:
    host, _colon, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), PROBE_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    # Ray keeps the share of CPUs of a stream whose node or driver died for 180 s, and gives the next one the rest.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "20",
    "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "5",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's own, for its controller and all below it
}


def runtime_env() -> RuntimeEnv:
    """Of the driver's job: what Ray Train would add for its controller is there from the beginning (share_workers).

    Without the variables that `ray job submit --runtime-env-json` gave: Ray refuses to be told twice.
    """
    given = (json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("runtime_env") or {}).get("env_vars", {})
    theirs = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return RuntimeEnv(env_vars={name: value for name, value in (ENVIRONMENT | theirs).items() if name not in given})


def share_workers() -> None:
    """Let processes that have worked for the driver work for trainers and data too, as their imports took seconds.

    Ray's pool of idle workers tells them apart by the text of their runtime environment, which is written with spaces
    for a job and without for an actor that has variables of its own, as Ray Train's controller, and all below it.
    """
    if getattr(RuntimeEnv.serialize, "is_compact", False):
        return
    with_spaces = RuntimeEnv.serialize

    def compact(self: RuntimeEnv) -> str:
        return json.dumps(json.loads(with_spaces(self)), sort_keys=True, separators=(",", ":"))

    compact.is_compact = True  # type: ignore[attr-defined]
    RuntimeEnv.serialize = compact  # type: ignore[method-assign]


def _join(config: Config, address: str) -> Cluster:
    try:
        context = ray.init(
            address=address,
            runtime_env=runtime_env(),
            logging_level=logging.ERROR,
            log_to_driver=config.cluster.worker_logs,
        )
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        raise UserError(
            f"the Ray cluster at {address} refused this client: with token authentication set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, without it set RAY_AUTH_MODE=disabled (RAY_AUTH_MODE is {mode})"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UserError(
            f"the Ray cluster at {address} has another version of Ray or Python ({' '.join(str(error).split())}): run "
            "this with the environment that started the cluster, or stop that one with `ray stop`"
        ) from error
    return _describe(config, context.dashboard_url, started_here=False)


def _start(config: Config) -> Cluster:
    # A cluster for one run, bound to this machine; without this Ray writes a token file that later clusters pick up.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray keeps as many idle workers as CPUs and ends others after 1 s; with fractional CPUs that restarts them all day,
    # at seconds of imports each. Between two pack windows they may have nothing to do for minutes.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    context = ray.init(
        address="local",
        object_store_memory=config.cluster.object_store_bytes,
        runtime_env=runtime_env(),
        logging_level=logging.ERROR,
        include_dashboard=True,
        log_to_driver=config.cluster.worker_logs,
    )
    return _describe(config, context.dashboard_url, started_here=True)


def _describe(config: Config, dashboard: str | None, started_here: bool) -> Cluster:
    resources = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    own = None if started_here else config.cluster.data_subcluster
    return Cluster(
        resources.get("CPU", 0.0),
        resources.get("GPU", 0.0),
        len(nodes),
        f"http://{dashboard}" if dashboard else None,
        started_here,
        max((node["Resources"].get("memory", math.inf) for node in nodes), default=math.inf),
        tuple(sorted(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))),
        None if own is None else subcluster.cpus(own, nodes),
    )
