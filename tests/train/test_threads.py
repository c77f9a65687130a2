"""Threads of a rank: what the config says, or its share of what Ray counts on the node.

python -m pytest -q tests/train/test_threads.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrainer.train.threads import set_threads
from tests.train.specs import worker_spec

TRAIN = replace(worker_spec().config.train, threads_per_worker=None)
RESOURCES = {"another": {"CPU": 64.0}, "a pod": {"CPU": 6.5}, "of GPUs alone": {"GPU": 8.0}}
NODES = [{"NodeID": name, "Resources": resources} for name, resources in RESOURCES.items()]


def not_asked() -> list[dict[str, Any]]:
    raise AssertionError("the config has said it")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of 64 cores; what a test sets of torch is set back."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(("ranks", "threads"), [(1, 6), (2, 3), (4, 1), (9, 1)])
def test_ranks_share_what_ray_counts_on_their_node(ranks: int, threads: int) -> None:
    set_threads(TRAIN, lambda: NODES, "a pod", ranks)
    assert torch.get_num_threads() == threads


def test_no_more_threads_than_the_machine_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may be told of more CPUs than there are, as tests and laptops do."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    set_threads(TRAIN, lambda: NODES, "a pod", 1)
    assert torch.get_num_threads() == 2


def test_a_node_that_has_no_cpus_for_ray_has_one_thread() -> None:
    set_threads(TRAIN, lambda: NODES, "of GPUs alone", 1)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("exact", [False, True])
def test_the_config_decides_where_it_says_something(exact: bool) -> None:
    set_threads(replace(TRAIN, threads_per_worker=5, exact=exact), not_asked, "a pod", 2)
    assert torch.get_num_threads() == 5 and torch.are_deterministic_algorithms_enabled() is exact


def test_exact_mode_has_one_thread_on_every_machine() -> None:
    set_threads(replace(TRAIN, exact=True), not_asked, "a pod", 1)
    assert torch.get_num_threads() == 1
