"""What a run folder says of its run in every state that it can be in; nothing in it is needed but what is there.

    python -m pytest -q tests/test_gather.py
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import report
from pipelines.driver import gather as module
from pipelines.driver.gather import evaluation_points, gather, order_digest, status_of
from pretrainer.config_load import to_yaml
from pretrainer.errors import StorageError, UserError
from pretrainer.journal import Journal
from pretrainer.lease import Claim, claim_path, pid_started, state, this_machine
from pretrainer.storage import Store
from tests.report.example import config, driver, start, steps_event, task

GONE = 2**22 + 1  # no process has this number


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs" / "example"))


def hold(run: Store, number: int, pid: int, beat: str = "3", machine: str | None = None, age_s: float = 0.0) -> None:
    """A driver's lease; of this process where the pid is its own."""
    claim = Claim(number, "o", "host", machine or this_machine(), pid, pid_started(pid) or "1", 1.0, "")
    run.write(claim_path(number), json.dumps(asdict(claim)).encode())
    heartbeat = json.dumps({"beat": beat, "time_s": time.time() - age_s})
    run.write(f"lease/{number:09d}.heartbeat.json", heartbeat.encode())


def summary(run: Store, **fields: Any) -> None:
    run.write("summary.json", json.dumps({"status": "completed", "message": "", "steps": 0, **fields}).encode())


def tell(run: Store, *events: dict[str, Any]) -> None:
    journal = Journal(run.uri, 1)
    for event in events:
        journal.put(event)
    assert journal.flush(20)


# ---------------------------------------------------------------------------------------------------------- status


def test_a_live_driver_runs_and_a_dead_one_has_been_interrupted(run: Store) -> None:
    hold(run, 1, os.getpid())
    assert gather(run).status == "running"
    hold(run, 1, GONE)
    assert gather(run).status == "interrupted" and "goes on from the last checkpoint" in gather(run).message


def test_a_driver_elsewhere_is_judged_by_its_heartbeat(run: Store) -> None:
    hold(run, 4, 1, machine="elsewhere", age_s=10)
    assert state(run, 60) == ("alive", 4) and state(run, 5) == ("silent", 4)


def test_an_ended_run_has_the_status_of_its_summary(run: Store) -> None:
    for status in ("completed", "stopped", "failed"):
        hold(run, 1, GONE, beat="released")
        summary(run, status=status, message="why", lease=1)
        assert (gather(run).status, gather(run).message) == (status, "why")


def test_a_driver_that_asks_about_itself_has_written_the_summary(run: Store) -> None:
    hold(run, 2, os.getpid())
    summary(run, lease=2)
    assert gather(run).status == "completed"


def test_an_older_summary_says_nothing_of_a_run_that_goes_on(run: Store) -> None:
    hold(run, 2, os.getpid())
    summary(run, status="stopped", message="by a signal", lease=1)
    assert gather(run).status == "running" and gather(run).message == ""


def test_a_start_that_was_refused_leaves_the_run_as_it_was(run: Store) -> None:
    hold(run, 2, GONE, beat="released")
    summary(run, lease=1)
    assert status_of(run, {"status": "completed", "lease": 1}, None) == "completed"


def test_a_run_that_failed_before_its_first_step_says_why(run: Store) -> None:
    hold(run, 1, GONE, beat="released")
    tell(run, driver(1, 1.0), {"kind": "fatal", "message": "the stream broke", "exit_code": 5})
    found = gather(run)
    assert (found.status, found.message, found.steps) == ("failed", "the stream broke", 0)


def test_what_is_no_run_is_one_clear_message(run: Store) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        gather(run)


# ------------------------------------------------------------------------------------------------------------ parts


def test_a_config_alone_gives_names_and_lengths(run: Store) -> None:
    run.write("config.yaml", to_yaml(config()).encode())
    found = gather(run)
    assert (found.run, found.total_steps, found.batch_tokens, found.status) == ("example", 200, 512, "not started")
    assert found.config["train"]["steps"] == 200 and found.sources == {} and found.fingerprint is None


def test_a_run_without_a_journal_has_the_losses_of_its_audit_log(run: Store) -> None:
    run.write("config.yaml", to_yaml(config()).encode())
    attempt = {"attempt": 0, "step": 0, "world_size": 2, "time_s": 5.0}
    run.write("audit/attempts/000000.json", json.dumps(attempt).encode())
    line = {"segment": 0, "digest": "d", "order_digest": "o", "tokens": 1, "targets": 1, "world_size": 2, "attempt": 0,
            "applied": True, "provenance": {}, "loss": 3.5, "grad_norm": 1.5}  # fmt: skip
    lines = "".join(json.dumps({**line, "step": step}) + "\n" for step in (0, 1))
    run.write("audit/000000000-000000001-a000000.jsonl", lines.encode())
    found = gather(run)
    assert [(e["kind"], e["step"]) for e in found.events] == [("start", 0), ("steps", 1), ("steps", 2)]
    assert found.events[1]["loss"] == 3.5 and found.attempts == [attempt]
    tell(run, start(0, 2), steps_event(10, 9.0))
    assert [e["step"] for e in gather(run).events] == [0, 10]


def test_a_list_of_checkpoints_that_is_just_being_written_is_read_again(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([StorageError("torn"), StorageError("torn"), ("checkpoints/x", 30), *[StorageError("torn")] * 10])

    def committed(_run: Store) -> tuple[str, int]:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(module, "READ_AGAIN_S", 0.0)
    monkeypatch.setattr(module, "committed_checkpoint", committed)
    told = [{"kind": "checkpoint", "step": step} for step in (10, 20)]
    assert module.committed_steps(run, told) == 30
    assert module.committed_steps(run, told) == 20  # it is torn for good


def test_decisions_come_with_their_documents(run: Store) -> None:
    run.write("config.yaml", to_yaml(config()).encode())
    fields = {"number": 0, "step": 7, "reason": "loss_spike", "policy": "report", "attempt": 0, "loss": 9.0,
              "grad_norm": 1.0, "loss_bound": 4.0, "grad_norm_bound": None, "seen": []}  # fmt: skip
    run.write("healing/000000.json", json.dumps(fields).encode())
    assert "documents" not in gather(run).heals[0] and "loss 9 is above 4" in gather(run).heals[0]["message"]
    documents = [{"document": str(n)} for n in range(100)]
    run.write("healing/documents/000000.json", json.dumps(documents).encode())
    (found,) = gather(run).heals
    assert found["documents"] == documents[: module.TOLD] and found["documents_count"] == 100


def test_points_of_training_and_of_a_person_are_one_curve(run: Store) -> None:
    quick = {"step": 100, "cadence": "quick", "tasks": {"arc": task(0.3)}}
    run.write("evaluation/points/step-000000100-quick.json", json.dumps(quick).encode())
    asked = {"checkpoints": [{"step": 200, "tasks": {"arc": task(0.4)}}, {"step": None, "tasks": {}}]}
    run.write("evaluation/evaluation.json", json.dumps(asked).encode())
    assert [(p["step"], p["cadence"]) for p in evaluation_points(run)] == [(100, "quick"), (200, "asked")]


def test_the_order_digest_is_that_of_the_committed_steps() -> None:
    told = [{"kind": "checkpoint", "step": step, "order_digest": f"d{step}"} for step in (10, 20)]
    assert order_digest(told, {}, 10) == "d10" and order_digest(told, {}, 15) is None
    assert order_digest(told, {"steps": 10, "order_digest": "s"}, 10) == "s"
    assert order_digest(told, {"steps": 10, "order_digest": "s"}, 20) == "d20"


def test_a_folder_in_the_uri_is_shown_without_secrets(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "AKIAIOSFODNN7EXAMPLE"))
    hold(run, 1, GONE)
    assert "AKIA" not in gather(run).uri and replace(gather(run), run="x").run == "x"


# ---------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("to", "place"),
    [(None, "runs/example/report/report.html"), ("{}/page.html", "page.html"), ("{}/pages", "pages/report.html")],
)
def test_the_page_is_where_it_was_asked_for(
    run: Store, tmp_path: Path, to: str | None, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(run, 1, os.getpid())
    tell(run, driver(1, 1.0), start(0, 2), steps_event(10, 5.0))
    arguments = [run.uri] if to is None else [run.uri, "--to", to.format(tmp_path)]
    assert report.main(arguments) == 0
    page = (tmp_path / place).read_text()
    assert capsys.readouterr().out.strip().endswith(place) and "loss over steps" in page and "running" in page


def test_a_run_on_the_tokens_of_another_is_told_with_them(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the trials of a sweep: their manifest, tokenizer and held-out text are in the sweep's folder."""
    asked = config()
    storage = run.uri.rsplit("/", 1)[0]
    asked = replace(asked, run=replace(asked.run, name="example", storage=storage, data_from="parent"))
    run.write("config.yaml", to_yaml(asked).encode())
    seen: list[tuple[str, str]] = []

    def thaw(_config: Any, data: Store, own: Store) -> Any:
        seen.append((data.uri, own.uri))
        raise UserError("nothing there")

    monkeypatch.setattr(module, "thaw", thaw)
    gather(run)
    assert seen == [(f"{storage}/parent/data", f"{run.uri}/data")]
