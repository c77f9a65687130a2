"""A run that waits for nodes says so, on the terminal and in its journal.

python -m pytest -q tests/test_waiting.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ray

from pipelines.driver.waiting import EVERY_S, Waiting
from pretrainer.config import Config
from tests.report.example import config


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0, "memory": 1e9})


def waiting(on_gpu: bool = False, **train: Any) -> Waiting:
    of: Config = replace(config(), train=replace(config().train, **train))
    return Waiting(of, on_gpu, data_cpus=0.9, now_s=1000.0)


def told(waiting: Waiting, *times_s: float) -> list[int]:
    """Minutes that were told of, at these times."""
    events: list[dict[str, Any]] = [event for now_s in times_s for event in waiting.look(now_s)]
    assert all(event["kind"] == "waiting" for event in events)
    return [int(event["message"].split()[3]) for event in events]


def test_it_is_told_every_two_minutes_until_workers_begin() -> None:
    found = waiting()
    assert told(found, 1000.5, 1119.0, 1120.0, 1121.0, 1240.0) == [2, 4]
    found.notice({"kind": "start", "at_s": 1250.0})
    assert told(found, 1300.0, 9000.0) == []


@pytest.mark.parametrize("kind", ["failure", "finish", "rewind"])
def test_it_begins_anew_when_a_worker_group_has_ended(kind: str) -> None:
    found = waiting()
    found.notice({"kind": "start", "at_s": 1010.0})
    found.notice({"kind": kind, "at_s": 2000.0})
    found.notice({"kind": "steps", "at_s": 2010.0})
    found.notice({"kind": "failure", "at_s": 2050.0})  # the same loss, told by another rank
    assert told(found, 2000.0 + EVERY_S - 1, 2000.0 + EVERY_S) == [2]


def test_it_names_what_is_asked_for_and_what_is_there() -> None:
    (event,) = waiting(on_gpu=True, num_workers=(2, 8), cpus_per_worker=7).look(1600.0)
    assert event["message"] == (
        "no workers for 10 min: 2 to 8 workers of 7 CPUs and 1 GPUs, and 0.9 CPUs for data are asked for; the nodes "
        "that are there have 12 CPUs and 0 GPUs (`ray status` shows what is pending)"
    )
    (event,) = waiting(num_workers=3).look(1600.0)
    assert ": 3 workers of 0.5 CPUs, and " in event["message"]
