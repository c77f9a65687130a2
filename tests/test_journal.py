"""Events in the run folder: all of them, in order, in few objects, whatever storage does; readers get them back.

    python -m pytest -q tests/test_journal.py
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer import journal
from pretrainer.errors import StorageError
from pretrainer.journal import EVENTS, Journal, interval_s, line_of, object_path, read_events, summed_up
from pretrainer.storage import Store

PATIENCE_S = 20.0


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def numbers(run: Store) -> list[int]:
    return [event["number"] for event in read_events(run)]


def test_events_come_back_in_order_and_once(run: Store) -> None:
    kept = Journal(run.uri, 3)
    for number in range(40):
        kept.put({"kind": "any", "number": number})
        if number % 10 == 0:
            assert kept.flush(PATIENCE_S)
    assert kept.flush(PATIENCE_S) and numbers(run) == list(range(40))
    assert all(entry.path.startswith(f"{EVENTS}/000003-") for entry in run.list(EVENTS))


def test_nothing_is_written_for_every_event(run: Store) -> None:
    kept = Journal(run.uri, 1)
    for number in range(500):
        kept.put({"kind": "any", "number": number})
    assert kept.flush(PATIENCE_S) and len(run.list(EVENTS)) == 1


def test_drivers_follow_each_other(run: Store) -> None:
    for driver in (2, 1, 10):
        kept = Journal(run.uri, driver)
        kept.put({"kind": "any", "number": driver})
        assert kept.flush(PATIENCE_S)
    assert numbers(run) == [1, 2, 10]


def test_events_are_written_without_being_asked(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FIRST_INTERVAL_S", 0.01)
    kept = Journal(run.uri, 1)
    kept.put({"kind": "any", "number": 7})
    writer = kept._writer
    assert writer is not None
    with writer.changed:
        assert writer.changed.wait_for(lambda: not writer.waiting, PATIENCE_S)
    assert numbers(run) == [7]


def test_storage_that_fails_loses_nothing_and_stops_nobody(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refused write may have arrived all the same: the second attempt has the same bytes."""
    real, fails = Store.create, [True]

    def create(self: Store, path: str, data: bytes) -> bool:
        answer = real(self, path, data)
        if fails and fails.pop():
            raise StorageError("the answer was lost")
        return answer

    monkeypatch.setattr(Store, "create", create)
    kept = Journal(run.uri, 1)
    kept.put({"kind": "any", "number": 0})
    assert not kept.flush(0.5)
    for number in range(1, 20):
        kept.put({"kind": "any", "number": number})
    assert kept.flush(PATIENCE_S) and kept.flush(PATIENCE_S)
    assert numbers(run) == list(range(20))


def test_a_journal_travels_before_its_first_event(run: Store) -> None:
    there = pickle.loads(pickle.dumps(Journal(run.uri, 4)))
    assert there.flush(0.1)  # nothing to write
    there.put({"kind": "any", "number": 1})
    assert there.flush(PATIENCE_S) and numbers(run) == [1]


def test_a_run_without_events_has_none(run: Store) -> None:
    assert read_events(run) == []


@given(st.floats(0, 1e8))
def test_objects_of_a_long_run_are_bounded(age_s: float) -> None:
    assert journal.FIRST_INTERVAL_S <= interval_s(age_s) <= journal.LAST_INTERVAL_S
    assert interval_s(age_s) <= interval_s(age_s + 1)


def test_a_month_has_few_thousand_objects() -> None:
    age_s, objects = 0.0, 0
    while age_s < 30 * 86400:
        age_s, objects = age_s + interval_s(age_s), objects + 1
    assert objects < 10_000
    assert interval_s(0) == 5 and interval_s(600) == 10 and interval_s(1e6) == 300


def test_what_is_bulky_is_left_out_and_steps_are_summed_up() -> None:
    steps = [{"step": n, "loss": float(n), "grad_norm": 2.0 * n, "learning_rate": 0.1 / n} for n in (3, 4, 5)]
    event = {"kind": "steps", "step": 5, "steps": steps, "expert_tokens": [[1] * 64], "mfu": 0.5}
    found = json.loads(line_of(event))
    assert found == {
        "kind": "steps", "step": 5, "mfu": 0.5, "first_step": 3, "learning_rate": 0.02, "loss": 4.0, "loss_max": 5.0,
        "grad_norm": 8.0, "grad_norm_max": 10.0,
    }  # fmt: skip
    assert "values" not in line_of({"kind": "look", "values": {"x": 1}}) and "steps" in event


def test_what_is_no_json_ends_nothing_and_loses_nothing_else(run: Store, caplog: pytest.LogCaptureFixture) -> None:
    kept = Journal(run.uri, 1)
    for event in ({"number": 1}, {"number": object()}, {"kind": "steps", "number": 2, "steps": 3.5}, {"number": 4}):
        kept.put({"kind": "any", **event})
    assert kept.flush(PATIENCE_S) and numbers(run) == [1, 4] and "is not kept" in caplog.text


def test_what_is_not_finite_is_valid_json() -> None:
    steps = [{"step": 1, "loss": float("nan"), "grad_norm": float("inf")}, {"step": 2, "loss": 3.0, "grad_norm": 1.0}]
    assert summed_up(steps)["loss"] == 3.0 and summed_up(steps)["grad_norm_max"] == 1.0
    assert "loss" not in summed_up(steps[:1]) and summed_up([]) == {}
    event = {"kind": "healing", "loss": float("nan"), "seen": [[float("inf"), 1.0]], "more": {"x": float("-inf")}}
    assert json.loads(line_of(event)) == {"kind": "healing", "loss": None, "seen": [[None, 1.0]], "more": {"x": None}}


def test_names_sort_as_drivers_and_events_do() -> None:
    places = [(1, 0), (1, 9), (1, 10), (2, 0), (10, 3)]
    assert [object_path(*place) for place in places] == sorted(object_path(*place) for place in reversed(places))
