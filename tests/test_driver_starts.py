"""Seconds of each start of a worker group, counted from when the group before it had done its last.

python -m pytest -q tests/test_driver_starts.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.driver.starts import STARTS, Starts
from pretrainer.storage import Store


def start(step: int, at_s: float) -> dict[str, Any]:
    return {"kind": "start", "step": step, "segment": 0, "world_size": 2, "time_s": at_s, "at_s": at_s,
            "phase_s": {"load": 1.0}, "import_s": 3.0}  # fmt: skip


def steps(at_s: float) -> dict[str, Any]:
    return {"kind": "steps", "phase_s": {"data": 2.0, "step": 0.5}, "at_s": at_s}


@pytest.mark.parametrize(
    ("last", "scheduling"),
    [
        ([], 14.0),  # grown after the steps at 150
        ([{"kind": "checkpoint", "step": 9, "at_s": 152.0}], 12.0),
        ([{"kind": "failure", "at_s": 160.0}], 4.0),
        ([{"kind": "warning", "at_s": 160.0}], 14.0),
    ],
)
def test_the_second_start_counts_from_the_end_of_the_first(
    tmp_path: Path, last: list[dict[str, Any]], scheduling: float
) -> None:
    run = Store(str(tmp_path))
    starts = Starts(run, None, driver_started_s=100.0)
    for event in (start(0, 110.0), steps(120.0), steps(150.0), *last, start(9, 168.0), steps(171.0)):
        starts.notice(event)
    first, second = json.loads(run.read(STARTS))
    assert starts.all == [first, second]
    assert (first["seconds"]["scheduling"], first["seconds"]["total"]) == (6.0, 20.0)
    assert (second["seconds"]["scheduling"], second["seconds"]["total"]) == (scheduling, scheduling + 7.0)


def test_a_start_that_trained_nothing_has_no_seconds_and_is_kept(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    starts = Starts(run, [{"step": 0}], driver_started_s=100.0)
    starts.notice(start(5, 110.0))
    assert [set(one) for one in json.loads(run.read(STARTS))] == [{"step"}, {"step", "segment", "world_size", "time_s"}]
