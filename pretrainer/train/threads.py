"""How many threads torch uses in a rank on CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from pretrainer.config import TrainConfig
from pretrainer.train.exact import make_deterministic


def set_threads(
    train: TrainConfig, nodes: Callable[[], Iterable[Mapping[str, Any]]], here: str, local_ranks: int
) -> None:
    """As many as the config says, or the CPUs of this node shared by the ranks on it; exact mode has one by default.

    nodes: ray.nodes, asked only where the config leaves it open; here: the id of this one. What Ray counts is a
    container's or a job's part of a machine. os.cpu_count() is the whole machine's, and more threads than cores wait
    for each other: ten times as long as one alone needs (tests/benchmarks/LOG.md, 2026-11-28).
    """
    if train.exact:
        make_deterministic(train.threads_per_worker or 1)
    elif train.threads_per_worker:
        torch.set_num_threads(train.threads_per_worker)
    else:
        mine = next(node["Resources"] for node in nodes() if node["NodeID"] == here)
        torch.set_num_threads(share(mine.get("CPU", 0.0), local_ranks))


def share(cpus: float, ranks: int) -> int:
    """Whole threads of each rank, and never more than the machine has cores."""
    return max(1, min(int(cpus), os.cpu_count() or 1) // ranks)
