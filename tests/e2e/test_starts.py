"""Starts that train nothing: mistakes told in one line, a run that is complete, the plan, the help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.audit import run_folder
from tests.e2e.head import Head, Result, in_turn

MISTAKES = {
    "unknown field": (["train.step=5"], "train.steps"),
    "wrong value": (["data.seq_len=two"], "data.seq_len"),
    "batch that cannot be formed": (["train.global_batch_tokens=500"], "multiple of"),
    "more workers than slot blocks": (["train.num_workers=9"], "slot blocks"),
    "more workers than the cluster has": (["train.num_workers=8", "train.cpus_per_worker=2"], "CPUs"),
    "missing input": (["data.sources.0.uris=[/nowhere/at/all]"], "/nowhere/at/all"),
    "wrong column": (["data.sources.0.text_column=body"], "body"),
    "vocabulary too large": (["tokenizer.vocab_size=60000"], "tokenizer.vocab_size"),
    "missing bucket": (["run.storage=s3://no-such-bucket-{port}/runs?endpoint_override={endpoint}"], "bucket"),
    "GPU asked and not there": (["train.device=cuda"], "GPU"),
    "too little data": (["train.steps=100000"], "max_epochs"),
    "no such tokenizer": (["tokenizer.uri=/nowhere/tokenizer.model"], "tokenizer.uri"),
}


@pytest.fixture(scope="module")
def told(head: Head, config: Path, reference: Result, s3_endpoint: str) -> dict[str, Result]:
    """What starts that train nothing say, by their name: one process makes them all in turn, because to begin one takes
    longer than most of them."""
    commands = {
        "again": ["run.name=reference"],
        "changed tokens": ["run.name=reference", "train.steps=9", "data.seq_len=16", "data.slot_sequences=4"],
        "dry run": ["run.name=dry", "--dry-run"],
        "help": ["--help"],
    }
    for mistake, (overrides, _words) in MISTAKES.items():
        filled = [o.format(endpoint=s3_endpoint, port=head.port) for o in overrides]
        commands[mistake] = [f"run.name=mistake-{mistake.replace(' ', '-')}", *filled]
    kept = [run_folder(config, "reference") / name for name in ("config.yaml", "data/fingerprint.json")]
    before = [path.read_bytes() for path in kept]
    results = in_turn("pretrain", [["--config", str(config), *words] for words in commands.values()], head.env)
    assert [path.read_bytes() for path in kept] == before, "a refused start leaves what the next one compares with"
    return dict(zip(commands, results, strict=True))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda name: name.replace(" ", "-"))
def test_mistakes_end_in_one_clear_message(told: dict[str, Result], mistake: str) -> None:
    result, (_overrides, words) = told[mistake], MISTAKES[mistake]
    assert result.code == 2, result.out + result.err
    assert result.err.count("error: ") == 1 and words in result.err
    assert not any(trace in result.out + result.err for trace in ("Traceback", 'File "', "ray::"))


def test_dry_run_prints_the_plan_and_trains_nothing(told: dict[str, Result], config: Path) -> None:
    result = told["dry run"]
    assert result.code == 0, result.err
    for words in ("parameters", "FLOPs per token", "6 steps x 512 tokens", "blocks/s", "source early"):
        assert words in result.out
    assert not run_folder(config, "dry").joinpath("checkpoints").exists()


def test_help_lists_every_field(told: dict[str, Result]) -> None:
    result = told["help"]
    assert result.code == 0 and "train.global_batch_tokens" in result.out and "data.sources" in result.out


def test_a_complete_run_says_so(told: dict[str, Result], config: Path, reference: Result) -> None:
    again, path = told["again"], run_folder(config, "reference") / "summary.json"
    assert again.code == 0 and "is complete" in again.out and again.out.strip().splitlines()[-1] == str(path)
    assert json.loads(path.read_text()) == reference.summary


def test_changed_tokens_are_refused_on_a_trained_run(told: dict[str, Result]) -> None:
    changed = told["changed tokens"]
    assert changed.code == 2
    assert "seq_len" in changed.err
    assert "Traceback" not in changed.err
