"""Early signs that a run goes wrong.

    python -m pytest -q tests/train/stability/test_health.py
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from pretrainer.train.stability.health import Health, level, noise

CHANCE = math.log(2048)


def steps(loss: Callable[[int], float], norm: Callable[[int], float] = lambda _s: 1.0) -> list[dict[str, Any]]:
    end = 400
    lines = [{"step": s, "loss": loss(s), "grad_norm": norm(s), "applied": True} for s in range(1, end + 1)]
    return [{"kind": "steps", "steps": lines[first : first + 10]} for first in range(0, end, 10)]


def told(*events: dict[str, Any]) -> list[tuple[str, int]]:
    health = Health(CHANCE)
    return [(warning["name"], warning["step"]) for event in events for warning in health.notice(event)]


def falling(step: int) -> float:
    return 2.0 + 5.6 * math.exp(-step / 80) + 0.05 * random.Random(step).gauss(0, 1)


def validation(*losses: float, step: int = 0) -> dict[str, Any]:
    sources = {str(n): {"loss": loss, "targets": 100} for n, loss in enumerate(losses)}
    return {"kind": "validation", "step": step, "sources": sources}


def test_a_healthy_run_is_told_nothing() -> None:
    assert told(validation(CHANCE + 0.3, CHANCE - 0.3), *steps(falling), validation(2.0, step=400)) == []


@pytest.mark.parametrize(("loss", "word"), [(CHANCE + 1.1, "initialisation"), (CHANCE - 1.1, "targets")])
def test_the_first_loss_is_that_of_an_even_guess(loss: float, word: str) -> None:
    warning = Health(CHANCE).notice(validation(loss))[0]
    assert warning["name"] == "first_loss" and word in warning["message"] and f"{loss:.3f}" in warning["message"]


def test_a_loss_above_the_first_one_is_a_divergence_once_the_beginning_is_over() -> None:
    names = dict(told(*steps(lambda s: 7.6 + 0.02 * (-1) ** s + 0.01 * max(0, s - 150))))
    assert list(names) == ["divergence"] and 200 < names["divergence"] <= 200 + 32
    assert told(*steps(lambda s: 7.6 + (2.0 if 10 < s < 60 else 0))) == [], "a hump in the warm-up is none"


def test_gradients_that_vanish_are_told() -> None:
    assert [name for name, _step in told(*steps(falling, lambda s: 1.0 if s < 200 else 1e-4))] == ["vanishing"]
    assert told(*steps(falling, lambda s: 1.0 / s)) == []


def test_a_loss_that_varies_more_and_more_is_told() -> None:
    names = told(*steps(lambda s: falling(s) + (0.4 * (-1) ** s if s > 300 else 0)))
    assert [name for name, _step in names] == ["restless"] and names[0][1] > 300


def test_a_trend_is_no_noise() -> None:
    assert noise(deque([3.0 - 0.01 * n for n in range(32)])) < 0.01
    values = [random.Random(n).gauss(0, 0.3) for n in range(2000)]
    assert noise(deque(values)) == pytest.approx(0.3, rel=0.05)


def test_a_held_out_loss_that_leaves_the_training_loss_behind_is_told() -> None:
    """The held-out text may be harder or easier from the start; what is told is that the two move apart."""
    for offset in (0.0, 0.7, -0.7):
        events: list[dict[str, Any]] = []
        for n, event in enumerate(steps(falling)):
            rising = 0.002 * max(0, 10 * n - 200)
            held_out = 2.0 + 5.6 * math.exp(-(10 * n + 10) / 80) + offset + rising
            events += [event, validation(held_out, step=10 * n + 10)]
        ((name, step),) = told(*events)
        assert name == "overfitting" and 280 <= step <= 340, "0.002 a step from step 200 on, to 0.2"
        healthy = [event for event in events if event["kind"] == "steps"]
        assert told(*healthy, *(validation(2.0 + offset, step=400) for _ in range(3))) == []


def test_a_gap_that_grows_while_the_held_out_loss_falls_is_no_warning() -> None:
    """The quickstart's: it reads a library file by file, whose texts help each other, and gets better to its end."""
    events: list[dict[str, Any]] = []
    for n, event in enumerate(steps(falling)):
        events += [event, validation(5.0 - 0.002 * (10 * n + 10), step=10 * n + 10)]
    assert told(*events) == []


def test_a_gap_before_the_beginning_is_over_says_nothing() -> None:
    early = [validation(0.5, step=20), validation(9.0, step=30)]
    assert told(*steps(falling)[:3], *early, *steps(falling)[3:], validation(2.0, step=400)) == []


def test_the_level_of_a_falling_loss_is_where_it_is_now() -> None:
    assert level(deque(9.0 - 0.25 * n for n in range(32))) == pytest.approx(9.0 - 0.25 * 31)
    assert level(deque([2.0] * 32)) == pytest.approx(2.0)


def test_steps_that_were_not_applied_say_nothing() -> None:
    lines = [{"step": s, "loss": math.nan, "grad_norm": math.nan, "applied": False} for s in range(1, 300)]
    assert told({"kind": "steps", "steps": lines}) == []
