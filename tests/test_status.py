"""Where a run stands, from its folder alone, in every state that it can be in.

python -m pytest -q tests/test_status.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines.status import TOLD, main, read_status, status_lines
from pretrainer.config_load import to_yaml
from pretrainer.errors import UserError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import SNAPSHOT, folder_name
from pretrainer.train.telemetry.goodput import Goodput
from tests.report.example import config, heal, lead, start, steps_event
from tests.test_gather import GONE, hold, summary, tell

NOW_S = 2000.0


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs" / "example"))


def commit(run: Store, step: int) -> None:
    listed = {"checkpoint_dir_name": folder_name(step, 0), "metrics": {"step": step}}
    run.write(SNAPSHOT, json.dumps({"checkpoint_results": [listed], "latest_checkpoint_result": listed}).encode())


def saved(step: int, at_s: float) -> dict[str, Any]:
    """The event of a committed checkpoint; the journal does not change its stamp."""
    return {"kind": "checkpoint", "step": step, "at_s": at_s}


def attempt(run: Store, number: int, world_size: int) -> None:
    record = {"attempt": number, "step": 0, "world_size": world_size, "time_s": 1.0}
    run.write(f"audit/attempts/{number:06d}.json", json.dumps(record).encode())


def tell_later(run: Store, *events: dict[str, Any]) -> None:
    """Of a second driver, whose journal comes behind."""
    run.write("events/000002-000000000.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())


def trained(run: Store) -> Store:
    """A run that trains at step 120 of 200, its checkpoint of step 100 is 300 s old."""
    run.write("config.yaml", to_yaml(config()).encode())
    hold(run, 1, os.getpid())
    attempt(run, 0, 2)
    attempt(run, 1, 3)
    commit(run, 100)
    tell(run, start(0, 2), steps_event(110, 3.5), saved(100, NOW_S - 300), lead(110, 12.0), steps_event(120, 3.25))
    return run


def shown(run: Store) -> str:
    return "\n".join(status_lines(read_status(run, NOW_S)))


def test_a_run_at_work_is_told_in_full(run: Store) -> None:
    status = read_status(trained(run), NOW_S)
    expected = {
        "run": "example",
        "status": "running",
        "driver": "alive",
        "step": 120,
        "total_steps": 200,
        "tokens": 120 * 512,
        "loss": 3.25,
        "eta_s": 80 * 512 / 1000.0,
        "checkpoint_step": 100,
        "checkpoint_age_s": 300.0,
        "lead_steps": 12.0,
        "curated": {"web": 0.5, "code": 1.0},
        "world_size": 3,
        "worker_groups": 2,
    }
    assert {name: getattr(status, name) for name in expected} == expected
    text = shown(run)
    assert "120 of 200 (60.0%)" in text and "step 100, 0:05:00 ago" in text and "ETA         0:00:40" in text
    assert "12 steps ahead of training; curated: web 50.0%, code 100.0%" in text and "3 in worker group 2" in text


def test_a_run_that_has_only_begun_says_so(run: Store) -> None:
    hold(run, 1, os.getpid())
    status = read_status(run, NOW_S)
    assert (status.status, status.step, status.total_steps, status.checkpoint_step) == ("running", 0, None, None)
    assert "checkpoint  none yet" in shown(run) and "None" not in shown(run)


def test_a_run_that_waits_for_nodes_says_what_it_waits_for(run: Store) -> None:
    waits = {"kind": "waiting", "message": "no workers for 4 min: 8 are asked for", "at_s": NOW_S}
    tell_later(trained(run), waits, lead(120, 12.0))
    assert "status      running: no workers for 4 min: 8 are asked for" in shown(run)
    tell_later(run, waits, start(100, 8))
    assert read_status(run, NOW_S).message == ""


def test_a_run_whose_driver_is_gone_is_interrupted_and_has_no_eta(run: Store) -> None:
    hold(trained(run), 1, GONE)
    status = read_status(run, NOW_S)
    assert (status.status, status.eta_s, status.step) == ("interrupted", None, 120)
    assert "the same command goes on" in shown(run) and "tokens/s" not in shown(run)


@pytest.mark.parametrize(
    ("state", "message"), [("stopped", "the sources are exhausted"), ("failed", "gave up"), ("completed", "")]
)
def test_an_ended_run_has_the_status_of_its_summary(run: Store, state: str, message: str) -> None:
    hold(trained(run), 1, os.getpid(), beat="released")
    summary(run, status=state, message=message, lease=1)
    status = read_status(run, NOW_S)
    assert (status.status, status.message, status.eta_s) == (state, message, None)
    assert f"status      {state}{': ' + message if message else ''}" in shown(run)


def test_an_old_summary_does_not_speak_for_a_new_driver(run: Store) -> None:
    summary(trained(run), status="failed", message="long ago", lease=1)
    hold(run, 2, os.getpid())
    status = read_status(run, NOW_S)
    assert (status.status, status.message) == ("running", "")


def test_a_failure_without_a_summary_is_told_by_the_journal(run: Store) -> None:
    tell_later(trained(run), {"kind": "fatal", "message": "bucket is gone", "exit_code": 3})
    hold(run, 1, os.getpid(), beat="released")
    status = read_status(run, NOW_S)
    assert (status.status, status.message) == ("failed", "bucket is gone")


def test_what_is_committed_counts_where_the_journal_is_behind(run: Store) -> None:
    commit(trained(run), 150)
    status = read_status(run, NOW_S)
    assert (status.step, status.checkpoint_step, status.checkpoint_age_s) == (150, 150, None)
    assert "step 150\n" in shown(run)


def test_the_newest_warnings_and_decisions_are_told(run: Store) -> None:
    warnings = [{"kind": "warning", "step": n, "name": "n", "message": f"warning {n}"} for n in range(TOLD + 2)]
    stall = {"kind": "stall", "message": "rank 1 is silent", "ranks": [1]}
    tell_later(trained(run), *warnings, {"kind": "preempted", "step": 115, "seconds_left": 20}, stall)
    run.write("healing/000000.json", json.dumps(heal(step=70, first_step=70, end_step=72)).encode())
    status = read_status(run, NOW_S)
    assert len(status.warnings) == TOLD and status.warnings[-2:] == ("preempted: step 115", "stall: rank 1 is silent")
    assert len(status.heals) == 1 and status.heals[0].startswith("step 70: ")
    assert "steps 70 to 71 left out" in status.heals[0]
    assert "healed      step 70" in shown(run) and "warning     stall: rank 1 is silent" in shown(run)


def test_a_run_without_a_journal_is_told_by_its_summary(run: Store) -> None:
    run.write("config.yaml", to_yaml(config()).encode())
    commit(run, 200)
    hold(run, 1, os.getpid(), beat="released")
    warnings = [{"step": 3, "name": "n", "message": "loss rises"}]
    summary(run, status="completed", train_loss=2.5, warnings=warnings, lease=1)
    status = read_status(run, NOW_S)
    assert (status.loss, status.step, status.warnings) == (2.5, 200, ("loss rises",))


def test_goodput_is_that_of_all_drivers(run: Store) -> None:
    goodput = Goodput(0.0)
    goodput.worker_s.update(useful=30.0, recovery=10.0)
    trained(run).write("goodput.json", json.dumps(goodput.saved()).encode())
    assert read_status(run, NOW_S).goodput == 0.75 and "goodput     75.0%" in shown(run)


def test_only_the_newest_objects_of_a_long_journal_are_read(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month of events is thousands of objects."""
    trained(run)
    for n in range(60):
        run.write(f"events/000002-{n:09d}.jsonl", (json.dumps(steps_event(130, 3.0)) + "\n").encode())
    read: list[str] = []
    plain = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path="": (read.append(path), plain(self, path))[1])
    assert read_status(run, NOW_S).loss == 3.0 and len([path for path in read if path.startswith("events/")]) == 20


def test_what_is_no_run_is_refused(run: Store) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        read_status(run, NOW_S)


def test_nothing_is_written(run: Store) -> None:
    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in Path(run.uri).rglob("*")}

    trained(run)
    before = files()
    read_status(run, NOW_S)
    assert files() == before


def test_the_command_tells_people_or_machines(run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    trained(run)
    assert main([run.uri]) == 0 and capsys.readouterr().out.startswith("run example in ")
    assert main([run.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 120 and set(told) == set(asdict(read_status(run, NOW_S)))


def test_it_needs_no_torch() -> None:
    """It is asked every minute by somebody who waits, and on machines that have no GPU build."""
    code = "import sys, pipelines.status; print({'torch', 'numba', 'mlflow', 'ray.data'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
