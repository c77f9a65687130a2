"""Events reach the tracker in order and once, and nobody waits for a server that hangs.

    python -m pytest -q tests/train/telemetry/test_outbox.py
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pretrainer.errors import TrackingError
from pretrainer.train.telemetry.outbox import Outbox

PATIENCE_S = 20.0


def event(number: int) -> dict[str, Any]:
    return {"kind": "steps", "number": number}


def test_events_arrive_in_order_and_once() -> None:
    got: list[int] = []
    outbox = Outbox(lambda e: got.append(e["number"]))
    for number in range(50):
        outbox.put(event(number))
    assert outbox.drain(PATIENCE_S) == 0 and got == list(range(50))


def test_refused_event_is_sent_again_before_the_next() -> None:
    tries: list[int] = []

    def send(e: dict[str, Any]) -> None:
        tries.append(e["number"])
        if len(tries) < 3:
            raise TrackingError("away")

    outbox = Outbox(send, retry_s=0.001)
    outbox.put(event(1))
    outbox.put(event(2))
    assert outbox.drain(PATIENCE_S) == 0 and tries == [1, 1, 1, 2]


def test_putting_does_not_wait_for_a_server_that_hangs() -> None:
    answer = threading.Event()
    outbox = Outbox(lambda _event: answer.wait(PATIENCE_S))
    for number in range(3):
        outbox.put(event(number))
    assert outbox.drain(0.01) == 3  # all of them wait, and we are here
    answer.set()
    assert outbox.drain(PATIENCE_S) == 0


def test_bug_in_the_sender_is_raised_and_not_swallowed() -> None:
    outbox = Outbox(lambda e: e["missing"])
    outbox.put(event(1))
    with pytest.raises(KeyError):
        outbox.drain(PATIENCE_S)
    with pytest.raises(KeyError):
        outbox.put(event(2))


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


CLIENT = """
    import sys, threading, time
    from mlflow import MlflowClient
    from pretrainer.tracking import Tracker
    from pretrainer.train.telemetry.recorder import Recorder
    import pretrainer.train.telemetry.recorder as module
    module.FINISH_PATIENCE_S = 0.5
    uri = f"http://127.0.0.1:{sys.argv[1]}"
    tracker = Tracker(uri, "e", None, "r", "id", {}, {})
    tracker._client = MlflowClient(uri)
    recorder = Recorder(tracker)
    for step in range(1, 6):
        one = {"step": step, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0}
        recorder.record({"kind": "steps", "step": step, "steps": [one], "tokens": 1, "tokens_per_s": 1.0,
            "data_wait_s": 0.0, "elapsed_s": 1.0, "is_first": False, "data_wait_fraction": 0.0, "mfu": None,
            "world_size": 1})
    print("recorded", recorder.flush(0.2), flush=True)
    try:
        recorder.finish("completed", {})
    except module.TrackingError as error:
        print(error, flush=True)
"""


def test_recorder_takes_events_while_mlflow_accepts_and_never_answers(silent_server: int) -> None:
    """The client's own patience is 20 s and two attempts: were a rank to wait for it, this would end by the timeout."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLIENT), str(silent_server)],
        env={**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["recorded 5", "MLflow has not taken the last 5 events of the run"], done.stderr


def test_time_of_an_event_is_when_it_was_and_not_when_it_was_sent() -> None:
    from pretrainer.train.telemetry.recorder import Recorder

    before, got = time.time(), []

    class Late:
        def log_event(self, e: dict[str, Any]) -> None:
            got.append(e)

    recorder: Any = Recorder(Late())  # type: ignore[arg-type]
    recorder.record({"kind": "checkpoint", "step": 1})
    assert recorder.flush(PATIENCE_S) == 0 and before <= got[0]["at_s"] <= time.time()
