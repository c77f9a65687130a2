"""Blocks on their way to a device: order of the calls on a GPU that is played, and whose wait counts.

    python -m pytest -q tests/train/test_feed.py
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrainer.schema import Batch
from pretrainer.train import batch as slots
from pretrainer.train.feed import Feed, Prepared
from pretrainer.train.telemetry.phases import Phases
from tests.train.samples import CPU, pieces, slot_block

GPU = torch.device("cuda")


class Played:
    """torch.cuda with streams and events that only write down what they are told; times in ms."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.on = "compute"
        self.now_ms, self.done_ms = 0.0, 0.0  # the clock, and when the compute stream is through

    def Stream(self, device: torch.device | None = None) -> Any:
        return PlayedStream(self, "side")

    def current_stream(self) -> Any:
        return PlayedStream(self, self.on)

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.on = self.on, stream.name
        yield
        self.on = before

    def Event(self, enable_timing: bool = False) -> Any:
        assert enable_timing
        return PlayedEvent(self)


class PlayedStream:
    def __init__(self, cuda: Played, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: Any) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class PlayedEvent:
    def __init__(self, cuda: Played) -> None:
        self.cuda, self.at_ms = cuda, 0.0

    def record(self, stream: Any = None) -> None:
        name = self.cuda.on if stream is None else stream.name
        self.at_ms = self.cuda.done_ms if name == "compute" else self.cuda.now_ms

    def query(self) -> bool:
        return self.cuda.now_ms >= self.at_ms

    def synchronize(self) -> None:
        assert self.query(), "nothing may wait for the compute stream"

    def elapsed_time(self, later: Any) -> float:
        return later.at_ms - self.at_ms


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    for name in ("Stream", "current_stream", "stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(played, name))
    monkeypatch.setattr(Tensor, "record_stream", lambda t, stream: played.log.append(f"{stream.name} reads {id(t)}"))
    return played


def make(cuda: Played | None, number: int, batch: Batch) -> Prepared:
    if cuda is not None:
        cuda.log.append(f"{number} on {cuda.on}")
    return Prepared(slots.to_tensor(batch), pieces(number, 0), 5)


BLOCKS = [(number, slot_block(number)) for number in (0, 1)]


def test_copies_run_beside_the_step_and_the_next_one_waits_for_them_alone(cuda: Played) -> None:
    prepared = Feed(GPU).prepare(partial(make, cuda), BLOCKS)
    assert cuda.log[:3] == ["0 on side", "1 on side", "compute waits for side"] and cuda.on == "compute"
    read = [one.tokens for one in prepared]
    for micro in (micro for one in prepared for micro in one.micro_batches):
        read += [micro.inputs, micro.targets, micro.positions]
        read += [] if micro.document_ids is None else [micro.document_ids]
    assert sorted(cuda.log[3:]) == sorted(f"compute reads {id(tensor)}" for tensor in read)
    assert len(read) > 2 * 2 * 3 + 2, "some micro-batch has documents"


def test_on_the_cpu_it_is_a_plain_call() -> None:
    feed = Feed(CPU)
    prepared = feed.prepare(partial(make, None), BLOCKS)
    feed.launched()
    assert [one.targets for one in prepared] == [5, 5] and feed.hidden_s(3.0) == 0.0
    assert torch.equal(prepared[1].tokens, slots.to_tensor(slot_block(1)))


@pytest.mark.parametrize(
    ("waited_until_ms", "hidden_s"),
    [(80.0, 0.03), (100.0, 0.05), (130.0, 0.05), (500.0, 0.05)],
    ids=["the device is still at it", "just done", "done before", "long ago"],
)
def test_a_wait_while_the_device_works_is_hidden(cuda: Played, waited_until_ms: float, hidden_s: float) -> None:
    """The step ends at 100 ms; the host waits from 50 ms on."""
    feed = Feed(GPU)
    assert feed.hidden_s(1.0) == 0.0, "no step has been launched"
    cuda.done_ms = 100.0
    feed.launched()
    cuda.now_ms = waited_until_ms
    assert feed.hidden_s((waited_until_ms - 50.0) / 1000) == pytest.approx(hidden_s)


def test_a_wait_that_began_when_the_device_was_done_is_not_hidden(cuda: Played) -> None:
    feed = Feed(GPU)
    cuda.done_ms = 10.0
    feed.launched()
    cuda.now_ms = 100.0
    assert feed.hidden_s(0.04) == 0.0


def test_hidden_seconds_go_from_the_waits_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 3.0, 4.0, 4.0])
    monkeypatch.setattr("pretrainer.train.telemetry.phases.time.perf_counter", lambda: next(times))
    phases = Phases(0, 1, 7, "node", lambda _said: None, 1.0)
    for phase in ("data", "agree", "step"):
        phases.enter(phase, 1)
    phases.hide(3.5)
    assert phases.take() == {"start": 0.0, "data": 0.0, "agree": 0.5, "step": 3.5}


def test_what_goes_to_the_cpu_is_not_copied() -> None:
    values = np.arange(6)
    tensor = slots.on_device(values, "cpu")
    values[0] = 9
    assert tensor[0] == 9
