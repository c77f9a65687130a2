"""How a run's end is judged: status, exit code and message from the recorder's events; no cluster is started.

    python -m pytest -q tests/test_session.py
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipelines.driver import session as module
from pipelines.driver.session import Outcome, Session, _judge, train_segment
from pretrainer.config import Config, DataConfig, SourceConfig, TrainConfig

FATAL = {"kind": "fatal", "message": "chunk 3 came where 2 was expected", "exit_code": 5}


def finish(status: str, step: int = 7) -> dict[str, Any]:
    return {"kind": "finish", "status": status, "step": step}


def judged(events: list[dict[str, Any]], failure: list[Exception], before: int = 0) -> Outcome:
    data = DataConfig(sources=(SourceConfig(name="s", uris=("x",)),), seq_len=8, slot_sequences=2)
    config = Config(data=data, train=TrainConfig(steps=9, global_batch_tokens=128))
    session: Any = type("Session", (), {"config": config})()
    outcome = Outcome(events=events)
    _judge(cast(Session, session), outcome, before, failure)
    return outcome


CASES = [
    ([finish("completed")], [], ("completed", 0), ""),
    ([finish("stopped")], [], ("stopped", 0), ""),
    ([finish("exhausted")], [], ("stopped", 2), "exhausted after 7 of 9 steps: lower train.steps"),
    ([], [RuntimeError("first\n  worker died \n\n")], ("failed", 1), "training failed: worker died; the same"),
    ([finish("completed")], [OSError("disk")], ("failed", 1), "training failed: disk"),
    ([FATAL], [RuntimeError("wrapped")], ("failed", 5), "chunk 3 came where 2 was expected"),
    ([finish("stopped", 2), finish("completed", 9)], [], ("completed", 0), ""),
    ([], [], ("stopped", 1), "stopped before the workers could save"),
    ([{"kind": "damaged"}], [], ("damaged", 1), ""),
    ([{"kind": "rewind"}], [], ("segment", 1), ""),
    ([{"kind": "rewind"}, FATAL], [], ("failed", 5), "chunk 3 came where 2 was expected"),
]


@pytest.mark.parametrize(("events", "failure", "expected", "words"), CASES)
def test_status_exit_code_and_message_follow_what_was_seen(
    events: list[dict[str, Any]], failure: list[Exception], expected: tuple[str, int], words: str
) -> None:
    outcome = judged(events, failure)
    assert (outcome.status, outcome.exit_code) == expected
    assert words in outcome.message and bool(words) == bool(outcome.message)


def test_a_segment_is_judged_by_its_own_end() -> None:
    """The end of the segment before says nothing about this one, which was stopped before it could save."""
    assert judged([finish("segment")], []).status == "segment"
    outcome = judged([finish("segment")], [], before=1)
    assert outcome.status == "stopped" and "stopped before the workers could save" in outcome.message


class Endless:
    """A trainer that ends only when its controller is killed, and then with an error of Ray's."""

    def __init__(self) -> None:
        self.killed = threading.Event()

    def fit(self) -> None:
        assert self.killed.wait(30)
        raise RuntimeError("the controller died")


@pytest.mark.parametrize(("events", "expected"), [([], ("stopped", 1)), ([FATAL], ("failed", 5))])
def test_a_trainer_that_would_go_on_is_ended_and_that_is_no_failure_of_the_run(
    monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]], expected: tuple[str, int]
) -> None:
    """Too long after a stop signal, or after an error that no restart can mend."""
    trainer = Endless()
    monkeypatch.setattr(module, "make_trainer", lambda *_: trainer)
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda value: value, kill=lambda actor: actor.killed.set()))
    for name in ("worker_spec", "_stream", "_validation", "uses_gpu", "data_cpus"):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(module, "stop_signals", lambda _: nullcontext(SimpleNamespace(overdue=lambda: not events)))
    monkeypatch.setattr(module, "_follow", lambda _session, outcome, _console: outcome.events.extend(events))
    recorder = SimpleNamespace(controller=SimpleNamespace(remote=lambda: trainer))
    session: Any = SimpleNamespace(recorder=recorder, run=None, cluster=None, config=SimpleNamespace(data=None))
    outcome = Outcome()
    train_segment(session, cast(Any, None), outcome, cast(Any, None))
    assert (outcome.status, outcome.exit_code) == expected
    assert trainer.killed.is_set() and not any(thread.name == "trainer" for thread in threading.enumerate())
