"""What trials are tried, and that all of them see the same tokens whatever their batch."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from pretrainer.config import SweepConfig
from pretrainer.errors import ConfigError
from pretrainer.train.optim.schedule import learning_rate
from pretrainer.tuning.optuna_search import Known
from pretrainer.tuning.space import (
    BATCH,
    LEARNING_RATE,
    check_space,
    count_trials,
    draw,
    grid,
    horizon,
    next_parameters,
    tokens_of,
    total_tokens,
    trial_config,
    trial_name,
)
from tests.tuning.sweeps import RATES, sweep_config

RANGE = "{field: train.learning_rate, low: 1e-4, high: 1e-1}"
BATCH_RANGE = "{field: train.global_batch_tokens, low: 1024, high: 8192, multiple_of: 512}"


def test_a_grid_is_every_combination_once_from_its_middle_outwards() -> None:
    sweep = sweep_config().sweep
    found = grid(sweep.space)
    assert len({tuple(p.items()) for p in found}) == 12 == count_trials(sweep)
    assert found[0][BATCH] == 2048 and found[0][LEARNING_RATE] in (6e-3, 18e-3)
    assert {(p[BATCH], p[LEARNING_RATE]) for p in found[-4:]} == {(b, r) for b in (1024, 4096) for r in (2e-3, 54e-3)}


def test_a_grid_goes_on_with_what_was_not_tried() -> None:
    sweep = sweep_config().sweep
    found, known = [], []
    while (parameters := next_parameters(sweep, known)) is not None:
        found.append(parameters)
        known.insert(0, Known(parameters, None, False))  # in whatever order they are known
    assert found == grid(sweep.space)
    later = [Known(parameters, None, True) for parameters in found[3:7]]  # those of a grid that has been widened
    assert next_parameters(sweep, later) == found[0]
    assert next_parameters(sweep, [Known(found[0], None, True), *later]) == found[1]


def test_random_trials_are_a_function_of_seed_and_number() -> None:
    sweep = sweep_config("sweep.search=random", "sweep.trials=40", space=f"[{RANGE}, {BATCH_RANGE}]").sweep
    drawn = [draw(sweep.space, sweep.seed, number) for number in range(40)]
    assert drawn[7] == draw(sweep.space, sweep.seed, 7) != draw(sweep.space, sweep.seed + 1, 7)
    assert all(1e-4 <= p[LEARNING_RATE] <= 1e-1 and p[BATCH] % 512 == 0 and 1024 <= p[BATCH] <= 8192 for p in drawn)
    below = sum(p[LEARNING_RATE] < 10**-2.5 for p in drawn)  # half of a logarithmic axis
    assert 10 <= below <= 30


def test_random_trials_never_repeat_and_end() -> None:
    sweep = sweep_config("sweep.search=random", "sweep.trials=4", space=f"[{RATES}]").sweep
    known: list[Known] = []
    while (parameters := next_parameters(sweep, known)) is not None:
        known.append(Known(parameters, 1.0, True))
    assert sorted(k.parameters[LEARNING_RATE] for k in known) == [2e-3, 6e-3, 18e-3, 54e-3]


def bowl_of(parameters: dict) -> float:
    return math.log(parameters[LEARNING_RATE] / 3e-3) ** 2 + (parameters[BATCH] / 3000 - 1) ** 2


def test_optuna_finds_the_optimum_and_proposes_the_same_from_the_same_records() -> None:
    sweep = sweep_config("sweep.search=optuna", "sweep.trials=30", space=f"[{RANGE}, {BATCH_RANGE}]").sweep
    known: list[Known] = []
    while (parameters := next_parameters(sweep, known)) is not None:
        assert parameters == next_parameters(sweep, known)
        known.append(Known(parameters, bowl_of(parameters), True))
    losses = [trial.loss or 0.0 for trial in known]
    assert len(known) == 30 and min(losses[15:]) < min(losses[:8])
    assert sum(losses[15:]) / 15 < sum(losses[:8]) / 8
    assert all(p.parameters[BATCH] % 512 == 0 for p in known)


def test_optuna_takes_failed_and_running_trials() -> None:
    sweep = sweep_config("sweep.search=optuna", "sweep.trials=30", space=f"[{RANGE}, {BATCH_RANGE}]").sweep
    known = [Known(draw(sweep.space, 0, n), None if n % 3 else 1.0, n % 2 == 0) for n in range(12)]
    assert next_parameters(sweep, known) is not None


def test_all_batches_see_the_same_tokens() -> None:
    config = sweep_config()
    assert {tokens_of(config, parameters) for parameters in grid(config.sweep.space)} == {total_tokens(config)}
    asked = config.total_steps * config.train.global_batch_tokens
    assert abs(total_tokens(config) / asked - 1) < 0.02
    for batch in (1024, 2048, 4096):
        length = horizon(total_tokens(config), batch, 8)
        assert length.steps == 8 * length.report_steps and length.steps * batch == total_tokens(config)


def trial_of(batch: int, rate: float = 6e-3, *overrides: str):  # noqa: ANN201
    parameters = {BATCH: batch, LEARNING_RATE: rate}
    return trial_config(sweep_config(*overrides), parameters, trial_name(3, parameters), "/s/trials", "/s")


def test_a_trial_says_in_its_own_steps_what_the_config_says_in_tokens() -> None:
    small, large = trial_of(1024), trial_of(4096)
    for config in (small, large):
        batch = config.train.global_batch_tokens
        assert config.total_steps * batch == total_tokens(sweep_config())
        assert config.train.validate_every_steps * 8 == config.total_steps
        assert config.train.checkpoint_every_steps * batch == pytest.approx(175 * 2048, rel=0.02)
        assert config.train.log_every_steps * batch == 20 * 2048
        assert config.monitor.every_steps * batch == 100 * 2048
        warmup = config.train.warmup(config.total_steps) * batch
        assert warmup == pytest.approx(60 / 700 * total_tokens(sweep_config()), abs=batch)
    same_token = [learning_rate(c.train, int(0.6 * c.total_steps), c.total_steps) for c in (small, large)]
    assert same_token[0] == pytest.approx(same_token[1], rel=0.02)


def test_a_trial_is_a_run_of_its_own_on_the_tokens_of_the_sweep() -> None:
    config, base = trial_of(2048, 18e-3), sweep_config()
    assert config.run.name == "003-batch2048-lr0.018" and config.run.storage == "/s/trials"
    assert config.run.data_from == "/s" and config.sweep == SweepConfig()
    assert config.train.learning_rate == 18e-3 and config.model == base.model and config.data == base.data
    assert config.run.seed == base.run.seed


def test_nothing_but_the_scheduler_ends_a_trial_before_its_time() -> None:
    config = trial_of(2048, 6e-3, "train.checkpoint_every_steps=25", "train.validate_every_steps=25",
                      "train.keep_best=true", "train.milestone_every_steps=50", "evaluation.stop_after_validations=1",
                      "evaluation.full_every_steps=25", "train.export=best")  # fmt: skip
    assert config.evaluation.stop_after_validations is None and not config.evaluation.is_periodic
    assert not config.train.keep_best and config.train.milestone_every_steps is None


def test_what_is_searched_is_not_derived() -> None:
    space = "[{field: train.warmup_ratio, values: [0.0, 0.3]}, {field: model.layers, values: [2, 3]}]"
    config = trial_config(sweep_config(space=space), {"train.warmup_ratio": 0.3, "model.layers": 3}, "a", "/s", "/s")
    assert config.train.warmup_ratio == 0.3 and config.train.warmup_steps is None and config.model.layers == 3


def test_text_and_weights_can_be_searched() -> None:
    space = "[{field: train.schedule, values: [cosine, wsd]}, {field: data.sources.0.weight, values: [0.5]}]"
    parameters = {"train.schedule": "wsd", "data.sources.0.weight": 0.5}
    base = sweep_config("data.sources.0.share=null", "data.sources.1.share=null", space=space)
    config = trial_config(base, parameters, "a", "/s", "/s")
    assert config.train.schedule == "wsd" and config.data.sources[0].weight == 0.5


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("[{field: data.seq_len, values: [64]}]", "same prepared tokens"),
        ("[{field: run.seed, values: [1, 2]}]", "same prepared tokens"),
        ("[{field: train.steps, values: [1, 2]}]", "length of every trial"),
        ("[{field: train.learning_rate}]", "give values, or low and high"),
        ("[{field: train.learning_rate, low: 1e-3}]", "give values, or low and high"),
        ("[{field: train.learning_rate, low: 1e-3, high: 1e-4}]", "less than high"),
        ("[{field: train.learning_rate, low: 0, high: 1e-4}]", "log=false"),
        ("[{field: train.learning_rate, values: [1e-3, 1e-3]}]", "once"),
        (f"[{RANGE}]", "a grid needs values"),
        (f"[{RATES}, {RATES}]", "name every field once"),
        ("[{field: rate, values: [1]}]", "section.field"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep_config(space=space)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.space=[]"], "name the fields to search"),
        (["sweep.space=[{field: train.learning_rat, values: [1]}]"], "not a field"),
        (["sweep.reports=400"], "fewer reports"),
        (["train.steps=20"], "fewer reports"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_space(sweep_config(*overrides))


def test_a_value_that_one_trial_cannot_have_is_told_with_its_field() -> None:
    with pytest.raises(ConfigError, match="train.global_batch_tokens=1000"):
        trial_of(1000)


def test_names_are_folders() -> None:
    assert trial_name(7, {LEARNING_RATE: 4e-3, BATCH: 2048}) == "007-lr0.004-batch2048"
    assert trial_name(0, {"train.schedule": "my.module:f/x"}) == "000-schedulemy.module_f_x"


def test_a_sweep_says_when_its_numbers_cannot_be() -> None:
    for override, said in (
        ("sweep.search=random", "how many trials"), ("sweep.trials=3", "leave it out"),
        ("sweep.grace=0", "share above 0"), ("sweep.reduction=1", "2 or more"),
        ("sweep.reports=0", "1 or more"), ("sweep.target.tokens=1e9", "parameters"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            sweep_config(override)
    assert asdict(SweepConfig())["space"] == ()
