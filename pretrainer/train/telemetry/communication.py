"""How much of a step is communication, and how much of that hides behind nothing: one step in many is profiled.

Spans of time are pairs (start, end). On a GPU they are those of its kernels, NCCL's being the communication; on the
CPU those of gloo and of torch's operations. Profiled steps run a little slower, and all ranks profile the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

WARM_STEPS = 20  # of a worker group, before its first profile

Span = tuple[float, float]


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time in spans that do not overlap, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def shares(communication: Iterable[Span], computation: Iterable[Span], whole: float) -> dict[str, float]:
    """communication_share of the time `whole`, and exposed_communication_share: while nothing is computed."""
    talk, work = merged(communication), merged(computation)
    exposed = length(merged([*talk, *work])) - length(work)
    return {"communication_share": length(talk) / whole, "exposed_communication_share": exposed / whole}


@dataclass
class Watch:
    """What `watched` has found; None where the step was none that is profiled."""

    found: dict[str, float] | None = None


@contextmanager
def watched(is_due: bool, device: torch.device) -> Iterator[Watch]:
    """Profile what is inside, if this step is one of those, and wait for the device."""
    watch = Watch()
    if not is_due:
        yield watch
        return
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as seen:
        began_s = time.perf_counter()
        yield watch
        if on_gpu:
            torch.cuda.synchronize(device)
        whole_us = 1e6 * (time.perf_counter() - began_s)
    watch.found = shares(*split(seen.events() or (), on_gpu), whole_us)


def split(events: Iterable[Any], on_gpu: bool) -> tuple[list[Span], list[Span]]:
    """(communication, computation) in microseconds, of a profiler's events."""
    talk: list[Span] = []
    work: list[Span] = []
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if on_gpu and event.device_type == DeviceType.CUDA:
            (talk if "nccl" in event.name.lower() else work).append(span)
        elif not on_gpu and event.name.startswith("gloo:"):
            talk.append(span)
        elif not on_gpu and event.name.startswith("aten::"):
            work.append(span)
    return talk, work


def is_due(step: int, first_step: int, every_steps: int, world: int) -> bool:
    """first_step: of this worker group, whose size decides what is found."""
    if not every_steps or world == 1:
        return False
    return step == first_step + WARM_STEPS or (step + 1) % every_steps == 0
