"""What every pipeline's command line shares: arguments, the cluster, and errors that a person can read."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pretrainer.config import Config
from pretrainer.config_load import format_help, load_config
from pretrainer.errors import PretrainerError, UserError

log = logging.getLogger(__name__)


def run_main(main: Callable[[Sequence[str]], int]) -> None:
    """Run a pipeline: its exit code, or one message and the error's exit code; only our own bugs show a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        code = main(sys.argv[1:])
    except PretrainerError as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code)


def config_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for `--config FILE section.field=value …`; --help lists every field."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipelines.{prog}", description=description, epilog="fields:\n" + format_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file, a short delta over the defaults (default: the quickstart)")
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


@contextmanager
def cluster(config: Config) -> Iterator[Cluster]:
    """Join the cluster of this machine or job, or start one on this machine; leaves it as it was found."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    joined = _join(config) or _start(config)
    try:
        yield joined
    finally:
        ray.shutdown()


def ray_is_reachable(config: Config) -> bool:
    """Whether a cluster is named or runs on this machine."""
    return bool(os.environ.get("RAY_ADDRESS")) or config.cluster.address != "auto" or os.path.exists("/tmp/ray/ray_current_cluster")


RUNTIME_ENV = {"env_vars": {"PYTHONHASHSEED": "0"}}


def _join(config: Config) -> Cluster | None:
    address = os.environ.get("RAY_ADDRESS") or config.cluster.address
    try:
        context = ray.init(address=address, runtime_env=RUNTIME_ENV, logging_level=logging.ERROR, log_to_driver=config.cluster.worker_logs)
    except ConnectionError as error:
        if address == "auto":
            return None
        raise UserError(
            f"no Ray cluster answers at {address}: check cluster.address and RAY_ADDRESS. A cluster with token authentication "
            "refuses a client without one: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or "
            f"RAY_AUTH_MODE=disabled where the cluster has none (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')})") from error
    return _describe(context.dashboard_url, started_here=False)


def _start(config: Config) -> Cluster:
    # A cluster for one run, bound to this machine; without this Ray writes a token file that later clusters pick up.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    context = ray.init(address="local", object_store_memory=config.cluster.object_store_bytes, runtime_env=RUNTIME_ENV,
                       logging_level=logging.ERROR, include_dashboard=True, log_to_driver=config.cluster.worker_logs)
    return _describe(context.dashboard_url, started_here=True)


def _describe(dashboard: str | None, started_here: bool) -> Cluster:
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Cluster(resources.get("CPU", 0.0), resources.get("GPU", 0.0), nodes, f"http://{dashboard}" if dashboard else None, started_here)
