"""How a run's end is judged: status, exit code and message from the recorder's events; no cluster is started.

    python -m pytest -q tests/test_session.py
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from pipelines.session import Outcome, Session, _judge
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
