"""Which checkpoint counts, read from the file that Ray Train's controller writes; and how the stream is split.

    python -m pytest -q tests/train/test_controller.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import torch
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    CheckpointManager,
    _CheckpointManagerState,
    _TrainingResultState,
)
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2._internal.execution.storage import StorageContext

from pretrainer.config import ClusterConfig
from pretrainer.errors import StorageError
from pretrainer.storage import Store
from pretrainer.train import controller
from pretrainer.train.checkpoints.committed import CHECKPOINTS, SNAPSHOT, committed_checkpoint, drop_damaged
from pretrainer.train.controller import FailureReport, failure_event, make_trainer
from pretrainer.train.ordered import OrderedDataConfig
from tests.train.specs import BLOCKS_PER_STEP, worker_spec

# ----------------------------------------------------------------------------------------- the committed checkpoint


def snapshot(latest: Any) -> dict[str, Any]:
    """The controller's snapshot of Ray 2.60 with this latest result."""
    return {
        "ray_version": "2.60.0",
        "checkpoint_results": [latest] if latest else [],
        "checkpoint_report_indices": [0] if latest else [],
        "latest_checkpoint_result": latest,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }


def result(folder: str = "step-000000007", metrics: Any = None) -> dict[str, Any]:
    known = {"step": 7, "fingerprint": "abc"} if metrics is None else metrics
    return {"version": 0, "checkpoint_dir_name": folder, "metrics": known}


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def write(run: Store, text: str) -> Store:
    run.write(SNAPSHOT, text.encode())
    return run


def test_no_snapshot_is_no_checkpoint(run: Store) -> None:
    assert committed_checkpoint(run) is None


def test_folder_that_is_not_in_the_snapshot_does_not_count(run: Store) -> None:
    run.write(f"{CHECKPOINTS}/step-000000009/.metadata", b"complete, but not committed")
    assert committed_checkpoint(run) is None
    write(run, json.dumps(snapshot(result())))
    assert committed_checkpoint(run) == (f"{CHECKPOINTS}/step-000000007", 7)


def test_snapshot_before_the_first_checkpoint(run: Store) -> None:
    assert committed_checkpoint(write(run, json.dumps(snapshot(None)))) is None


@pytest.mark.parametrize(
    "latest",
    [
        {"version": 0, "metrics": {"step": 7}},
        {"version": 0, "checkpoint_dir_name": "step-000000007"},
        result(metrics={"fingerprint": "abc"}),
        result(metrics={"step": None}),
        result(metrics={"step": "seven"}),
        result(metrics=[7]),
        "step-000000007",
    ],
    ids=["no folder", "no metrics", "no step", "step is null", "step is a word", "metrics is a list", "a string"],
)
def test_unknown_layout_is_an_error_that_names_file_and_version(run: Store, latest: Any) -> None:
    write(run, json.dumps({**snapshot(None), "latest_checkpoint_result": latest}))
    with pytest.raises(StorageError, match=rf"{SNAPSHOT} was written by Ray 2\.60\.0 and cannot be read"):
        committed_checkpoint(run)


@pytest.mark.parametrize("text", ["", '{"ray_version": "2.60.0", "latest_che'], ids=["empty", "torn"])
def test_torn_snapshot_is_an_error_and_not_a_new_start(run: Store, text: str) -> None:
    with pytest.raises(StorageError, match=SNAPSHOT):
        committed_checkpoint(write(run, text))


def test_what_this_ray_writes_is_what_is_read(run: Store) -> None:
    """Ray's own private classes: this fails when a new version renames a field or the file."""
    latest = _TrainingResultState(checkpoint_dir_name="step-000000007", metrics={"step": 7})
    state = _CheckpointManagerState(**{**snapshot(None), "latest_checkpoint_result": latest})
    assert set(json.loads(state.model_dump_json())) == set(snapshot(None))
    assert SNAPSHOT == f"{CHECKPOINTS}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
    assert committed_checkpoint(write(run, state.model_dump_json())) == (f"{CHECKPOINTS}/step-000000007", 7)
    assert ray.__version__.startswith("2.60.")


def test_ray_begins_with_the_checkpoint_before_a_damaged_one(run: Store, tmp_path: Path) -> None:
    """Ray's own reader of the list that we have changed."""
    names = [f"step-{step:09d}-a000000" for step in (7, 8, 9)]
    results = [result(name, {"step": step}) for name, step in zip(names, (7, 8, 9), strict=True)]
    known = {**snapshot(results[-1]), "checkpoint_results": results, "checkpoint_report_indices": [0, 1, 2]}
    write(run, json.dumps(known))
    for name in names:
        run.write(f"{CHECKPOINTS}/{name}/.metadata", b"x")
    assert drop_damaged(run, names[-1]) == 8
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name=CHECKPOINTS)
    manager = CheckpointManager(ray.train.CheckpointConfig(num_to_keep=3), storage)
    latest = manager.latest_checkpoint_result
    assert latest is not None and Path(latest.checkpoint.path).name == names[1]
    assert [Path(kept.checkpoint.path).name for kept in manager._checkpoint_results] == names[:2]


# ------------------------------------------------------------------------------------------------------ the trainer


def test_every_worker_group_s_stream_starts_at_the_committed_step(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(controller, "PolicyTorchTrainer", lambda _loop, **arguments: given.update(arguments))
    spec, started_at = worker_spec(), []
    build: Any = started_at.append
    make_trainer(spec.config, spec, run, build, use_gpu=False, data_cpus=1.0)
    stream = given["datasets"]["train"]
    stream()
    run.write(f"{CHECKPOINTS}/step-000000009/.metadata", b"complete, but not committed")
    for step in (7, 8):
        latest = result(f"step-{step:09d}", {"step": step})
        write(run, json.dumps(snapshot(latest)))
        stream()
    assert started_at == [0, 7 * BLOCKS_PER_STEP, 8 * BLOCKS_PER_STEP]


def test_trainer_restarts_and_keeps_checkpoints_as_configured(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(controller, "PolicyTorchTrainer", lambda _loop, **arguments: given.update(arguments))
    spec = worker_spec()
    train = replace(spec.config.train, num_workers=(1, 3), max_failures=4, keep_checkpoints=2)
    build: Any = None
    make_trainer(replace(spec.config, train=train), spec, run, build, use_gpu=False, data_cpus=1.5)
    assert given["train_loop_config"] is spec and isinstance(given["dataset_config"], OrderedDataConfig)
    assert given["scaling_config"].num_workers == (1, 3)
    policy = given["scaling_policy"]
    assert policy.sizes == [1, 2, 3] and policy.data_cpus == 1.5 and policy.gate.stable_s == train.resize_stable_s
    assert given["run_config"].failure_config.max_failures == -1, "failures in a row are counted by the driver"
    assert [type(callback) for callback in given["run_config"].callbacks] == [FailureReport]
    assert given["run_config"].checkpoint_config.num_to_keep == 2


@pytest.mark.parametrize("subcluster", [None, "data"])
def test_trainers_stay_off_the_nodes_of_data(
    run: Store, monkeypatch: pytest.MonkeyPatch, subcluster: str | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(controller, "PolicyTorchTrainer", lambda _loop, **arguments: given.update(arguments))
    spec, build = worker_spec(), cast(Any, None)
    train = replace(spec.config.train, num_workers=(1, 3))
    cluster = ClusterConfig(data_subcluster=subcluster, autoscaling=subcluster is None)
    config = replace(spec.config, train=train, cluster=cluster)
    make_trainer(config, spec, run, build, use_gpu=False, data_cpus=1.5)
    expected = None if subcluster is None else {"ray-subcluster": "!data"}
    assert given["scaling_config"].label_selector == expected
    assert given["scaling_policy"].data_nodes == subcluster
    assert given["scaling_policy"].autoscaling is cluster.autoscaling


@pytest.mark.parametrize(("segment", "seen"), [(0, frozenset()), (1, None), (2, None)])
def test_only_the_first_segment_takes_the_nodes_that_it_finds_for_new_ones(
    run: Store, monkeypatch: pytest.MonkeyPatch, segment: int, seen: frozenset[str] | None
) -> None:
    """Each has a controller of its own, and nodes that have just come make a start wait."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(controller, "PolicyTorchTrainer", lambda _loop, **arguments: given.update(arguments))
    spec, build = replace(worker_spec(), segment=segment), cast(Any, None)
    elastic = replace(spec.config, train=replace(spec.config.train, num_workers=(1, 3)))
    make_trainer(elastic, spec, run, build, use_gpu=False, data_cpus=1.5)
    assert given["scaling_policy"].burst.seen == seen


@pytest.mark.parametrize(("use_gpu", "backend"), [(False, "gloo"), (True, "cpu:gloo,cuda:nccl")])
def test_hosts_of_gpus_can_agree_among_themselves(
    run: Store, monkeypatch: pytest.MonkeyPatch, use_gpu: bool, backend: str
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(controller, "PolicyTorchTrainer", lambda _loop, **arguments: given.update(arguments))
    spec, build = worker_spec(), cast(Any, None)
    make_trainer(spec.config, spec, run, build, use_gpu=use_gpu, data_cpus=1.0)
    assert given["torch_config"].backend == backend
    kinds = torch.distributed.BackendConfig(torch.distributed.Backend(backend)).get_device_backend_map()
    assert kinds["cpu"] == "gloo" and kinds["cuda"] == ("nccl" if use_gpu else "gloo")


# -------------------------------------------------------------------------------------------------------- the split


class Splitting:
    """A dataset that notes how it is split."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def streaming_split(self, n: int, **options: Any) -> list[str]:
        self.calls.append((n, options))
        return [f"{self.name}-{rank}" for rank in range(n)]


@pytest.mark.parametrize("world", [1, 3])
def test_whole_blocks_are_dealt_in_turn_wherever_they_are(world: int) -> None:
    train: Any = Splitting("train")
    shards: Any = OrderedDataConfig().configure({"train": train}, world, None, [f"node-{r}" for r in range(world)])
    assert shards == [{"train": f"train-{rank}"} for rank in range(world)]
    [(splits, options)] = train.calls
    assert splits == world and options["equal"] is False and options.get("locality_hints") is None


def test_a_team_has_one_split_together() -> None:
    train: Any = Splitting("train")
    shards: Any = OrderedDataConfig(team=2).configure({"train": train}, 4, None, None)
    assert shards == [{"train": f"train-{stream}"} for stream in (0, 0, 1, 1)]
    assert [splits for splits, _options in train.calls] == [2]


def test_every_dataset_is_split_once(run: Store) -> None:
    first, second = Splitting("a"), Splitting("b")
    datasets: Any = {"a": first, "b": second}
    shards: Any = OrderedDataConfig().configure(datasets, 2, None, None, later_argument_of_ray=1)
    assert shards == [{"a": "a-0", "b": "b-0"}, {"a": "a-1", "b": "b-1"}]
    assert len(first.calls) == len(second.calls) == 1


# ------------------------------------------------------------------------------------------------------- failures


class Preempted(Exception):
    restart_reason = "preempted"


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (WorkerGroupError("ended", {1: ValueError("bad\nmore"), 0: OSError("disk")}), None, "OSError: disk; rank 1"),
        (WorkerGroupError("ended", {0: Preempted("gone")}), "preempted", "Preempted: gone"),
        (ControllerError(WorkerGroupStartupFailedError("died at import")), None, "died at import"),
    ],
)
def test_a_failure_is_told_with_its_cause(error: Exception, reason: str | None, words: str) -> None:
    event = failure_event(error)
    assert event is not None and event["reason"] == reason and words in event["message"]


def test_waiting_for_resources_and_a_running_group_are_no_failures() -> None:
    assert failure_event(ControllerError(WorkerGroupStartupTimeoutError(2))) is None
    told: list[dict[str, Any]] = []
    recorder: Any = SimpleNamespace(record=SimpleNamespace(remote=told.append))
    report, nothing = FailureReport(recorder), SimpleNamespace()
    report.after_controller_state_update(nothing, nothing)
    assert told == []
    failed = SimpleNamespace(training_failed_error=WorkerGroupError("ended", {0: OSError("disk")}))
    report.after_controller_state_update(nothing, failed)
    assert [event["ranks"] for event in told] == [[0]]


def test_a_failure_is_told_once_however_long_it_waits_for_nodes() -> None:
    """Ray's controller goes from its state to the same state while there are too few nodes, ten times a second."""
    told: list[dict[str, Any]] = []
    report = FailureReport(cast(Any, SimpleNamespace(record=SimpleNamespace(remote=told.append))))
    waiting = RestartingState(training_failed_error=WorkerGroupError("ended", {0: OSError("disk")}))
    another = ReschedulingState(training_failed_error=WorkerGroupError("ended", {0: OSError("disk")}))
    states = [SimpleNamespace(), waiting, waiting, waiting, SimpleNamespace(), another, another]
    for previous, current in pairwise(states):
        report.after_controller_state_update(previous, current)
    assert len(told) == 2


def test_states_of_ray_s_controller_carry_the_error() -> None:
    """What FailureReport relies on, in Ray 2.60."""
    error = WorkerGroupError("ended", {0: OSError("disk")})
    assert RestartingState(training_failed_error=error).training_failed_error is error
    assert ReschedulingState(training_failed_error=error).training_failed_error is error
