"""Schedules against closed forms: at step 0, at the end of the warm-up, at the last step, and in between.

    python -m pytest -q tests/train/optim/test_schedule.py
"""

import math
from collections.abc import Callable

import pytest

from pretrainer.config import TrainConfig
from pretrainer.config_load import parse_config
from pretrainer.errors import ConfigError
from pretrainer.train.optim.schedule import SCHEDULES, Moment, check_schedule, learning_rate, moment, multiplier

TOTAL, WARMUP, MIN = 111, 10, 0.1
AFTER = range(WARMUP, TOTAL)  # 101 steps: progress runs over 0, 0.01, ..., 1
HERE = "tests.train.optim.test_schedule"

CLOSED_FORMS: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - 0.9 * t,
    "cosine": lambda t: 0.55 + 0.45 * math.cos(math.pi * t),
    "cosine_restarts": lambda t: 0.55 + 0.45 * math.cos(math.pi * (1 if t == 1 else 4 * t - math.floor(4 * t))),
    "polynomial": lambda t: 0.1 + 0.9 * (1 - t) ** 3,
    "inverse_sqrt": lambda t: max(0.1, (10 / (10 + 100 * t)) ** 0.5),
    "wsd": lambda t: 1.0 if t <= 0.8 else 1 - 0.9 * ((t - 0.8) / 0.2) ** 0.5,
}


def value(name: str, step: int, total: int = TOTAL, warmup: int = WARMUP) -> float:
    at = Moment(step=step, total_steps=total, warmup_steps=warmup, min_ratio=MIN, cycles=4, power=3.0)
    return multiplier(name, at)


def test_every_schedule_has_a_closed_form_here() -> None:
    assert CLOSED_FORMS.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_is_linear_from_its_first_share_and_meets_the_peak(name: str) -> None:
    got = [value(name, step) for step in range(WARMUP + 1)]
    assert got == pytest.approx([0.1 * i for i in range(1, 11)] + [1.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_warm_up_the_closed_form_holds(name: str) -> None:
    for step in AFTER:
        assert value(name, step) == pytest.approx(CLOSED_FORMS[name]((step - WARMUP) / 100), abs=1e-6), step


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant", "inverse_sqrt"}))
def test_the_last_step_and_any_later_one_are_at_the_end_of_the_schedule(name: str) -> None:
    assert value(name, TOTAL - 1) == pytest.approx(MIN)
    assert value(name, TOTAL + 50) == pytest.approx(MIN)


def test_inverse_square_root_halves_at_four_times_the_warm_up_and_has_a_floor() -> None:
    assert value("inverse_sqrt", 4 * WARMUP) == pytest.approx(0.5)
    assert value("inverse_sqrt", 10_000) == MIN
    assert [value("inverse_sqrt", step, warmup=0) for step in (0, 3)] == pytest.approx([1.0, 0.5])


def test_each_restart_is_at_the_peak_and_one_cycle_is_the_cosine() -> None:
    peaks = [step for step in AFTER if value("cosine_restarts", step) == pytest.approx(1.0)]
    assert peaks == [10, 35, 60, 85]
    one = [Moment(step=step, total_steps=TOTAL, warmup_steps=WARMUP, min_ratio=MIN) for step in range(TOTAL)]
    assert [multiplier("cosine_restarts", at) for at in one] == [multiplier("cosine", at) for at in one]
    assert [multiplier("polynomial", a) for a in one] == pytest.approx([multiplier("linear", a) for a in one])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 10)])
def test_runs_shorter_than_the_warm_up_still_train(name: str, total: int, warmup: int) -> None:
    assert all(0 < value(name, step, total, warmup) <= 1 for step in range(total))


def test_the_learning_rate_is_a_share_of_the_peak() -> None:
    config = TrainConfig(steps=TOTAL, learning_rate=3e-3, warmup_steps=WARMUP, min_lr_ratio=MIN, schedule="linear")
    assert learning_rate(config, 4, TOTAL) == pytest.approx(1.5e-3)
    assert learning_rate(config, TOTAL - 1, TOTAL) == pytest.approx(3e-4)


def test_cycles_and_power_reach_the_schedule() -> None:
    config = TrainConfig(steps=TOTAL, warmup_steps=WARMUP, schedule_cycles=4, schedule_power=3.0)
    at = moment(config, 40, TOTAL)
    assert (at.cycles, at.power, at.warmup_steps, at.progress) == (4, 3.0, WARMUP, pytest.approx(0.3))


# ------------------------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    ("settings", "total", "steps"),
    [({}, 10, 100), ({"warmup_steps": 0}, 10, 0), ({"warmup_steps": 7}, 10, 7), ({"warmup_ratio": 0.1}, 30, 3),
     ({"warmup_ratio": 0.1}, 31, 4), ({"warmup_ratio": 0.07}, 100, 7),
     ({"warmup_ratio": 0.0}, 31, 0), ({"warmup_ratio": 1.0}, 31, 31)],
)  # fmt: skip
def test_warm_up_is_given_in_steps_or_as_a_share(settings: dict, total: int, steps: int) -> None:
    assert TrainConfig(steps=total, **settings).warmup(total) == steps


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"warmup_steps": 1, "warmup_ratio": 0.1}, "train.warmup_steps / train.warmup_ratio"),
     ({"warmup_steps": -1}, "train.warmup_steps"), ({"warmup_ratio": 1.1}, "train.warmup_ratio"),
     ({"schedule_cycles": 0}, "train.schedule_cycles"), ({"schedule_power": 0.0}, "train.schedule_power")],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainConfig(steps=1, **settings)


def test_an_override_of_one_kind_of_warm_up_drops_the_other() -> None:
    text = "data: {sources: [{name: a, uris: [/x]}]}\ntrain: {steps: 50, warmup_steps: 5}"
    train = parse_config(text, ["train.warmup_ratio=0.2"]).train
    assert (train.warmup_steps, train.warmup(50)) == (None, 10)


# ---------------------------------------------------------------------------------------------------- functions by path


def halves(at: Moment) -> float:
    return 0.5 ** (at.step - at.warmup_steps)


def broken(at: Moment) -> float:
    return math.nan if at.step == at.total_steps - 1 else 1.0


def test_a_function_by_import_path_is_used_behind_the_warm_up() -> None:
    config = TrainConfig(steps=20, learning_rate=1.0, warmup_steps=4, schedule=f"{HERE}:halves")
    check_schedule(config, 20)
    assert [learning_rate(config, step, 20) for step in (0, 3, 4, 6)] == [0.25, 1.0, 1.0, 0.25]


@pytest.mark.parametrize(
    ("name", "says"),
    [("exp", "'exp'.*constant.*wsd.*package.module:function"), ("no.such.module:f", "cannot be imported"),
     (f"{HERE}:nothing", "cannot be imported.*nothing"), (":f", "cannot be imported"), (f"{HERE}:TOTAL", "is a int"),
     (f"{HERE}:broken", "gives nan at step 19 of 20")],
)  # fmt: skip
def test_a_schedule_that_cannot_run_is_found_before_the_run(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_schedule(TrainConfig(steps=20, warmup_steps=4, schedule=name), 20)
