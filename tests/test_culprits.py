"""Which documents a decision names, and that each decision is told once, whoever was killed when.

    python -m pytest -q tests/test_culprits.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.driver import culprits as module
from pipelines.driver.culprits import TOLD, Culprits, documents_of, path_of
from pretrainer.storage import Store
from pretrainer.train.stability.healing import heal_path
from pretrainer.train.stability.policies import Heal

PATIENCE_S = 30.0


def heal(number: int = 0, time_s: float = 10.0, **fields: Any) -> Heal:
    return Heal(number, 7, "loss_spike", "rollback", 0, 9.0, 1.0, 4.0, math.inf, time_s=time_s, **fields)


class Trace:
    """A source whose nth slot block holds document n and a part of document n + 1."""

    def __init__(self, plan: Any) -> None:
        self.name = plan

    def block(self, nth: int) -> tuple[None, list[Any]]:
        return None, [
            SimpleNamespace(source=self.name, shard="a.jsonl", row=row, document=f"{self.name}-{row}", tokens=10)
            for row in (nth, nth + 1)
        ]


class Order:
    """Slot blocks of two sources in turn."""

    def expected(self, number: int) -> tuple[int, int]:
        return number % 2, number // 2

    def line_of(self, number: int) -> int:
        return 0


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(module, "SourceTrace", Trace)
    monkeypatch.setattr(module, "begun_plans", lambda _run, _plans, _segments: [["code", "web"]])
    monkeypatch.setattr(module, "Curriculum", lambda *_: Order())
    return SimpleNamespace(plans=[SimpleNamespace(data_uri=str(tmp_path))], segments=())


@pytest.fixture
def told() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def culprits(data: Any, tmp_path: Path, told: list[dict[str, Any]]) -> Culprits:
    return Culprits(Store(str(tmp_path)), data, 4, told.append)


def test_a_document_is_named_once_for_each_step_with_all_its_tokens(data: Any) -> None:
    found = documents_of(data, Order(), range(0, 2), 4)  # type: ignore[arg-type]
    rows = [(one["step"], one["source"], one["row"], one["tokens"]) for one in found]
    step = [("code", 0, 10), ("code", 1, 20), ("web", 0, 10), ("web", 1, 20), ("code", 2, 10), ("web", 2, 10)]
    assert rows == [(0, *one) for one in step] + [(1, name, row + 2, tokens) for name, row, tokens in step]


def test_the_steps_that_are_left_out_are_named_and_kept(
    culprits: Culprits, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    culprits.notice(heal(first_step=6, end_step=8).event())
    assert culprits.drain(PATIENCE_S)
    (event,) = told
    kept = json.loads((tmp_path / path_of(0)).read_text())
    assert (event["kind"], event["first_step"], event["end_step"], event["count"]) == ("culprits", 6, 8, 12)
    assert [one["tokens"] for one in kept] == [20] * 4 + [10] * 8, "those with the most tokens come first"
    assert event["documents"] == kept and {one["step"] for one in kept} == {6, 7}
    assert event["where"].endswith(path_of(0))


def test_where_nothing_is_left_out_the_step_itself_is_named(culprits: Culprits, told: list[dict[str, Any]]) -> None:
    culprits.notice(heal().event())
    assert culprits.drain(PATIENCE_S) and (told[0]["first_step"], told[0]["end_step"]) == (7, 8)


def test_an_event_holds_some_and_the_object_all(
    culprits: Culprits, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    culprits.notice(heal(first_step=0, end_step=60).event())
    assert culprits.drain(PATIENCE_S)
    assert len(told[0]["documents"]) == TOLD < told[0]["count"] == len(json.loads((tmp_path / path_of(0)).read_text()))


def test_a_failure_fails_nothing_and_the_next_decision_is_named(
    culprits: Culprits, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_packed(_self: Any, _nth: int) -> Any:
        raise IndexError("sequence 3 is in no closed pack window")

    with monkeypatch.context() as patched:
        patched.setattr(Trace, "block", not_packed)
        culprits.notice(heal().event())
        assert culprits.drain(PATIENCE_S)
    assert told == [] and "decision 0 could not be named: sequence 3" in caplog.text
    culprits.notice(heal(1).event())
    assert culprits.drain(PATIENCE_S) and told[0]["number"] == 1


def test_what_killed_workers_decided_is_told_at_the_next_start(
    culprits: Culprits, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = Store(str(tmp_path))
    for number, time_s in enumerate((10.0, 20.0, 30.0, 99.0)):
        run.write(heal_path(number), json.dumps(heal(number, time_s).to_json()).encode())
    run.write(path_of(0), b"[]")  # named by a driver before this one
    culprits.notice(heal(1, 20.0).event())
    assert culprits.drain(PATIENCE_S)
    told.clear()
    culprits.notice({"kind": "start", "time_s": 50.0})  # number 3 is of this group, which tells it itself
    assert [(event["kind"], event["number"]) for event in told] == [("healing", 2)]
    culprits.notice({"kind": "steps"})
    assert len(told) == 1
