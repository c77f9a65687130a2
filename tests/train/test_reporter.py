"""What rank 0 tells the recorder of a checkpoint, and when its seconds count.

python -m pytest -q tests/train/test_reporter.py
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
import torch

from pretrainer.train import reporter as module
from pretrainer.train.checkpoints.saving import Saved
from pretrainer.train.reporter import Interval, Reporter
from pretrainer.train.spec import TrainState
from pretrainer.train.telemetry.phases import Phases
from pretrainer.train.telemetry.recorder import Recorder
from tests.train.samples import result_of
from tests.train.specs import worker_spec
from tests.train.telemetry.test_recorder import Notes


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(Notes())


def reporter_of(rank: int, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Reporter:
    """Its recorder is in this process."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    gauge = SimpleNamespace(set_default_tags=lambda _tags: None, set=lambda _value: None)
    monkeypatch.setattr(module, "Gauge", lambda *_arguments, **_more: gauge)
    actor = SimpleNamespace(
        record=SimpleNamespace(remote=recorder.record), begin=SimpleNamespace(remote=recorder.begin)
    )
    phases = Phases(rank, 1, 1, "node", lambda _said: None, 1.0)
    return Reporter(worker_spec(recorder=actor), rank, 1, torch.device("cpu"), phases)


@pytest.fixture
def reporter(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Reporter:
    """Rank 0's."""
    return reporter_of(0, recorder, monkeypatch)


def saved(step: int, asked: bool = False) -> Saved:
    state = TrainState(step=step, order_digest=f"digest {step}", weights_sha256="w")
    return Saved(state, asked, None, 0.0, blocking_s=0.25, total_s=2.0)


def test_a_commit_is_told_with_its_step_and_its_cost(reporter: Reporter, recorder: Recorder) -> None:
    reporter.checkpoint(TrainState(step=23), saved(20))
    [event] = recorder.events
    told = {key: event[key] for key in ("kind", "step", "order_digest", "weights_sha256", "blocking_s", "total_s")}
    assert list(told.values()) == ["checkpoint", 20, "digest 20", "w", 0.25, 2.0]


@pytest.mark.parametrize(("at", "counts"), [(20, True), (23, False)])
def test_seconds_are_those_of_the_step_that_training_stands_at(
    reporter: Reporter, recorder: Recorder, at: int, counts: bool
) -> None:
    """Goodput would take those of steps 21 to 23 for no progress."""
    reporter.phases.enter("step", at)
    reporter.checkpoint(TrainState(step=at), saved(20))
    assert ("phase_s" in recorder.events[0]) is counts
    reporter.exhausted(TrainState(step=at))
    assert (recorder.events[1]["phase_s"]["step"] > 0) and ("start" in recorder.events[1]["phase_s"]) is not counts


def test_step_0_is_no_progress(reporter: Reporter, recorder: Recorder) -> None:
    reporter.checkpoint(TrainState(step=0), saved(0))
    assert recorder.events == []


def test_a_checkpoint_that_was_asked_for_is_asked_for_until_it_is_committed(
    reporter: Reporter, recorder: Recorder
) -> None:
    recorder.request_checkpoint()
    reporter.exhausted(TrainState(step=20))
    reporter.checkpoint(TrainState(step=21), saved(20))
    assert reporter.checkpoint_requested == 1, "what was begun before the request is not what was asked for"
    reporter.checkpoint(TrainState(step=22), saved(22, asked=True))
    assert reporter.checkpoint_requested == 0
    reporter.exhausted(TrainState(step=23))
    assert reporter.checkpoint_requested == 0


def test_gauges_of_a_rank_are_set_where_a_line_is_sent(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}
    for name in module.GAUGES:
        reporter.gauges[name] = SimpleNamespace(set=lambda value, name=name: seen.update({name: value}))  # type: ignore
    monkeypatch.setattr(reporter, "world", 4)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 110.0)
    reporter.interval = Interval(started_s=100.0, wait_s=2.5, tokens=640, steps=1)
    reporter._flush(TrainState(step=7), result_of(1.5, 1.0))
    expected = {"loss": 1.5, "tokens_per_s": 64.0, "rank_tokens_per_s": 16.0, "data_wait_fraction": 0.25, "step": 7.0}
    assert seen == expected, "nobody knows the MFU of a CPU"
    monkeypatch.setattr(reporter, "peak_tflops", 16.0 * reporter.flops / 0.4 / 1e12)
    reporter.interval = Interval(started_s=100.0, tokens=640, steps=1)
    reporter._flush(TrainState(step=8), result_of(1.5, 1.0))
    assert seen["mfu"] == pytest.approx(0.4) and set(seen) == set(module.GAUGES)


def test_the_time_of_a_checkpoint_is_no_training_time(
    reporter: Reporter, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter.interval = Interval(started_s=100.0, tokens=640, steps=1)
    reporter.paused(4.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 112.0)
    reporter._flush(TrainState(step=1), result_of(1.0, 1.0))
    assert recorder.events[0]["elapsed_s"] == 8.0 and recorder.events[0]["tokens_per_s"] == 80.0


def test_the_first_step_of_a_start_is_told_as_such(reporter: Reporter, recorder: Recorder) -> None:
    monitor = SimpleNamespace(source_losses=lambda: [])
    for step in (1, reporter.spec.config.train.log_every_steps):
        reporter.step(TrainState(step=step), result_of(1.0, 1.0), 0.1, 8, 0.0, monitor)  # type: ignore[arg-type]
    assert [event["is_first"] for event in recorder.events] == [True, False]


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_asks_whether_its_group_may_begin(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    one = reporter_of(rank, recorder, monkeypatch)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "me"))
    assert recorder.hold(["me", "other"]) and one.may_begin() is (rank == 1)
    assert recorder.hold(["me", "other"]) is (rank == 1), "rank 0 has been told, and trains if nobody ends it"
