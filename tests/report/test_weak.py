"""Every rule says nothing of a sound run, and its own sentence of one with its own weakness.

    python -m pytest -q tests/report/test_weak.py
"""

from __future__ import annotations

from typing import Any

import pytest

from pretrainer.report.facts import Facts
from pretrainer.report.story import tell
from pretrainer.report.weak import RULES, findings
from tests.report.example import SHARE, SUMMARY, counts, empty, facts, heal, start, steps_event, task, validation

CALM = [start(0, 2), *(steps_event(step, 5.0 - step / 250) for step in range(10, 201, 10)), validation(200, 4.3)]


def sound(**changes: Any) -> Facts:
    return facts(**{"events": CALM, "heals": (), "attempts": [{"step": 0, "world_size": 2}],
                    "sources": {"web": counts(100, 80, {"duplicate_near": 20})}, **changes})  # fmt: skip


def said(known: Facts) -> dict[str, str]:
    return findings(known, tell(known))


def test_nothing_is_said_of_a_sound_run() -> None:
    assert said(sound()) == {}


def summary(**changes: Any) -> dict[str, Any]:
    return {"summary": {**SUMMARY, **changes}}


LOST = {**SHARE, "useful": 0.6, "recovery": 0.37}
WEAK: dict[str, tuple[dict[str, Any], str]] = {
    "not_finished": ({"status": "failed", "message": "it broke"}, "failed at step 200 of 200. it broke"),
    "ended_early": (summary(early_stop={"step": 90, "stop_after_validations": 3, "min_improvement": 0.01}),
                    "after step 90: 3 validations in a row were no better by 0.01 nats"),
    "no_better_than_gzip": ({"held_out": {name: {"documents": 40, "gzip_bits_per_byte": gzip}
                                          for name, gzip in (("web", 2.1), ("code", 2.2))}},
                            "web 2.150 (gzip -9 2.100)."),
    "memorised": (summary(val_loss=5.3), "a gap of 1.1"),
    "rising": ({"events": [*CALM, validation(150, 4.0)]}, "web 4.300 (least 4.000 at step 150); code"),
    "spikes": ({"heals": [heal(), heal(policy="skip", first_step=3, end_step=5)]}, "2 × loss spike; steps left out: 2"),
    "warned": ({"events": [*CALM, {"kind": "warning", "step": 3, "message": "it varies"}]}, "Warning: it varies."),
    "disturbed": ({"events": [*CALM, {"kind": "stall", "message": "x"}],
                   "attempts": [{"step": 0, "world_size": 2}] * 2}, "started again once (1 × stall)"),
    "repeated": ({"mixture": {"web": {"asked": 1.0, "realised": 1.0}}, "batch_tokens": 1500}, "web 5.0 times"),
    "few_held_out": ({"held_out": {"web": {"documents": 3}}}, "few documents: web 3"),
    "not_evaluated": ({"evaluation": [{"step": 1, "tasks": {"held-out web": task(0.9)}}]}, "No task was evaluated"),
    "guessing": ({"evaluation": [{"step": 1, "tasks": {"arc": task(0.28)}}]}, "arc 28.0% (guess 25.0%)"),
    "slow_data": (summary(data_wait_fraction=0.2), "20.0% of its time"),
    "little_goodput": ({"goodput": {"fraction": 0.6, "share": LOST, "worker_s": 1.0}}, "37.0%, was recovery"),
    "low_mfu": ({"events": [{**event, "mfu": 0.1} if event["kind"] == "steps" else event for event in CALM]},
                "10.0% of their peak"),
    "harsh_filter": ({"sources": {"web": counts(100, 30, {"short": 70})}}, "web: short 70%"),
    "dead_letters": ({"sources": {"web": counts(100, 90, {}, 10)}}, "web 10.0%"),
    "off_mixture": ({"mixture": {"web": {"asked": 0.75, "realised": 0.7}}}, "web 70.00% (asked 75.00%)"),
}  # fmt: skip


def test_every_rule_has_its_case() -> None:
    assert list(WEAK) == list(RULES)


@pytest.mark.parametrize("name", WEAK)
def test_a_weakness_is_named_with_its_numbers_and_alone(name: str) -> None:
    changes, words = WEAK[name]
    found = said(sound(**changes))
    assert list(found) == [name] and words in found[name]


def test_a_run_that_has_recorded_nothing_is_told_to_be_unfinished_and_unevaluated() -> None:
    assert list(said(empty())) == ["not_finished", "not_evaluated"]


def test_waiting_is_seen_while_a_run_goes_on() -> None:
    slow = [{**event, "data_wait_fraction": 0.3} if event["kind"] == "steps" else event for event in CALM]
    assert "30.0%" in said(sound(status="running", summary={}, events=slow))["slow_data"]
