import math

import pytest

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.train.schedule import SCHEDULES, learning_rate, multiplier

TOTAL, WARMUP, MIN = 111, 10, 0.1
AFTER = range(WARMUP, TOTAL)  # 101 steps: progress runs over 0, 0.01, ..., 1


def curve(name):
    return [multiplier(name, step, TOTAL, WARMUP, MIN) for step in range(TOTAL)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_is_linear_and_meets_the_peak(name):
    assert curve(name)[: WARMUP + 1] == pytest.approx([0.1 * i for i in range(1, 11)] + [1.0])


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("constant", lambda t: 1.0),
        ("linear", lambda t: 1 - 0.9 * t),
        ("cosine", lambda t: 0.55 + 0.45 * math.cos(math.pi * t)),
        ("wsd", lambda t: 1.0 if t <= 0.8 else 1 - 0.9 * ((t - 0.8) / 0.2) ** 0.5),
    ],
)
def test_after_warm_up_the_closed_form_holds(name, closed_form):
    values = curve(name)
    for step in AFTER:
        assert values[step] == pytest.approx(closed_form((step - WARMUP) / 100), abs=1e-6), step


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
def test_the_last_step_and_any_later_one_are_at_the_end_of_the_schedule(name):
    assert curve(name)[-1] == pytest.approx(MIN)
    assert multiplier(name, TOTAL + 50, TOTAL, WARMUP, MIN) == pytest.approx(MIN)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 10)])
def test_runs_shorter_than_the_warm_up_still_train(name, total, warmup):
    assert all(0 < multiplier(name, step, total, warmup, MIN) <= 1 for step in range(total))


def test_the_learning_rate_is_a_share_of_the_peak():
    config = TrainConfig(steps=TOTAL, learning_rate=3e-3, warmup_steps=WARMUP, min_lr_ratio=MIN, schedule="linear")
    assert learning_rate(config, 4, TOTAL) == pytest.approx(1.5e-3)
    assert learning_rate(config, TOTAL - 1, TOTAL) == pytest.approx(3e-4)


def test_an_unknown_schedule_names_the_valid_ones():
    with pytest.raises(ConfigError, match="'exp'.*constant.*wsd"):
        multiplier("exp", 0, 10, 1, 0.1)
