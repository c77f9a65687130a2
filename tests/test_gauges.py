"""What Prometheus hears of a run from its driver.

python -m pytest -q tests/test_gauges.py
"""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.driver import gauges as module
from pipelines.driver.gauges import GAUGES, HAPPENINGS, PLANNED, READERS, Gauges, Readings

START = {"kind": "start", "step": 20, "world_size": 3, "at_s": 100.0}
STEPS = {
    "kind": "steps",
    "step": 30,
    "tokens": 4000,
    "world_size": 3,
    "source_losses": {"code": 2.5, "web": 3.5},
    "phase_s": {"data": 1.5, "step": 4.0},
    "at_s": 110.0,
}
CHECKPOINT = {"kind": "checkpoint", "step": 30, "blocking_s": 0.5, "total_s": 2.0, "at_s": 111.0}
FAILURE = {"kind": "failure", "message": "gone", "reason": None, "ranks": [0], "at_s": 112.0}
VALIDATION = {"kind": "validation", "step": 30, "sources": {"code": {"loss": 2.0}}, "at_s": 113.0}
GOODPUT = {"kind": "goodput", "step": 30, "share": {"useful": 0.75, "recovery": 0.25}, "at_s": 114.0}
LEAD = {"kind": "lead", "step": 30, "steps_ahead": 12.5, "tokens_ahead": 9, "curated": {"code": 0.4}, "at_s": 115.0}
FINISH = {"kind": "finish", "status": "completed", "at_s": 116.0}
ALL = [START, STEPS, CHECKPOINT, FAILURE, VALIDATION, GOODPUT, LEAD, FINISH]

State = dict[tuple[str, str], float]  # (name, its labels' values) -> value


class Board:
    """Gauges that remember what was set, as Prometheus would see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: State = {}
        self.runs: set[str] = set()
        board = self

        class Gauge:
            def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]) -> None:
                assert name.startswith("pretrainer_") and text and tag_keys[0] == "run"
                self.name, self.keys = name.removeprefix("pretrainer_"), tag_keys

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tuple(tags) == self.keys  # Ray refuses others
                board.runs.add(tags["run"])
                board.values[self.name, ",".join(tags[key] for key in self.keys[1:])] = value

        monkeypatch.setattr(module, "Gauge", Gauge)
        self.gauges = Gauges("mine")

    def after(self, *events: dict[str, Any]) -> State:
        for event in events:
            self.gauges.notice(event)
        return self.values


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(monkeypatch)


def test_a_run_is_shown_as_its_events_tell_it(board: Board) -> None:
    values = board.after(START, STEPS, CHECKPOINT, VALIDATION, GOODPUT, LEAD)
    expected = {
        ("run_step", ""): 30,
        ("run_tokens", ""): 4000,
        ("world_size", ""): 3,
        ("source_loss", "web"): 3.5,
        ("checkpoint_step", ""): 30,
        ("checkpoint_unix_s", ""): 111,
        ("checkpoint_blocking_s", ""): 0.5,
        ("checkpoint_total_s", ""): 2,
        ("val_loss", "code"): 2,
        ("goodput_share", "recovery"): 0.25,
        ("lead_steps", ""): 12.5,
        ("curated_share", "code"): 0.4,
        ("rank0_seconds", "data"): 1.5,
        ("happenings", "worker_group"): 1,
    }
    assert {key: values[key] for key in expected} == expected
    assert board.runs == {"mine"}


def test_every_gauge_is_set_by_something(board: Board) -> None:
    assert {name for name, _labels in board.after(*ALL)} == set(GAUGES)


def test_the_age_of_a_checkpoint_counts_from_the_first_event_while_there_is_none(board: Board) -> None:
    """Or an alert would never see a run that does not come to its first checkpoint."""
    assert board.after(START, STEPS)["checkpoint_unix_s", ""] == 100


def test_seconds_by_phase_add_up(board: Board) -> None:
    assert board.after(STEPS, STEPS)["rank0_seconds", "data"] == 3.0


@pytest.mark.parametrize("event", [FAILURE, FINISH])
def test_without_workers_the_world_is_empty(board: Board, event: dict[str, Any]) -> None:
    assert board.after(START, event)["world_size", ""] == 0
    assert board.after({**START, "world_size": 2})["world_size", ""] == 2


def test_a_restart_shows_the_step_it_goes_back_to(board: Board) -> None:
    assert board.after(STEPS, FAILURE, START)["run_step", ""] == 20


def test_what_is_nobodys_fault_is_no_failure(board: Board) -> None:
    values = board.after(START, FAILURE, {**FAILURE, "reason": "preempted"}, {**FAILURE, "reason": "preempted"})
    assert (values["happenings", "failure"], values["happenings", PLANNED]) == (1, 2)


def test_what_has_not_happened_is_zero_and_not_unknown(board: Board) -> None:
    """`increase` of a series that appears with 1 is 0: the first failure would be seen by no alert."""
    happenings = {labels: value for (name, labels), value in board.after(STEPS).items() if name == "happenings"}
    assert happenings == dict.fromkeys((*HAPPENINGS.values(), PLANNED), 0)


def test_an_event_without_a_reader_or_a_stamp_is_no_error(board: Board) -> None:
    assert board.after({"kind": "sample", "step": 3, "ids": []}) == {}
    assert board.after({"kind": "fatal", "message": "m", "exit_code": 5}) == {("happenings", "fatal"): 1}


def test_readings_name_gauges_with_their_labels() -> None:
    for event in ALL:
        for reading in Readings().of(event):
            assert tuple(reading.labels) == GAUGES[reading.name][1]
    assert set(READERS) <= {event["kind"] for event in ALL}
