"""Ray is started once per session of pytest, by `ray start --head`, and stopped by its own session folder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import s3
from tests.e2e.head import Head

s3_endpoint, s3_uri = s3.s3_endpoint, s3.s3_uri

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Two processes of pytest and those of Ray share the cores: threads that wait for each other take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


hypothesis.settings.register_profile("no clock", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no clock")

USES_RAY = {"e2e", "faults", "test_lookahead.py", "test_ray_contract.py"}


def pytest_sessionstart() -> None:
    """Thousands of tests are collected into millions of objects, none of them garbage: nobody looks for any."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_test_draws_from_the_one_before() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node of this session's own, with a token, a dashboard and job server."""
    head = Head.start(tmp_path_factory.mktemp("ray"), cpus=4, **s3.credentials())
    yield head
    head.stop()


@pytest.fixture(scope="session")
def tmp_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


class RayInOneProcess(LoadScopeScheduling):
    """Under `pytest -n 2` one process has all tests that use Ray, and begins with them: it is started once, and no two
    of them share the cores. Others go by file, whose fixtures are made once. (xdist's own marks for this do nothing
    under pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "ray" if USES_RAY & {*file.split("/")} else file

    def _assign_work_unit(self, node: Any) -> None:
        if "ray" in self.workqueue:
            self.workqueue.move_to_end("ray", last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayInOneProcess:
    return RayInOneProcess(config, log)


def pytest_report_header() -> str:
    ray = subprocess.run(
        [sys.executable, "-c", "import ray; print(ray.__version__)"], capture_output=True, text=True, check=False
    )
    return f"ray {ray.stdout.strip()}"
