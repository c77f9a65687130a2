"""MLflow behind the tracker: one run per training, found again after a restart; a sqlite file and no network.

    python -m pytest -q tests/test_tracking.py
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pretrainer.errors import UserError
from pretrainer.tracking import EVENT_METRICS, Tracker, default_uri
from pretrainer.train.telemetry.recorder import Recorder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, address: Any) -> None:
        raise AssertionError(f"the tracker connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(tracking URI, artifact root) of one database for all tests here: making one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()


@pytest.fixture
def client(place: tuple[str, str]) -> MlflowClient:
    return MlflowClient(place[0])


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """An experiment of the test's own."""
    return str(request.node.name)


def tracker(
    place: tuple[str, str], experiment: str, run_id: str | None = None, params: Mapping[str, Any] | None = None
) -> Tracker:
    return Tracker(place[0], experiment, place[1], "tiny", run_id, params or {}, {"git_commit": "abc"})


def runs(client: MlflowClient, experiment: str) -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def steps(*numbers: int, mfu: float | None = None) -> dict[str, Any]:
    return {
        "kind": "steps",
        "steps": [{"step": n, "loss": 10.0 / n, "grad_norm": 1.0, "learning_rate": 1e-3} for n in numbers],
        "tokens": 512 * max(numbers),
        "tokens_per_s": 100.0,
        "data_wait_s": 0.1,
        "elapsed_s": 1.0,
        "is_first": False,
        "data_wait_fraction": 0.1,
        "mfu": mfu,
        "world_size": 2,
    }


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def test_run_has_name_tags_and_every_parameter(place: tuple[str, str], client: MlflowClient, experiment: str) -> None:
    params = {**{f"section.field_{i}": i for i in range(230)}, "data.sources": "x" * 900, "run.storage": None}
    run = client.get_run(tracker(place, experiment, params=params).start())
    assert run.info.run_name == "tiny" and run.data.tags["git_commit"] == "abc" and run.info.status == "RUNNING"
    assert len(run.data.params) == 232
    assert run.data.params["section.field_229"] == "229" and run.data.params["run.storage"] == "None"
    assert run.data.params["data.sources"] == "x" * 500


def test_preparing_opens_no_run_and_raises_nothing(
    place: tuple[str, str], client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    one = tracker(place, experiment)
    one.prepare()
    assert client.get_experiment_by_name(experiment) is None
    assert client.get_run(one.start({"fingerprint": "f1"})).data.tags["fingerprint"] == "f1"
    (tmp_path / "file").touch()
    nowhere = Tracker(f"sqlite:///{tmp_path}/file/mlflow.db", experiment, None, "tiny", None, {}, {})
    nowhere.prepare()
    with pytest.raises(UserError, match=r"Check tracking\.uri"):
        nowhere.start()


def test_starting_twice_opens_one_run(place: tuple[str, str], client: MlflowClient, experiment: str) -> None:
    one = tracker(place, experiment)
    assert one.start() == one.start()
    one.log_event(steps(1))
    assert len(runs(client, experiment)) == 1


def test_restart_continues_the_same_run(place: tuple[str, str], client: MlflowClient, experiment: str) -> None:
    first = tracker(place, experiment, params={"train.steps": 3})
    run_id = first.start()
    first.log_event(steps(1, 2, 3))
    first.finish("preempted", {})
    second = tracker(place, experiment, run_id, params={"train.steps": 6})
    assert second.start() == run_id and client.get_run(run_id).info.status == "RUNNING"
    second.log_event(steps(4, 5))
    assert [run.info.run_id for run in runs(client, experiment)] == [run_id]
    assert history(client, run_id, "train/loss") == [(n, 10.0 / n) for n in range(1, 6)]
    assert client.get_run(run_id).data.params == {"train.steps": "3"}  # MLflow forbids to change a parameter


def test_the_load_of_experts_is_a_metric_of_the_last_step() -> None:
    load = {"experts/block00/busiest": 1.5, "experts/block00/idlest": 0.5}
    metrics = EVENT_METRICS["steps"]({**steps(1, 2), "expert_load": load})
    assert [m for m in metrics if m[0].startswith("experts/")] == [(name, load[name], 2) for name in load]
    assert not any(name.startswith("experts/") for name, _value, _step in EVENT_METRICS["steps"](steps(1, 2)))


def test_each_step_has_one_value_though_workers_replay(
    place: tuple[str, str], client: MlflowClient, experiment: str
) -> None:
    recorder = Recorder(tracker(place, experiment))
    run_id = recorder.start()
    for event in (steps(1, 2), steps(3, 4), steps(3, 4), steps(4, 5)):
        recorder.record(event)
    assert recorder.flush(60) == 0
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [step for step, _value in history(client, run_id, f"train/{name}")] == [1, 2, 3, 4, 5]


def test_speed_is_logged_at_the_interval_s_last_step(
    place: tuple[str, str], client: MlflowClient, experiment: str
) -> None:
    one = tracker(place, experiment)
    run_id = one.start()
    one.log_event(steps(1, 2))
    one.log_event(steps(3, 4, mfu=0.4))
    assert history(client, run_id, "speed/tokens_per_s") == [(2, 100.0), (4, 100.0)]
    assert history(client, run_id, "speed/data_wait_fraction") == [(2, 0.1), (4, 0.1)]
    assert history(client, run_id, "speed/world_size") == [(2, 2.0), (4, 2.0)]
    assert history(client, run_id, "speed/mfu") == [(4, 0.4)]  # where the device's peak is known
    assert history(client, run_id, "train/tokens") == [(2, 1024.0), (4, 2048.0)]


def test_validation_is_logged_by_source(place: tuple[str, str], client: MlflowClient, experiment: str) -> None:
    values = {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.5, "targets": 99}
    one = tracker(place, experiment)
    run_id = one.start()
    one.log_event({"kind": "validation", "step": 6, "sources": {"code": values, "web": {**values, "loss": 3.0}}})
    found = client.get_run(run_id).data.metrics
    assert found["validation/code/loss"] == 2.0 and found["validation/web/loss"] == 3.0
    assert history(client, run_id, "validation/code/bits_per_byte") == [(6, 1.5)]
    assert len(found) == 6


def test_scores_of_tasks_are_metrics_and_the_last_steps_of_every_kind_are_known(
    place: tuple[str, str], client: MlflowClient, experiment: str
) -> None:
    one = tracker(place, experiment)
    run_id = one.start()
    assert one.last_steps() == {"train": -1, "validation": -1, "evaluation": -1}
    values = {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.5, "targets": 99}
    for step, task in ((4, "arc"), (8, "arc"), (6, "lambada")):
        metrics = {"acc": {"value": step / 10, "stderr": None}}
        one.log_event({"kind": "evaluation", "step": step, "tasks": {task: {"metrics": metrics}}})
    one.log_event({"kind": "validation", "step": 6, "sources": {"code": values}})
    assert history(client, run_id, "evaluation/arc/acc") == [(4, 0.4), (8, 0.8)]
    assert one.last_steps() == {"train": -1, "validation": 6, "evaluation": 8}


def test_other_events_have_no_metrics(place: tuple[str, str], client: MlflowClient, experiment: str) -> None:
    one = tracker(place, experiment)
    run_id = one.start()
    for kind in ("start", "sample", "exhausted", "finish"):
        one.log_event({"kind": kind, "step": 1})
    assert client.get_run(run_id).data.metrics == {}


def test_a_checkpoint_tells_how_long_training_waited() -> None:
    event = {"kind": "checkpoint", "step": 20, "order_digest": "ab", "blocking_s": 0.5, "total_s": 4.0}
    assert EVENT_METRICS["checkpoint"](event) == [
        ("speed/checkpoint_blocking_s", 0.5, 20),
        ("speed/checkpoint_total_s", 4.0, 20),
    ]


@pytest.mark.parametrize(
    ("status", "shown"),
    [("completed", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED"), ("preempted", "KILLED")],
)
def test_run_ends_with_its_true_status(
    place: tuple[str, str], client: MlflowClient, experiment: str, status: str, shown: str
) -> None:
    one = tracker(place, experiment)
    one.start()
    one.finish(status, {})
    [run] = runs(client, experiment)
    assert run.info.status == shown and run.info.end_time >= run.info.start_time


def test_artifacts_can_be_read_back(
    place: tuple[str, str], client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    texts = {"config.yaml": "run: {name: é}\n", "summary.json": "{}"}
    one = tracker(place, experiment)
    run_id = one.start()
    one.finish("completed", texts)
    assert sorted(found.path for found in client.list_artifacts(run_id)) == sorted(texts)
    for name, text in texts.items():
        assert Path(client.download_artifacts(run_id, name, str(tmp_path))).read_text(encoding="utf-8") == text


def test_tracker_travels_before_it_connects(place: tuple[str, str], client: MlflowClient, experiment: str) -> None:
    """It is made by the driver and used by the recorder's process; making it must not open a run."""
    travelled = pickle.loads(pickle.dumps(tracker(place, experiment)))
    assert runs(client, experiment) == []
    run_id = travelled.start()
    assert [run.info.run_id for run in runs(client, experiment)] == [run_id]


def test_default_is_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_folder = tmp_path / "runs"
    assert default_uri(str(runs_folder), True) == (
        f"sqlite:///{runs_folder}/mlflow.db",
        (runs_folder / "mlflow-artifacts").as_uri(),
    )
    assert runs_folder.is_dir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    uri, artifacts = default_uri("s3://bucket/runs", False)
    assert uri == f"sqlite:///{tmp_path}/home/pretrainer-runs/mlflow.db" and str(artifacts).startswith("file:///")
