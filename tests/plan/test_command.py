"""The command as a person runs it, and what it reads of a prepared run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import plan as command
from pretrainer.config import Config, RunConfig, TokenizerConfig, TrainConfig
from pretrainer.config_load import load_config, to_yaml
from pretrainer.data.identity import record_parts
from pretrainer.data.prologue import thaw
from pretrainer.errors import ConfigError, UserError
from pretrainer.storage import Store
from tests.data.harness import curated, document, make_plan

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As from a shell; a cluster that is named and is not there would be noticed."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.plan", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plan_from_the_shell_and_the_config_that_it_writes(tmp_path: Path) -> None:
    done = run("--parameters", "1.1M", "--tokens", "1.4M", "--gpu", "l4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1.12M parameters: preset quickstart" in done.stdout and "of the plan" in done.stdout
    assert str(tmp_path / "plan.html") in done.stdout and str(tmp_path / "plan.yaml") in done.stdout
    assert (tmp_path / "plan.html").read_bytes().startswith(b"<!doctype html>")
    config = load_config(str(tmp_path / "plan.yaml"), [])
    assert config.model.preset == "quickstart" and config.train.tokens is not None
    assert 1.4e6 <= config.train.tokens < 1.5e6 and config.train.worker_range == (1, 1)


def test_an_impossible_plan_from_the_shell_is_one_message(tmp_path: Path) -> None:
    done = run("--flops", "1e9", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "smallest preset" in done.stderr and "Nearest possible plan" in done.stderr
    assert list(tmp_path.iterdir()) == []


def planned(tmp_path: Path, *arguments: str) -> Config:
    to, picture = tmp_path / "p.yaml", tmp_path / "p.html"
    assert command.main([*arguments, "--to", str(to), "--picture", str(picture)]) == 0
    return load_config(str(to), [])


def test_options_reach_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("date: '2030-01'\ngpus:\n  A100: {dollars_per_hour: 3}\n")
    config = planned(
        tmp_path, "--preset", "1b", "--tokens-per-parameter", "100", "--gpu", "A100", "--gpus", "16", "--tflops", "100",
        "--prices", str(prices), "--config", str(ROOT / "configs" / "125m.yaml"),
    )  # fmt: skip
    out = capsys.readouterr().out
    assert config.model.preset == "1b" and config.train.num_workers == 16 and config.run.name == "web-code-125m"
    assert config.data.seq_len == 2048 and config.tokenizer.vocab_size == 32_768
    assert config.train.tokens is not None and config.train.tokens > 100e9
    assert "100 TFLOP/s on each" in out and "$3.00 per GPU-hour" in out and "Prices of 2030-01" in out


def test_a_law_and_a_deadline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for law in ("approach1", "approach3"):
        config = planned(tmp_path, "--gpu-hours", "1000", "--law", law, "--days", "2")
        assert config.train.num_workers == 32  # 1000 / 48 hours is 20.8
        sizes[law] = capsys.readouterr().out.splitlines()[1]
    assert sizes["approach1"] != sizes["approach3"]
    with pytest.raises(ConfigError, match="--law='kaplen'"):
        command.main(["--flops", "1e20", "--law", "kaplen"])


@pytest.mark.parametrize("arguments", [["--tokens", "many"], ["--flops", "-1"], ["--config", "a", "--run", "b"]])
def test_arguments_that_are_no_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as told:
        command.main(arguments)
    assert told.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_outputs_are_checked_before_anything_else(tmp_path: Path) -> None:
    for option in ("--to", "--picture"):
        with pytest.raises(UserError, match=f"{option}=.*absent"):
            command.main(["--flops", "1e20", option, str(tmp_path / "absent" / "x")])
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        command.main(["--flops", "1e20", "--config", str(tmp_path / "nowhere.yaml")])


# ------------------------------------------------------------------------------------------------------ a prepared run


@pytest.fixture
def prepared(tmp_path: Path) -> Config:
    """A run folder as `pipelines.prepare` leaves it, nothing curated yet."""
    draft = make_plan(tmp_path / "run", [document(n) for n in range(60)], lines_per_file=10)
    config = Config(
        run=RunConfig(name="run", storage=str(tmp_path)),
        data=draft.config,
        tokenizer=TokenizerConfig(vocab_size=512),
        train=TrainConfig(steps=1, global_batch_tokens=64),
    )
    folder = Store(str(tmp_path / "run"))
    folder.write("config.yaml", to_yaml(config).encode())
    data = folder.child("data")
    data.write("sizes.json", b"[1.0]")
    data.write("held_out/summary.json", b"{}")
    record_parts({"synthetic": {"curation": {"code": 1}, "seq_len": 16}}, data)
    return config


def curate(config: Config, units: int) -> tuple[int, int]:
    """(tokens, units of the source) after curating this many units."""
    (plan,) = thaw(config, Store(config.run.storage).child("run/data")).plans
    curated(plan, range(units))
    return sum(record.tokens for record in plan.ledger.records()), plan.units


def ask(config: Config, tmp_path: Path) -> Config:
    return planned(
        tmp_path, "--run", "run", "--storage", config.run.storage, "--parameters", "0.3M", "--tokens", "40000"
    )


def test_the_ledger_of_a_prepared_run_is_counted(
    prepared: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = thaw(prepared, Store(prepared.run.storage).child("run/data")).plans
    tokens, units = curate(prepared, plan.units)
    config = ask(prepared, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("  synthetic"))
    assert any(line.split() == ["tokenizer", "440", "pieces"] for line in lines)  # the one that there is
    assert row[0] == "synthetic" and row[2] == f"{tokens / 1000:.3g}K" and row[4] == "100%"
    passes = float(row[3])
    assert config.train.tokens is not None and passes == pytest.approx(config.train.tokens / tokens, abs=0.01)
    assert passes > 1 and config.data.sources[0].max_epochs >= passes
    # What the run is known by, and what its chunks were curated with, stays.
    assert (config.run, config.tokenizer, config.data.dedup) == (prepared.run, prepared.tokenizer, prepared.data.dedup)
    assert config.data.seq_len == 16


def test_a_run_that_is_prepared_in_part_is_extrapolated(
    prepared: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = thaw(prepared, Store(prepared.run.storage).child("run/data")).plans
    half = plan.units // 2
    tokens, units = curate(prepared, half)
    ask(prepared, tmp_path)
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  synthetic"))
    assert row[4] == f"{half / units:.0%}" and row[2] == f"{tokens * units / half / 1000:.3g}K"


def test_a_run_without_tokens_is_told_to_prepare(prepared: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing of source synthetic .*pipelines.prepare"):
        ask(prepared, tmp_path)
    with pytest.raises(UserError, match="not a run folder"):
        command.main(["--flops", "1e20", "--run", "absent", "--storage", str(tmp_path)])
