"""What is relied on in Ray Train 2.60 for checkpoints in the background: its own classes, in this process, no cluster.

python -m pytest -q tests/train/checkpoints/test_upload.py
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.train import ValidationTaskConfig
from ray.train.v2._internal.execution import context as ray_context
from ray.train.v2._internal.execution import train_fn_utils
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.checkpoint.report_handler import ReportCallbackHandler
from ray.train.v2._internal.execution.context import DistributedContext, ExecutionContext, TrainContext
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner

from pretrainer.config.evaluation import Cadence
from pretrainer.errors import StorageError
from pretrainer.storage import Store
from pretrainer.train.checkpoints import upload as module
from pretrainer.train.checkpoints.committed import CHECKPOINTS, committed_checkpoints, drop_damaged, folder_name, rewind
from pretrainer.train.checkpoints.saving import Saved, in_background
from pretrainer.train.checkpoints.upload import RayCommits
from pretrainer.train.spec import TrainState

PATIENCE_S = 30.0
NAME = folder_name(7, 0)


class Controller:
    """Ray's checkpoint manager in an event loop of its own, called as the controller's actor is."""

    def __init__(self, storage: StorageContext) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.manager: CheckpointManager = self.run(self._make(storage)).result(PATIENCE_S)
        self.get_all_reported_checkpoints = SimpleNamespace(remote=self._reported)

    async def _make(self, storage: StorageContext) -> CheckpointManager:
        return CheckpointManager(ray.train.CheckpointConfig(num_to_keep=2), storage)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def _reported(self, *arguments: Any) -> Any:
        return self.run(self.manager.get_all_reported_checkpoints(*arguments))

    def commit(self, report: _TrainingReport) -> None:
        async def take() -> None:
            self.manager.after_report(report, [report.metrics])

        self.run(take()).result(PATIENCE_S)


class Worker:
    """The only rank of a worker group: Ray's train context, with `reports` on their way to the controller."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = Store(str(run))
        self.storage = StorageContext(storage_path=str(run), experiment_dir_name=CHECKPOINTS)
        self.controller, self.runner = Controller(self.storage), ThreadRunner()
        self.reports: queue.Queue[_TrainingReport] = queue.Queue(maxsize=1)
        broadcast = SimpleNamespace(remote=lambda **arguments: arguments["data"])
        synchronization: Any = SimpleNamespace(broadcast_from_rank_zero=broadcast)
        nothing: Any = None
        context = TrainContext(
            nothing,
            DistributedContext(world_rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0),
            ExecutionContext(synchronization, self.reports, self.runner, []),
            self.storage,
            PreemptionContext(),
            self.controller,  # type: ignore[arg-type]
            nothing,
            has_validation_fn=True,
        )
        monkeypatch.setattr(ray, "get", lambda one: one.result(PATIENCE_S) if isinstance(one, Future) else one)
        monkeypatch.setattr(ray_context, "_train_context", context)
        monkeypatch.setattr(train_fn_utils, "_train_fn_utils", train_fn_utils.DistributedTrainFnUtils())
        monkeypatch.setattr("ray.train.v2.api.train_fn_utils.record_extra_usage_tag", lambda *_arguments: None)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    worker = Worker(tmp_path / "run", monkeypatch)
    yield worker
    worker.controller.loop.call_soon_threadsafe(worker.controller.loop.stop)


def saved(step: int, asked: bool = False, cadence: Cadence | None = None) -> Saved:
    return Saved(TrainState(step=step), asked, cadence, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"m")
    return folder


def test_nothing_is_committed_before_the_upload_and_the_list_is_there_when_the_wait_ends(
    worker: Worker, folder: Path
) -> None:
    commits, uploaded = RayCommits("abc", 60.0), Future[Any]()
    commits.report(saved(7, asked=True), folder, NAME, uploaded)  # returns though nothing is uploaded
    waiting = in_background(lambda: commits.wait(NAME))
    with pytest.raises(queue.Empty):
        worker.reports.get(timeout=0.3)
    uploaded.set_result(commits.upload(folder, NAME))
    report = worker.reports.get(timeout=PATIENCE_S)
    wait([waiting], timeout=0.3)
    assert not waiting.done() and committed_checkpoints(worker.run) == {}, "reported, and not committed"
    worker.controller.commit(report)
    waiting.result(PATIENCE_S)
    assert committed_checkpoints(worker.run) == {7: f"{CHECKPOINTS}/{NAME}"}
    snapshot = json.loads(worker.run.read(f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"))
    assert snapshot["latest_checkpoint_result"]["metrics"] == {"step": 7, "fingerprint": "abc", "asked": True}
    assert worker.run.read(f"{CHECKPOINTS}/{NAME}/.metadata") == b"m" and folder.is_dir()


def test_reports_are_taken_in_the_order_in_which_they_were_made(worker: Worker, folder: Path) -> None:
    commits, first, second = RayCommits("abc", 60.0), Future[Any](), Future[Any]()
    for step, uploaded in ((7, first), (8, second)):
        commits.report(saved(step), folder, folder_name(step, 0), uploaded)
    second.set_result(commits.upload(folder, folder_name(8, 0)))
    with pytest.raises(queue.Empty):
        worker.reports.get(timeout=0.3)
    first.set_result(commits.upload(folder, NAME))
    assert [worker.reports.get(timeout=PATIENCE_S).metrics["step"] for _ in range(2)] == [7, 8]


def pending(controller: Controller) -> dict[str, str]:
    """Folder -> cadence of the evaluations that are waited for."""
    waiting: Any = controller.manager.get_pending_training_results().values()
    return {Path(result.checkpoint.path).name: spec.fn_kwargs["cadence"] for result, spec in waiting}


def test_a_checkpoint_that_is_to_be_evaluated_is_kept_until_it_is_and_others_go(worker: Worker, folder: Path) -> None:
    """Ray keeps two here, and the evaluation of the first is known again after a restart of the controller."""
    commits = RayCommits("abc", 60.0)
    for step, cadence in ((7, "full"), (8, None), (9, "medium"), (10, None)):
        uploaded = Future[Any]()
        uploaded.set_result(commits.upload(folder, folder_name(step, 0)))
        commits.report(saved(step, cadence=cadence), folder, folder_name(step, 0), uploaded)  # type: ignore[arg-type]
        report = worker.reports.get(timeout=PATIENCE_S)
        assert report.validation == (ValidationTaskConfig({"cadence": cadence}, 60.0) if cadence else False)
        worker.controller.commit(report)
    assert list(committed_checkpoints(worker.run)) == [7, 9, 10]
    again = Controller(worker.storage)
    assert pending(again) == {NAME: "full", folder_name(9, 0): "medium"}
    assert drop_damaged(worker.run, NAME) == 10
    assert pending(Controller(worker.storage)) == {folder_name(9, 0): "medium"}
    assert rewind(worker.run, 9) == 9
    assert pending(Controller(worker.storage)) == {folder_name(9, 0): "medium"}


def test_an_upload_that_fails_ends_the_worker_with_its_cause_and_is_not_reported(worker: Worker, folder: Path) -> None:
    uploaded = Future[Any]()
    RayCommits("abc", 60.0).report(saved(7), folder, NAME, uploaded)
    uploaded.set_exception(OSError(28, "No space left on device"))
    told: Any = worker.runner.get_exception_queue().get(timeout=PATIENCE_S)
    assert isinstance(told._base_exc, OSError) and told._base_exc.errno == 28
    assert worker.reports.empty()


def test_a_checkpoint_that_ray_does_not_list_is_an_error(worker: Worker, folder: Path) -> None:
    with pytest.raises(StorageError, match=f"not committed checkpoint {NAME}"):
        RayCommits("abc", 60.0).wait(NAME)


def test_an_upload_that_storage_rejects_for_now_is_tried_again(
    worker: Worker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._common.retry.time.sleep", lambda _s: None)
    said = ["AWS Error SLOW_DOWN during PutObject", "AWS Error NETWORK_CONNECTION", "AWS Error SLOW_DOWN"]
    tried: list[str] = []

    def persist(local: Any, name: str) -> str:
        if len(tried) < len(said):
            tried.append(said[len(tried)])
            raise OSError(tried[-1])
        return name

    commits: Any = RayCommits("abc", 60.0)
    commits.storage = SimpleNamespace(persist_current_checkpoint=persist)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        commits.upload(folder, NAME)
    assert len(tried) == module.ATTEMPTS == 3
    assert commits.upload(folder, NAME) == NAME
    said.append("disk full")
    with pytest.raises(OSError, match="disk full"):
        commits.upload(folder, NAME)
    assert len(tried) == 4, "that one does not pass"


def test_the_controller_commits_when_every_rank_has_reported(worker: Worker, folder: Path) -> None:
    taken: list[Any] = []
    handler = ReportCallbackHandler([SimpleNamespace(after_report=lambda **report: taken.append(report))])  # type: ignore[list-item]
    group: Any = [None, None]
    handler.after_worker_group_start(group)
    report = _TrainingReport(RayCommits("abc", 60.0).upload(folder, NAME), {"step": 7}, False)
    for rank in (1, 0):
        reports = {r: WorkerStatus(running=True, training_report=report if r == rank else None) for r in range(2)}
        assert taken == []
        handler.after_worker_group_poll_status(WorkerGroupPollStatus(reports))
    [commit] = taken
    assert commit["training_report"].checkpoint == report.checkpoint and commit["metrics"] == [{"step": 7}] * 2
    assert ray.__version__.startswith("2.60.")
