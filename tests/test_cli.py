"""Joining a cluster that refuses: one clear message, and nobody else's errors taken for it. What Ray says besides."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import ray
from ray._private import worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.runtime_env.runtime_env import _merge_runtime_env

from pipelines.driver import cli
from pretrainer.config import Config, DataConfig, SourceConfig, TrainConfig
from pretrainer.errors import UserError

CONFIG = Config(
    data=DataConfig(sources=(SourceConfig(name="s", uris=("x",)),), seq_len=8, slot_sequences=2),
    train=TrainConfig(steps=9, global_batch_tokens=128),
)
MISMATCH = "Version mismatch: The cluster was started with:\n    Python: 3.11.7\nThis process has 3.12.1\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(MISMATCH), r"10\.0\.0\.1:6379 has another version .*3\.11\.7 .*ray stop"),
        (ConnectionError("no"), "RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_refuses_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def refuse(**_arguments: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=words) as told:
        cli._join(CONFIG, "10.0.0.1:6379")
    assert "\n" not in str(told.value)


def test_a_bug_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_arguments: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RuntimeError, match="something else"):
        cli._join(CONFIG, "10.0.0.1:6379")


DIED = (
    "Raylet is terminated. Termination is unexpected. Last 20 lines of the Raylet logs:\n"
    "    [state-dump] \tNodeManager.GC - 1 total\n    (raylet) mmap failed: out of memory\n    [state-dump] \n"
)


def test_noise_of_ray_is_left_out_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data))
    cli.quiet_noise()
    cli.quiet_noise()
    for lines in (["mine", cli.NOISE[0] + " and so on", "", "yours"], [cli.NOISE[1]], [cli.STATISTICS], [DIED]):
        worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert [data["lines"] for data in shown[:-1]] == [["mine", "", "yours"]] and shown[-1]["pid"] == "raylet"
    (died,) = shown[-1]["lines"]
    assert died.split("\n") == [DIED.split("\n")[0], "    (raylet) mmap failed: out of memory", ""]


def test_variables_that_a_job_was_given_are_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses the driver of such a job, even where both say the same."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    names = set(cli.runtime_env()["env_vars"])
    assert names >= {*cli.ENVIRONMENT, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"}
    given = {"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7", "PYTHONHASHSEED": "0", "MINE": "1"}}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"runtime_env": given}))
    assert set(cli.runtime_env()["env_vars"]) == names - given["env_vars"].keys()
    assert _merge_runtime_env(given, cli.runtime_env())["env_vars"].keys() == names | {"MINE"}


def test_a_start_has_its_config_before_it_has_torch() -> None:
    """A mistake in it is told at once, and torch is imported while Ray begins."""
    code = "import sys, pipelines.pretrain; print({'torch', 'mlflow', 'ray.data', 'ray.train'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_torch_is_imported_behind() -> None:
    code = (
        "import sys, pipelines.driver.imports as r; t = r.import_torch_behind(); t.join(); "
        "print(set(r.TORCH) <= set(sys.modules), t.daemon)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"
