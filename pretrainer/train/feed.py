"""Slot blocks onto the device beside the step that runs, and what waiting for them really cost.

The host launches a step and goes on (see readback.py), so it takes, copies and agrees on the next step's blocks while
the GPU works on this one. Their copies run on a stream of their own, from pinned memory, and the compute stream waits
for them alone. Nothing is taken from the stream earlier than the step that trains it. On the CPU all this is a plain
call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretrainer.schema import Batch
from pretrainer.train.step import MicroBatch


class Prepared(NamedTuple):
    """A slot block on the device: its ids [K, S + 1], its forward passes, and how many targets they have."""

    tokens: Tensor
    micro_batches: list[MicroBatch]
    targets: int

    def tensors(self) -> list[Tensor]:
        """Everything that a step reads."""
        found = [self.tokens]
        for micro in self.micro_batches:
            found += [t for t in (micro.inputs, micro.targets, micro.positions, micro.document_ids) if t is not None]
        return found


class Feed:
    """The way of a rank's slot blocks to its device."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.done: torch.cuda.Event | None = None  # the end of the step that was launched last

    def prepare(self, make: Callable[[int, Batch], Prepared], blocks: Sequence[tuple[int, Batch]]) -> list[Prepared]:
        """make(global number, batch) of every block, for the steps that are launched from now on."""
        if self.stream is None:
            return [make(number, batch) for number, batch in blocks]
        with torch.cuda.stream(self.stream):
            prepared = [make(number, batch) for number, batch in blocks]
        compute = torch.cuda.current_stream()
        compute.wait_stream(self.stream)
        for tensor in (t for one in prepared for t in one.tensors()):
            tensor.record_stream(compute)  # else the side stream may reuse its memory while a step still reads it
        return prepared

    def launched(self) -> None:
        """A step has just been launched."""
        if self.stream is not None:
            self.done = torch.cuda.Event(enable_timing=True)
            self.done.record()

    def hidden_s(self, host_s: float) -> float:
        """Of the last `host_s` seconds of the host, those in which the device was still at the step before."""
        if self.stream is None or self.done is None:
            return 0.0
        if not self.done.query():
            return host_s
        now = torch.cuda.Event(enable_timing=True)
        now.record(self.stream)  # that stream has nothing to do but this
        now.synchronize()
        return max(0.0, host_s - self.done.elapsed_time(now) / 1000)
