"""verify, verify --recompute and trace on a run that Ray trained: what they prove, and what they find.

    python -m pytest -q tests/e2e/test_verify.py
"""

from __future__ import annotations

import html
import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import trace, verify
from pipelines.driver.gather import gather
from pretrainer.data.plan import load_manifest
from pretrainer.errors import UserError
from pretrainer.report.facts import Facts
from pretrainer.report.page import render
from pretrainer.report.story import tell
from pretrainer.storage import Store
from tests.e2e.head import Head, Result, pipeline, tiny_config, two_sources
from tests.faults.chaos import Run
from tests.faults.test_kill import train_workers

STEPS, KILL_AFTER = 60, 20


@dataclass(frozen=True)
class Disturbed:
    """A finished run that a trainer was killed in, and what a second driver was told while it ran."""

    folder: Path
    summary: dict[str, Any]
    first_pid: int
    second: Result
    while_it_ran: Facts


@pytest.fixture(scope="module")
def disturbed(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Two sources of one chunk each, two workers; one of them is killed in mid-training."""
    folder = tmp_path_factory.mktemp("verify")
    every = {"checkpoint": 10, "validate": STEPS, "sample": STEPS, "log": 2}
    train = {"steps": STEPS, **{f"{what}_every_steps": steps for what, steps in every.items()}}
    config = tiny_config(folder, two_sources(folder / "corpus"), data={"chunk_bytes": 262_144}, train=train)
    run = Run(config, "tiny", head.env)
    try:
        run.wait_for("data frozen")
        second = pipeline("pretrain", "--config", str(config), env=head.env)
        run.wait(lambda: run.steps_seen() and run.steps_seen()[-1] >= KILL_AFTER, f"step {KILL_AFTER}")
        train_workers(head)[1].kill()
        running = gather(Store(str(run.folder)))
        return Disturbed(run.folder, run.finish(), run.process.pid, second, running)
    finally:
        run.stop()


@pytest.fixture(scope="module")
def run(disturbed: Disturbed) -> Path:
    return disturbed.folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def change_line(run: Path, step: int, **changes: object) -> None:
    for path in run.glob("audit/*.jsonl"):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        lines = [{**line, **changes} if line["step"] == step else line for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


Capsys = pytest.CaptureFixture[str]


def test_a_run_with_a_killed_worker_is_proved_from_its_log_and_from_the_raw_input(disturbed: Disturbed) -> None:
    assert disturbed.summary["status"] == "completed" and disturbed.summary["restarts"] == 1
    done = pipeline("verify", str(disturbed.folder), "--recompute", f"0:{STEPS}")
    assert done.code == 0, done.out + done.err
    assert f"{STEPS} steps, each trained once" in done.out and "steps 0 to 59 from the raw input: equal" in done.out
    assert "0 to 59: 2" in done.out and "attempt 1 went on at step" in done.out
    assert disturbed.summary["order_digest"] in done.out


def test_the_report_tells_of_the_kill_and_of_a_run_that_goes_on(disturbed: Disturbed) -> None:
    running = disturbed.while_it_ran
    assert running.status == "running" and running.total_steps == STEPS and running.sources["early"]["read"] > 0
    assert b"running" in render(running)
    facts = gather(Store(str(disturbed.folder)))
    story = tell(facts)
    assert facts.status == "completed" and len(facts.attempts) == 2 and story.last_step == STEPS
    (killed,) = [mark for mark in story.marks if mark.kind == "failure"]
    assert killed.step >= KILL_AFTER and killed.words in html.unescape(render(facts).decode())
    losses = dict(story.curve("loss"))
    assert list(losses) == sorted(losses) and max(losses) == STEPS and len(losses) >= STEPS // 2


def test_mlflow_has_every_step_once_in_one_run(disturbed: Disturbed) -> None:
    from mlflow import MlflowClient

    where = disturbed.summary["mlflow"]
    history = MlflowClient(where["uri"]).get_metric_history(where["run_id"], "train/loss")
    assert [m.step for m in history] == list(range(1, STEPS + 1))


def test_goodput_adds_up_and_counts_the_recovery(disturbed: Disturbed) -> None:
    goodput = disturbed.summary["goodput"]
    assert sum(goodput["share"].values()) == pytest.approx(1) and goodput["fraction"] == goodput["share"]["useful"]
    assert goodput["share"]["recovery"] > 0 and goodput["share"]["useful"] > 0


def test_a_second_driver_was_refused_and_told_of_the_first(disturbed: Disturbed) -> None:
    second = disturbed.second
    assert second.code == 2 and second.err.count("error: ") == 1 and "Traceback" not in second.err
    assert str(disturbed.first_pid) in second.err and socket.gethostname() in second.err


def test_a_corrupt_line_is_named(copy: Path, capsys: Capsys) -> None:
    change_line(copy, 4, digest="0" * 64)
    assert verify.main([str(copy)]) == 5
    assert "step 4: its digest" in capsys.readouterr().err


def test_a_log_that_only_the_raw_input_contradicts_is_refuted(copy: Path, capsys: Capsys) -> None:
    change_line(copy, 5, targets=17)
    assert verify.main([str(copy)]) == 0
    assert verify.main([str(copy), "--recompute", "5:6"]) == 5
    assert "step 5: the raw input gives digest" in capsys.readouterr().err


def test_another_digest_in_the_checkpoint_is_found(copy: Path, capsys: Capsys) -> None:
    (path,) = copy.glob("checkpoints/step-000000060-a*/state.json")
    state = json.loads(path.read_text())
    state["extra"]["order_digest"] = "0" * 64
    path.write_text(json.dumps(state))
    assert verify.main([str(copy)]) == 5
    assert "step 59: the log's order digest is" in capsys.readouterr().err


def test_another_digest_in_the_summary_is_found(copy: Path, capsys: Capsys) -> None:
    path = copy / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "order_digest": "0" * 64}))
    assert verify.main([str(copy)]) == 5
    assert "summary.json has 000" in capsys.readouterr().err


def test_a_changed_input_is_refused(run: Path) -> None:
    shard = run.parents[1] / "corpus" / "part-000.jsonl"
    before = shard.read_bytes()
    shard.write_bytes(before + b'{"text": "more", "id": "more"}\n')
    try:
        with pytest.raises(UserError, match=r"part-000\.jsonl .* changed since the run began"):
            verify.main([str(run), "--recompute", "0:1"])
    finally:
        shard.write_bytes(before)
        os.utime(shard, ns=(run_mtime(run, shard),) * 2)


def run_mtime(run: Path, shard: Path) -> int:
    """The mtime that the manifest has for a shard of the first source."""
    manifest = load_manifest(str(run / "data"))
    return next(int(s.version) for s in manifest.shards(0) if s.path == shard.name)


def test_another_fingerprint_is_refused_and_named(copy: Path) -> None:
    path = copy / "data" / "fingerprint.json"
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps({**recorded, "early.curation.code": "older"}))
    with pytest.raises(UserError, match=r"early\.curation\.code"):
        verify.main([str(copy), "--recompute", "0:1"])


@pytest.mark.parametrize("words", ["5", "5:5", "-1:2", "0:61", "a:b"])
def test_a_range_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="give A:B with 0 <= A < B <= 60"):
        verify.step_range(words, STEPS)


def test_a_step_names_its_documents_and_a_document_its_steps(run: Path, capsys: Capsys) -> None:
    assert trace.main([str(run), "--step", "7"]) == 0
    shown = capsys.readouterr().out
    assert "the digest of these documents is the one in the audit log" in shown
    row = next(words for words in map(str.split, shown.splitlines()) if words[-1].startswith("doc-"))
    assert trace.main([str(run), "--document", row[-1]]) == 0
    found = capsys.readouterr().out
    assert f"{row[0]}: {row[-1]}: epoch 0: trained in step 7, in the checkpoint of step 10 and later" in found


def test_planted_duplicate_names_what_it_repeats(run: Path, capsys: Capsys) -> None:
    """Documents 10 and 40 are equal: whichever the order has first is trained, the other one says so."""
    shown = {}
    for document in ("doc-10", "doc-40"):
        assert trace.main([str(run), "--document", document]) == 0
        shown[document] = capsys.readouterr().out
    [dropped] = [document for document, text in shown.items() if "not trained, " in text]
    [original] = set(shown) - {dropped}
    assert f"early: {dropped}: not trained, duplicate_exact of {original}" in shown[dropped]
    assert f"early: {original}: epoch 0: " in shown[original] and "not trained, " not in shown[original]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("doc-60", "held out for validation"),
        ("doc-11", "held_out_near of doc-60 (similarity "),  # planted: 60 is 11 with another end
        ("doc-4", "code_auto_generated"),
        ("part-040.jsonl#", "dead letter: bad_json"),
    ],
)
def test_what_was_not_trained_says_why(run: Path, capsys: Capsys, document: str, reason: str) -> None:
    assert trace.main([str(run), "--document", document]) == 0
    shown = capsys.readouterr().out
    assert f"early: {document}" in shown and f": not trained, {reason}" in shown and len(shown.splitlines()) == 1


def test_an_unknown_document_is_one_clear_message(run: Path) -> None:
    with pytest.raises(UserError, match="doc-999999"):
        trace.main([str(run), "--document", "doc-999999"])


def test_a_step_that_was_not_trained_is_one_clear_message(run: Path) -> None:
    with pytest.raises(UserError, match="step 60 is not in the audit log, which has 60 steps"):
        trace.main([str(run), "--step", "60"])
