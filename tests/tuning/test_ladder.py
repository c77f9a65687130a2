"""A finished ladder becomes a law: from the records of a sweep to `pipelines.plan --fit`.

    python -m pytest -q tests/tuning/test_ladder.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines import plan as command
from pretrainer.config import Config
from pretrainer.config_load import load_config, to_yaml
from pretrainer.errors import ConfigError, UserError
from pretrainer.model.presets import parameter_count
from pretrainer.plan.laws import LossFit
from pretrainer.plan.report import as_text
from pretrainer.storage import Store
from pretrainer.tuning.ladder import climb, fit_tables, render_fit, runs_of
from pretrainer.tuning.records import Progress, Records, Report, Trial
from pretrainer.tuning.report import Sweep, tables
from pretrainer.tuning.space import check_space, grid, longest, tokens_of, trial_config, trial_name
from tests.data.harness import document, make_plan
from tests.tuning.sweeps import sweep_config

LAW = LossFit("small", 1.9, 30.0, 300.0, 0.30, 0.35)
SPACE = (
    "[{field: model.hidden, values: [32, 64, 128]}, "
    "{field: train.tokens, values: [131072, 262144, 524288, 1048576]}]"
)
VOCABULARY = 440


def ladder_config(*overrides: str) -> Config:
    return sweep_config("sweep.reports=2", "model.heads=2", *overrides, space=SPACE)


def trials(config: Config, without: Sequence[int] = ()) -> list[Trial]:
    """Every trial at the law's loss; those of `without` have not ended."""
    found = []
    for number, parameters in enumerate(grid(config.sweep.space)):
        one = trial_config(config, parameters, "t", "/s", "/s")
        size, tokens = parameter_count(one.model, VOCABULARY), tokens_of(config, parameters)
        reports = (Report(one.total_steps, tokens, LAW.loss(size, tokens), 1.0),)
        progress = Progress("running" if number in without else "completed", reports=reports, trained_tokens=tokens)
        found.append(Trial(number, trial_name(number, parameters), parameters, progress))
    return found


def test_trials_of_a_ladder_have_their_own_lengths_and_schedules() -> None:
    config = ladder_config()
    check_space(config)
    lengths = set()
    for parameters in grid(config.sweep.space):
        one = trial_config(config, parameters, "t", "/s", "/s")
        lengths.add(one.total_steps * one.train.global_batch_tokens)
        assert one.total_steps * one.train.global_batch_tokens == tokens_of(config, parameters)
        assert one.train.validate_every_steps * 2 == one.total_steps
        assert one.train.warmup(one.total_steps) / one.total_steps == pytest.approx(60 / 700, abs=1 / 60)
    assert sorted(lengths) == [131072, 262144, 524288, 1048576] and longest(config) == 1048576
    with pytest.raises(ConfigError, match="use none"):
        ladder_config("sweep.scheduler=asha")


def test_runs_count_what_was_trained() -> None:
    config = ladder_config()
    runs = runs_of(config, trials(config, without=[3]), VOCABULARY)
    assert len(runs) == 11 and [run.flops for run in runs] == sorted(run.flops for run in runs)
    assert len({run.parameters for run in runs}) == 3 and all(run.loss == LAW.loss(*run[:2]) for run in runs)


def test_the_law_comes_back_and_predicts_the_run_that_was_held_back() -> None:
    config = ladder_config()
    ladder = climb(config, trials(config), VOCABULARY)
    assert ladder.held.run == ladder.runs[-1] and abs(ladder.held.error) < 0.005
    assert ladder.whole.largest_error < 0.005
    text = as_text(fit_tables(ladder))
    assert "held back" in text and "1.05M" in text and "alpha" in text and "0.3478" not in text and "0.348" in text
    page = render_fit(ladder).decode()
    assert page.count('<circle class="trial') == 11 and page.count('<circle class="optimum') == 1
    assert "<script" not in page and page.endswith("</html>\n")


def test_a_ladder_that_is_not_over_is_told() -> None:
    config = ladder_config()
    with pytest.raises(UserError, match="2 runs of quickstart are not over"):
        climb(config, trials(config, without=[1, 5]), VOCABULARY)


def test_lengths_are_not_compared_with_each_other() -> None:
    config = ladder_config()
    sweep = Sweep(config, trials(config), (), VOCABULARY)
    titles = [table.title for table in tables(sweep)]
    assert titles == ["sweep", "trials"] and sweep.whole_tokens == 3 * (131072 + 262144 + 524288 + 1048576)


def test_the_command_fits_a_sweep_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_plan(tmp_path / "ladder", [document(n) for n in range(30)])
    config, run = ladder_config("run.name=ladder"), Store(str(tmp_path / "ladder"))
    run.write("config.yaml", to_yaml(config).encode())
    records = Records(run)
    for trial in trials(config):
        records.write(records.add(trial.number, trial.parameters).name, trial.progress)
    picture = tmp_path / "fit.html"
    assert command.main(["--fit", "ladder", "--storage", str(tmp_path), "--picture", str(picture)]) == 0
    assert "predicted loss" in capsys.readouterr().out and picture.read_bytes().startswith(b"<!doctype html>")
    found = json.loads(run.read("fit.json"))
    assert len(found["runs"]) == 12 and abs(found["held_back"]["error"]) < 0.005 and found["law"]["alpha"] > 0
    with pytest.raises(UserError, match="not a run folder"):
        command.main(["--fit", "absent", "--storage", str(tmp_path)])


def test_the_shipped_ladder_is_one() -> None:
    config = load_config("configs/ladder.yaml", [])
    check_space(config)
    assert len(grid(config.sweep.space)) == 12
