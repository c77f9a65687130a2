"""How far curation is ahead, from what is in storage; and that looking never hurts a run.

    python -m pytest -q tests/test_lead.py
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.driver import lead as module
from pipelines.driver.lead import Lead, measure
from pretrainer.data.curriculum import Curriculum, make_segments
from pretrainer.errors import StorageError
from pretrainer.journal import line_of
from tests.report.example import config

PER_STEP = 8


def plan(name: str, packed: int, units: int = 4) -> Any:
    """A source with so many slot blocks of two sequences packed."""
    windows = SimpleNamespace(newest=lambda: SimpleNamespace(end_sequence=2 * packed) if packed else None)
    return SimpleNamespace(data_uri="x", windows=windows, units=units, config=SimpleNamespace(slot_sequences=2),
                           source=SimpleNamespace(name=name), ledger=SimpleNamespace(root=name))  # fmt: skip


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Shares 3 : 1, so a step takes 6 and 2 of 8 slot blocks."""
    monkeypatch.setattr(module, "begun_plans", lambda _run, plans, _segments: [plans])
    ledger = lambda root: SimpleNamespace(committed_units=lambda: {"web": 1, "code": 4}[root])  # noqa: E731
    monkeypatch.setattr(module, "Ledger", ledger)
    return SimpleNamespace(plans=[plan("web", 120), plan("code", 30)], segments=make_segments(config(), [0.75, 0.25]))


def test_the_source_that_is_least_ahead_decides(data: Any) -> None:
    curriculum = Curriculum(data.segments, PER_STEP)
    found = measure(data, curriculum, 10)  # 60 and 20 taken, 60 and 10 left
    assert found["steps_ahead"] == pytest.approx(5.0, abs=0.5)
    assert found["tokens_ahead"] == pytest.approx(70 * 2 * 32, abs=130)
    assert found["curated"] == {"web": 0.25, "code": 1.0}
    data.plans[1] = plan("code", 0)
    assert measure(data, curriculum, 10)["steps_ahead"] == 0
    assert measure(data, curriculum, 0)["steps_ahead"] == measure(data, curriculum, 200)["steps_ahead"] == 0


def test_a_look_is_told_after_a_step_when_it_is_time(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "interval_s", lambda _age: 0.0)
    told: list[dict[str, Any]] = []
    lead = Lead(data, PER_STEP, told.append)
    lead.notice({"kind": "checkpoint", "step": 10})
    assert lead.thread is None
    lead.notice({"kind": "steps", "step": 10})
    assert lead.thread is not None
    lead.thread.join(10)
    assert [(event["kind"], event["step"]) for event in told] == [("lead", 10)]
    assert json.loads(line_of(told[0])) == told[0]  # nothing of it is lost on its way into the run folder


def test_looks_are_rare(data: Any) -> None:
    lead = Lead(data, PER_STEP, lambda event: None)
    for step in range(1000):
        lead.notice({"kind": "steps", "step": step})
    assert lead.thread is None  # 5 s have not passed


def test_a_look_that_fails_fails_nothing(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> dict[str, Any]:
        raise StorageError("away")

    monkeypatch.setattr(module, "interval_s", lambda _age: 0.0)
    monkeypatch.setattr(module, "measure", broken)
    told: list[dict[str, Any]] = []
    lead = Lead(data, PER_STEP, told.append)
    for _turn in range(3):
        lead.notice({"kind": "steps", "step": 1})
        assert lead.thread is not None
        lead.thread.join(10)
    assert told == []
