"""How much of a step is communication: arithmetic on spans of time, and a real step of two ranks.

    python -m pytest -q tests/train/telemetry/test_communication.py
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from pretrainer.train.telemetry.communication import is_due, length, merged, shares, split, watched
from tests.train.ranks import run_ranks
from tests.train.samples import CPU

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda one: (one[0], one[0] + one[1])))


def covered(spans: list[tuple[int, int]]) -> set[int]:
    return {moment for start, end in spans for moment in range(start, end)}


@given(SPANS, SPANS)
def test_shares_count_every_moment_once(talk: list[tuple[int, int]], work: list[tuple[int, int]]) -> None:
    found = shares(talk, work, 50)
    assert found["communication_share"] == len(covered(talk)) / 50
    assert found["exposed_communication_share"] == len(covered(talk) - covered(work)) / 50
    assert length(merged(talk)) == len(covered(talk))
    assert all(a[1] < b[0] for a, b in zip(merged(talk), merged(talk)[1:], strict=False))


def event(name: str, start: float, end: float, device: Any = DeviceType.CPU) -> Any:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), device_type=device)


def test_what_is_communication_on_a_gpu_and_on_the_cpu() -> None:
    events = [
        event("aten::mm", 0, 5), event("gloo:all_gather", 1, 2), event("c10d::allreduce_", 0, 9),
        event("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 2, 4, DeviceType.CUDA),
        event("sm90_xmma_gemm_bf16bf16", 3, 8, DeviceType.CUDA),
    ]  # fmt: skip
    assert split(events, on_gpu=False) == ([(1, 2)], [(0, 5)])
    assert split(events, on_gpu=True) == ([(2, 4)], [(3, 8)])


@pytest.mark.parametrize(
    ("step", "first", "every", "world", "due"),
    [
        (999, 0, 1000, 2, True), (1000, 0, 1000, 2, False), (20, 0, 1000, 2, True), (520, 500, 1000, 2, True),
        (20, 500, 1000, 2, False), (20, 0, 1000, 1, False), (999, 0, 0, 2, False), (20, 0, 0, 2, False),
    ],
)  # fmt: skip
def test_which_steps_are_profiled(step: int, first: int, every: int, world: int, due: bool) -> None:
    assert is_due(step, first, every, world) is due


def late_rank(rank: int, _world: int) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """Rank 1 comes some 2 s late to a sum that rank 0 waits for; profilers do not begin at the same moment."""
    with watched(False, CPU) as nothing:
        dist.all_reduce(torch.ones(8))
    with watched(True, CPU) as talk:
        time.sleep(2.0 * rank)
        dist.all_reduce(torch.ones(8))
    return nothing.found, talk.found


def test_a_rank_that_waits_for_the_others_sees_communication() -> None:
    (nothing, waited), (_nothing, late) = run_ranks(2, late_rank)
    assert nothing is None and waited is not None and late is not None
    assert waited["communication_share"] > 0.5 and late["communication_share"] < 0.4
    assert waited["exposed_communication_share"] == pytest.approx(waited["communication_share"], abs=0.1)
