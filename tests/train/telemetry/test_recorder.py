"""The recorder: a step counts once however often it is replayed, a stop is asked for, a fatal error is kept.

    python -m pytest -q tests/train/telemetry/test_recorder.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pretrainer.errors import TrackingError
from pretrainer.journal import Journal, read_events
from pretrainer.storage import Store
from pretrainer.tracking import Tracker
from pretrainer.train.telemetry import recorder as module
from pretrainer.train.telemetry.recorder import Recorder


class Notes(Tracker):
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("sqlite://", "experiment", None, "run", None, {}, {})
        self.last = {"train": -1, "validation": -1, "evaluation": -1}
        self.is_away = False
        self.logged: list[Mapping[str, Any]] = []
        self.closed: list[tuple[str, Mapping[str, str]]] = []

    def start(self, tags: Mapping[str, str] | None = None) -> str:
        return "run-1"

    def last_steps(self) -> dict[str, int]:
        return self.last

    def log_event(self, event: Mapping[str, Any]) -> None:
        if self.is_away:
            raise TrackingError("MLflow is away")
        self.logged.append(event)

    def finish(self, status: str, artifacts: Mapping[str, str]) -> None:
        self.closed.append((status, artifacts))


@pytest.fixture
def notes() -> Iterator[Notes]:
    notes = Notes()
    yield notes
    notes.is_away = False  # else the outbox goes on trying as long as the process lives


def steps(*numbers: int, elapsed_s: float = 2.0, is_first: bool = False) -> dict[str, Any]:
    return {
        "kind": "steps",
        "steps": [{"step": number, "loss": 1.0 / number} for number in numbers],
        "data_wait_s": 0.5,
        "elapsed_s": elapsed_s,
        "is_first": is_first,
        "tokens_per_s": 100.0,
    }


def numbers(events: list[Any]) -> list[list[int]]:
    return [[step["step"] for step in event["steps"]] for event in events]


def test_replayed_step_is_tracked_once(notes: Notes) -> None:
    recorder = Recorder(notes)
    for event in (steps(1), steps(2, 3, 4), steps(3, 4, 5), steps(4), steps(6)):
        recorder.record(event)
    assert recorder.flush(5) == 0
    assert numbers(notes.logged) == [[1], [2, 3, 4], [5], [], [6]]
    assert numbers(recorder.events) == numbers(notes.logged)


def test_everything_that_is_told_is_kept_in_the_run_folder_replays_too(notes: Notes, tmp_path: Path) -> None:
    """A tracker may know steps that a killed driver never wrote: what it is told again is kept again."""
    run = Store(str(tmp_path))
    recorder = Recorder(notes, Journal(run.uri, 1))
    for event in (steps(1, 2), steps(2, 3), {"kind": "sample", "step": 3, "ids": [1]}):
        recorder.record(event)
    recorder.fatal("the stream is broken", 5)
    assert recorder.keep_events(20) and Recorder(notes).keep_events(0)
    kept = read_events(run)
    assert [event["kind"] for event in kept] == ["steps", "steps", "sample", "fatal"]
    assert [event["first_step"] for event in kept[:2]] == [1, 2] and all(event["at_s"] > 0 for event in kept)


def test_event_of_the_caller_is_left_as_it_was(notes: Notes) -> None:
    recorder, event = Recorder(notes), steps(1, 2)
    recorder.record(steps(1))
    recorder.record(event)
    assert event == steps(1, 2)


def test_the_first_step_of_a_start_is_in_no_total(notes: Notes) -> None:
    recorder = Recorder(notes)
    recorder.record(steps(1, elapsed_s=90.0, is_first=True))
    recorder.record(steps(2, 3, elapsed_s=5.0))
    recorder.record(steps(4, elapsed_s=60.0, is_first=True))  # after a crash
    assert recorder.totals() == {"data_wait_s": 0.5, "elapsed_s": 5.0, "tokens": 500.0}


def test_totals_are_sums_over_intervals(notes: Notes) -> None:
    recorder = Recorder(notes)
    recorder.record(steps(1, elapsed_s=2.0))
    recorder.record(steps(2, elapsed_s=3.0))
    assert recorder.totals() == {"data_wait_s": 1.0, "elapsed_s": 5.0, "tokens": 500.0}


def test_stop_is_answered_from_the_request_on(notes: Notes) -> None:
    recorder = Recorder(notes)
    assert recorder.record(steps(1))["stop"] is False
    recorder.request_stop()
    assert recorder.record(steps(2))["stop"] is True
    assert recorder.record({"kind": "checkpoint", "step": 2, "order_digest": ""})["stop"] is True


def test_a_checkpoint_that_is_asked_for_is_answered_until_one_is_saved(notes: Notes) -> None:
    recorder = Recorder(notes)
    assert recorder.record(steps(1))["checkpoint"] is False
    recorder.request_checkpoint()
    assert [recorder.record(steps(n))["checkpoint"] for n in (2, 3)] == [True, True]
    unasked = {"kind": "checkpoint", "step": 2, "order_digest": "", "asked": False}
    assert recorder.record(unasked)["checkpoint"] is True, "it was begun before, and training has gone on since"
    assert recorder.record({**unasked, "step": 3, "asked": True})["checkpoint"] is False
    recorder.request_checkpoint()
    recorder.forget_checkpoint()
    assert recorder.record(steps(4))["checkpoint"] is False


def test_a_group_is_held_before_its_first_step_or_not_at_all() -> None:
    recorder = Recorder(Notes())
    assert recorder.begin("a0") and not recorder.hold(["a0", "a1"]), "it trains already"
    assert recorder.hold(["b0", "b1"]) and not recorder.begin("b0")
    assert not recorder.hold(["b0", "b1"]), "nobody has ended it, so it trains now"
    assert recorder.begin("c0"), "another group"


def test_a_checkpoint_that_is_asked_for_before_the_workers_begin_is_saved_at_their_first_step(notes: Notes) -> None:
    """A node that came while they imported torch: seen, a run that never grew."""
    recorder = Recorder(notes)
    recorder.request_checkpoint()
    recorder.record({"kind": "start", "step": 3, "world_size": 1})
    assert recorder.record(steps(4))["checkpoint"] is True


def test_a_warning_without_a_step_gets_the_newest(notes: Notes) -> None:
    recorder = Recorder(notes)
    recorder.record(steps(1, 2, 3))
    recorder.warn("nodes", "no node came")
    (event,) = recorder.events_from(1)
    assert (event["kind"], event["name"], event["step"], event["message"]) == ("warning", "nodes", 3, "no node came")


def test_fatal_is_an_event_with_message_and_exit_code(notes: Notes) -> None:
    recorder = Recorder(notes)
    recorder.record(steps(1))
    recorder.fatal("the stream is broken", 5)
    assert recorder.events_from(1) == [{"kind": "fatal", "message": "the stream is broken", "exit_code": 5}]


def test_events_come_in_order_and_from_where_one_stopped(notes: Notes) -> None:
    recorder = Recorder(notes)
    kinds = ["start", "checkpoint", "validation", "finish"]
    for kind in kinds:
        recorder.record({"kind": kind, "step": 3})
    assert [event["kind"] for event in recorder.events_from(0)] == kinds
    assert [event["kind"] for event in recorder.events_from(3)] == ["finish"] and recorder.events_from(4) == []


def test_new_driver_does_not_track_what_the_last_one_did(notes: Notes) -> None:
    notes.last = {"train": 3, "validation": 2, "evaluation": 2}
    recorder = Recorder(notes)
    recorder.start()
    recorder.record(steps(2, 3, 4))
    recorder.record({"kind": "validation", "step": 2, "sources": {}})
    recorder.record({"kind": "validation", "step": 4, "sources": {}})
    assert recorder.flush(5) == 0
    assert numbers([e for e in notes.logged if e["kind"] == "steps"]) == [[4]]
    assert [e["step"] for e in notes.logged if e["kind"] == "validation"] == [4]
    for step in (2, 4, 4):
        recorder.record({"kind": "evaluation", "step": step, "tasks": {}})
    assert recorder.flush(5) == 0
    assert [e["step"] for e in notes.logged if e["kind"] == "evaluation"] == [4]


def test_server_that_is_away_costs_nothing_but_delay(notes: Notes) -> None:
    recorder = Recorder(notes)
    recorder.outbox._retry_s = 0.01
    notes.is_away = True
    recorder.record(steps(1))
    recorder.record(steps(2))
    assert recorder.flush(0.05) == 2 and notes.logged == []
    notes.is_away = False
    recorder.record(steps(3))
    assert recorder.flush(5) == 0
    assert numbers(notes.logged) == [[1], [2], [3]]


def test_start_and_finish_reach_the_tracker(notes: Notes) -> None:
    recorder = Recorder(notes)
    assert recorder.start() == "run-1"
    recorder.finish("stopped", {"a.txt": "text"})
    assert notes.closed == [("stopped", {"a.txt": "text"})]


def test_events_that_never_arrive_are_said_at_the_end(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINISH_PATIENCE_S", 0.05)
    recorder, notes.is_away = Recorder(notes), True
    recorder.record(steps(1))
    with pytest.raises(TrackingError, match="has not taken the last 1 events"):
        recorder.finish("completed", {})
    assert notes.closed == []


def pulse(rank: int, changes: int, world: int = 2, pid: int = 7) -> dict[str, Any]:
    return {"rank": rank, "world": world, "pid": pid, "node": "n", "phase": "step", "step": 3, "block": None,
            "changes": changes, "begun": True}  # fmt: skip


def test_pulse_ages_tell_silence_from_standing_still(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    recorder = Recorder(notes)
    recorder.pulse(pulse(0, 1))
    recorder.pulse(pulse(1, 1))
    now_s[0] = 110.0
    recorder.pulse(pulse(0, 1))
    assert [(p.rank, p.silent_s, p.unchanged_s) for p in recorder.pulses()] == [(0, 0.0, 10.0), (1, 10.0, 10.0)]
    recorder.pulse(pulse(1, 2))
    recorder.pulse(pulse(0, 1, pid=8))  # another process may count to the same number
    assert [p.unchanged_s for p in recorder.pulses()] == [0.0, 0.0]


def test_pulses_of_a_group_that_ended_are_dropped(notes: Notes) -> None:
    recorder = Recorder(notes)
    for rank in range(3):
        recorder.pulse(pulse(rank, 1, world=3))
    recorder.pulse(pulse(0, 1, world=2))
    assert [(p.rank, p.world) for p in recorder.pulses()] == [(0, 2)]
    recorder.forget_pulses()
    assert recorder.pulses() == []
