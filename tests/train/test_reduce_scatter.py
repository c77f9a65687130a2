"""One reduce-scatter per parameter group and step, however many micro-batches; and no read by the host under FSDP2.

    python -m pytest -q tests/train/test_reduce_scatter.py
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrainer.train.step import train_step
from tests.train.ranks import run_ranks
from tests.train.samples import MODEL, build, pieces

GROUPS = MODEL.layers + 1  # every block, and the root with embedding, output layer and final norm


class Calls(TorchDispatchMode):
    """Counts the operations that run, collectives among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def counted(rank: int, world: int) -> dict[str, Counter[str]]:
    model, optimizer = build()
    found = {}
    for name, batches, dummies in (
        ("one", pieces(rank, 0)[:1], 0),
        ("three", [*pieces(rank, 0), *pieces(rank + 2, 0)][:3], 0),
        ("one and two dummies", pieces(rank, 0)[:1], 2),
    ):
        with Calls() as calls:
            train_step(model, optimizer, batches, dummies, 40, 1e-3, 1.0)
        found[name] = calls.count
    with Calls() as calls:
        torch.ones(3).sum().item()
    return {**found, "read": calls.count}


@pytest.fixture(scope="module")
def calls() -> list[dict[str, Counter[str]]]:
    return run_ranks(2, counted)


@pytest.mark.parametrize("name", ["one", "three", "one and two dummies"])
def test_a_step_reduces_every_parameter_group_once(calls: list[dict[str, Counter[str]]], name: str) -> None:
    for rank in calls:
        assert rank[name]["_reduce_scatter_base_"] == GROUPS, rank[name]


def test_more_micro_batches_are_more_work_between_two_reductions(calls: list[dict[str, Counter[str]]]) -> None:
    """Else the counts above would prove nothing."""
    for rank in calls:
        assert rank["three"]["embedding"] == 3 * rank["one"]["embedding"] == rank["one and two dummies"]["embedding"]


def test_a_sharded_step_reads_nothing(calls: list[dict[str, Counter[str]]]) -> None:
    for rank in calls:
        assert rank["read"]["_local_scalar_dense"] == 1, "a read is seen"
        assert not any(rank[name]["_local_scalar_dense"] + rank[name]["nonzero"] for name in rank if name != "read")
