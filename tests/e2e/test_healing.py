"""Poison in the data, NaN and a shock of the learning rate: found, healed, named, and a kill changes none of it.

    python -m pytest -m "" -q tests/e2e/test_healing.py
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pretrainer.storage import Store
from pretrainer.train.stability.healing import read_heals
from tests.e2e.head import Head, Result, pipeline, tiny_config
from tests.e2e.shocks import SHOCK_STEP
from tests.faults.chaos import Run
from tests.faults.test_kill import train_workers

STEPS, SAVED, POISONED = 90, 20, 50
CHARACTERS = 700
PART = 100  # documents in a shard
A_QUARTER = 2048 // 4  # of a step's tokens


def pieces(count: int) -> list[str]:
    """Beginnings of the standard library's code."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")[: 20 * CHARACTERS]
        found += [text[i : i + CHARACTERS] for i in range(0, len(text) - CHARACTERS, CHARACTERS)]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the standard library is too small")


def write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True)
    for first in range(0, len(texts), PART):
        rows = [{"text": text, "id": f"doc-{first + n}"} for n, text in enumerate(texts[first : first + PART])]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"part-{first:05d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def garbage(text: str) -> str:
    """Bytes that are tokens of their own, of which nothing can be learned; its JSON is as long as that of the text, so
    that chunks, order and held-out documents stay as they are."""
    size = len(json.dumps(text, ensure_ascii=False).encode()) - len('""')
    characters = [chr(random.Random(7 * n).randrange(0x4E00, 0x9FFF)) for n in range(size // 3)]
    return "".join(characters) + "x" * (size % 3)


def config(folder: Path, corpus: Path, **sections: Any) -> Path:
    """A step is about one pack window, so that one document is in one step or in two that follow each other."""
    source = {"name": "all", "uris": [str(corpus)], "preset": "none", "id_column": "id"}
    every = {"checkpoint": SAVED, "validate": STEPS, "sample": STEPS, "log": 1}
    return tiny_config(
        folder,
        [source],
        data={
            "slot_sequences": 8, "pack_window_tokens": 2112, "chunk_bytes": 2048,
            "dedup": {"exact": False, "near": False},
        },
        train={
            "steps": STEPS, "global_batch_tokens": 2048, "exact": True, "schedule": "linear", "min_lr_ratio": 0.0,
            "keep_checkpoints": 9,
            **{f"{what}_every_steps": steps for what, steps in every.items()},
        },
        stability={"window_steps": 24, "min_steps": 12, "loss_sigmas": 6.0, "grad_norm_sigmas": 0.0},
        **sections,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("healing")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return pieces(1600)


@pytest.fixture(scope="module")
def clean(head: Head, folder: Path, texts: list[str]) -> Result:
    """The run that nothing happens to, with the policy that goes back."""
    return pretrain(head, config(folder / "clean", write(folder / "clean" / "corpus", texts)), "clean")


@pytest.fixture(scope="module")
def poisoned(head: Head, folder: Path, texts: list[str], clean: Result) -> tuple[Path, str]:
    """The config of a corpus in which one document of step 50 is garbage, and that document's id."""
    rows = pipeline("trace", str(run_of(clean)), "--step", str(POISONED), env=head.env).out.splitlines()
    documents = [(int(row.split()[3]), row.split()[-1]) for row in rows if "doc-" in row]
    victim = max(documents)[1]
    changed = list(texts)
    number = int(victim.removeprefix("doc-"))
    changed[number] = garbage(texts[number])
    tokenizer = {"uri": str(run_of(clean) / "data" / "tokenizer.model")}  # so that losses can be compared
    return config(folder / "poisoned", write(folder / "poisoned" / "corpus", changed), tokenizer=tokenizer), victim


def run_of(result: Result) -> Path:
    return Path(result.out.strip().splitlines()[-1]).parent


def pretrain(head: Head, path: Path, name: str, *arguments: str) -> Result:
    policy = ("stability.on_spike=rollback", "stability.on_nonfinite=rollback")
    result = pipeline("pretrain", "--config", str(path), f"run.name={name}", *policy, *arguments, env=head.env)
    assert result.code == 0, result.out[-6000:] + result.err[-3000:]
    verified = pipeline("verify", str(run_of(result)), env=head.env)
    assert verified.code == 0, verified.out + verified.err
    return result


def decisions(run: Path) -> list[dict[str, Any]]:
    """Without what differs from start to start."""
    return [
        {name: value for name, value in heal.to_json().items() if name not in ("attempt", "time_s")}
        for heal in read_heals(Store(str(run)))
    ]


def lines(run: Path) -> list[tuple[int, str, bool, str]]:
    found = [json.loads(line) for path in (run / "audit").glob("*.jsonl") for line in path.read_text().splitlines()]
    last = {line["step"]: line for line in sorted(found, key=lambda line: (line["step"], line["attempt"]))}
    return [(step, line["digest"], line["applied"], line["reason"]) for step, line in sorted(last.items())]


def left_out(run: Path) -> set[int]:
    return {step for step, _digest, applied, _reason in lines(run) if not applied}


@pytest.mark.slow
def test_nothing_is_done_to_a_run_that_is_fine(clean: Result) -> None:
    assert clean.summary["instabilities"] == [] and clean.summary["restarts"] == 0
    assert left_out(run_of(clean)) == set() and not (run_of(clean) / "healing").exists()


@pytest.mark.slow
def test_poison_is_left_out_and_named_and_a_kill_in_the_middle_changes_nothing(
    head: Head, poisoned: tuple[Path, str], clean: Result
) -> None:
    path, victim = poisoned
    healed = pretrain(head, path, "healed")
    run = run_of(healed)
    found = decisions(run)
    assert {heal["reason"] for heal in found} == {"loss_spike"} and {heal["policy"] for heal in found} == {"rollback"}
    assert {heal["weights"] for heal in found} == {"sound"}, "an earlier batch has its usual loss"
    out = left_out(run)
    assert out and out == {s for heal in found for s in range(heal["first_step"], heal["end_step"])}
    assert healed.summary["restarts"] == 0, "no worker group is lost for it"
    named = [one for file in (run / "healing/documents").iterdir() for one in json.loads(file.read_text())]
    assert victim in {one["document"] for one in named} and {one["step"] for one in named} == out
    traced = pipeline("trace", str(run), "--document", victim, env=head.env).out
    held: Counter[int] = Counter()
    for step, tokens in re.findall(r"in step (\d+),.*?\((\d+) tokens", traced):
        held[int(step)] += int(tokens)
    assert out <= set(held), "no step is left out that holds none of it"
    assert {step for step, tokens in held.items() if tokens > A_QUARTER} <= out
    assert "warning: step" in healed.out and victim in healed.out and "left out" in healed.out
    assert healed.summary["val_loss"] == pytest.approx(clean.summary["val_loss"], rel=0.02)
    assert stability_metrics(healed) == {"stability/loss_spike"}
    again = pipeline("replay", str(run), "--step", str(min(out)), "--times", "1", env=head.env)
    assert again.code == 0 and victim in again.out and "was left out: loss_spike" in again.out, again.out + again.err

    process = Run(path, "killed", head.env, "stability.on_spike=rollback", "stability.on_nonfinite=rollback")
    try:
        process.wait(lambda: list((process.folder / "healing").glob("0*.json")), "the first decision")
        for worker in train_workers(head):
            worker.kill()
        killed = process.finish()
    finally:
        process.stop()
    assert killed["restarts"] >= 1
    assert lines(process.folder) == lines(run) and decisions(process.folder) == found
    assert killed["order_digest"] == healed.summary["order_digest"]
    assert killed["weights_sha256"] == healed.summary["weights_sha256"]


def stability_metrics(result: Result) -> set[str]:
    from mlflow import MlflowClient

    run = MlflowClient(result.summary["mlflow"]["uri"]).get_run(result.summary["mlflow"]["run_id"])
    return {name for name in run.data.metrics if name.startswith("stability/")}


@pytest.mark.slow
def test_a_replay_tells_a_bad_batch_from_a_machine_that_computed_wrong(
    head: Head, clean: Result, folder: Path
) -> None:
    run = run_of(clean)
    good = pipeline("replay", str(run), "--step", "84", env=head.env)
    assert good.code == 0 and "comes out again" in good.out, good.out + good.err
    assert good.out.count("same") == 2 * 5 and "DIFFERENT" not in good.out
    bad = folder / "corrupted"
    shutil.copytree(run, bad)
    (path,) = (bad / "audit").glob(f"{80:09d}-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["loss"] *= 1.01  # what a flipped bit in step 83 may have done
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = pipeline("replay", str(bad), "--step", "84", "--times", "1", env=head.env)
    assert found.code == 6 and "step 83 does not come out again" in found.out, found.out + found.err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [("not_a_number", "not_finite"), ("shock", "loss_spike")])
def test_a_learning_rate_gone_wrong_is_healed(head: Head, clean: Result, folder: Path, name: str, reason: str) -> None:
    healed = pretrain(head, folder / "clean" / "tiny.yaml", name, f"train.schedule=tests.e2e.shocks:{name}")
    found = decisions(run_of(healed))
    assert {heal["reason"] for heal in found} == {reason} and found[0]["weights"] == "broken"
    assert left_out(run_of(healed)) == {SHOCK_STEP, SHOCK_STEP + 1}, "what did the harm, and what showed it"
    assert healed.summary["restarts"] == 0
    assert healed.summary["val_loss"] == pytest.approx(clean.summary["val_loss"], rel=0.02)


@pytest.mark.slow
def test_a_restart_goes_back_further_with_a_lower_rate(head: Head, poisoned: tuple[Path, str]) -> None:
    restarted = pretrain(head, poisoned[0], "restarted", "stability.on_spike=restart")
    run = run_of(restarted)
    found = decisions(run)
    assert len(found) >= 1 and found[0]["policy"] == "restart" and found[0]["to_step"] == found[0]["from_step"]
    assert left_out(run) == set() and [step for step, *_rest in lines(run)] == list(range(STEPS))
    starts = [start["step"] for start in json.loads((run / "starts.json").read_text())]
    assert starts == [0, *(heal["to_step"] for heal in found if heal["policy"] == "restart")]


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_says_where_and_why(head: Head, poisoned: tuple[Path, str]) -> None:
    path, _victim = poisoned
    stopped = pipeline(
        "pretrain", "--config", str(path), "run.name=stopped", "stability.on_spike=stop", env=head.env
    )  # fmt: skip
    assert stopped.code == 7, stopped.out[-3000:] + stopped.err[-3000:]
    assert "the run stops" in stopped.out + stopped.err and stopped.summary["status"] == "failed"
    assert stopped.summary["steps"] % SAVED == 0 and stopped.summary["steps"] <= POISONED + 10
