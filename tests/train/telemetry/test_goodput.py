"""Every worker-second is in one category: folds add up to wall time x workers, whatever happened.

    python -m pytest -q tests/train/telemetry/test_goodput.py
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.train.telemetry.goodput import CATEGORIES, Goodput, fold, start_split


def start(at_s: float, step: int = 0, /, world: int = 2, **phases: float) -> dict[str, Any]:
    return {"kind": "start", "at_s": at_s, "step": step, "world_size": world, "phase_s": phases, "import_s": 4.0}


def event(kind: str, at_s: float, step: int, /, **phases: float) -> dict[str, Any]:
    return {"kind": kind, "at_s": at_s, "step": step, "phase_s": phases}


def failure(at_s: float, kind: str = "failure") -> dict[str, Any]:
    return {"kind": kind, "at_s": at_s}


UNDISTURBED = [
    start(20.0, load=5.0),
    event("checkpoint", 24.0, 0, checkpoint=3.0, load=1.0),
    event("steps", 30.0, 1, data=4.0, step=2.0),
    event("steps", 40.0, 11, data=1.0, agree=1.0, step=8.0),
    event("validation", 44.0, 11, validate=4.0),
    event("sample", 45.0, 11, sample=1.0),
    event("checkpoint", 47.0, 11, checkpoint=2.0),
    event("steps", 50.0, 14, step=3.0),
    {"kind": "fatal", "message": "no stamp"},
]


def by_worker(goodput: Goodput, world: int = 2) -> dict[str, float]:
    return {name: seconds / world for name, seconds in goodput.worker_s.items() if seconds}


def test_undisturbed_run() -> None:
    goodput = fold(10.0, UNDISTURBED)
    goodput.close(53.0)
    want = {"start_up": 10 + 1 + 4, "checkpoint": 3 + 2, "useful": 2 + 8 + 3, "data_wait": 2, "validation": 5}
    want["other"] = 3
    assert by_worker(goodput) == pytest.approx(want)
    report = goodput.report(tokens=8600)
    assert report["fraction"] == pytest.approx(13 / 43) and report["worker_s"] == pytest.approx(86)
    assert report["tokens_per_worker_s"] == pytest.approx(100)


def test_an_event_that_comes_late_counts_no_second_twice() -> None:
    goodput = fold(0.0, [start(10.0), event("steps", 20.0, 1, step=1.0), event("sample", 15.0, 1, sample=1.0)])
    goodput.close(30.0)
    assert sum(goodput.worker_s.values()) == pytest.approx(2 * 30.0)


def test_a_commit_that_is_told_later_leaves_the_seconds_to_the_steps() -> None:
    late = {"kind": "checkpoint", "at_s": 48.0, "step": 11}
    told = fold(10.0, [*UNDISTURBED[:-2], late, event("steps", 50.0, 14, step=3.0)])
    assert told.worker_s == pytest.approx(fold(10.0, UNDISTURBED).worker_s)


def test_steps_trained_again_are_lost_work_and_new_ones_useful() -> None:
    """Checkpoint of step 11, failure after step 14: steps 12 to 14 come again, 15 and 16 are new."""
    again = [
        failure(52.0),
        start(60.0, 11),
        event("steps", 64.0, 12, data=2.0, step=2.0),
        event("steps", 68.0, 16, step=4.0),
    ]
    goodput = fold(10.0, UNDISTURBED + again)
    extra = {k: v - by_worker(fold(10.0, UNDISTURBED)).get(k, 0.0) for k, v in by_worker(goodput).items()}
    assert {k: v for k, v in extra.items() if v} == pytest.approx(
        {"lost_work": 2 + 2 + 2, "recovery": 8 + 2, "useful": 2}
    )
    assert goodput.trained_step == 16


def test_what_a_rollback_takes_back_is_trained_again_as_lost_work() -> None:
    healing = {**event("healing", 41.0, 0, step=1.0), "to_step": 4}
    told = {"kind": "healing", "at_s": 41.5, "to_step": -1}  # by the driver, of a group that was killed: no time of it
    again = event("steps", 48.0, 11, step=7.0), event("steps", 50.0, 13, step=2.0)
    goodput = fold(0.0, [*UNDISTURBED[:4], healing, told, *again])
    before = fold(0.0, UNDISTURBED[:4]).worker_s
    assert goodput.worker_s["lost_work"] == 2 * 7.0 and goodput.worker_s["useful"] == before["useful"] + 2 * 2.0
    rewound = fold(0.0, [*UNDISTURBED[:4], {"kind": "rewind", "at_s": 41.0}, start(60.0, 4)])
    assert rewound.worker_s["recovery"] == 2 * 20.0


def test_time_of_a_stall_is_recovery_and_not_lost_work() -> None:
    goodput = fold(10.0, [*UNDISTURBED, failure(80.0, "stall"), failure(81.0), start(90.0, 11)])
    assert by_worker(goodput)["recovery"] == pytest.approx(40.0) and "lost_work" not in by_worker(goodput)


def test_resize_is_recovery_at_the_new_size() -> None:
    goodput = fold(0.0, [start(10.0, world=2), event("steps", 12.0, 1, step=2.0), start(20.0, 1, world=3)])
    assert goodput.worker_s["recovery"] == pytest.approx(8 * 3) and goodput.worker_s["useful"] == pytest.approx(4)


def test_the_next_segment_starts_up_and_recovers_from_nothing() -> None:
    turn = [start(20.0), event("steps", 30.0, 4, step=4.0), {"kind": "finish", "at_s": 31.0, "status": "segment"}]
    goodput = fold(10.0, [*turn, start(45.0, 4), event("steps", 50.0, 5, data=4.0, step=1.0)])
    assert by_worker(goodput) == pytest.approx({"start_up": 10 + 14 + 4, "useful": 10 + 1, "other": 1})


def test_next_driver_adds_to_the_sums_and_knows_what_was_trained() -> None:
    first = fold(10.0, UNDISTURBED)
    saved = json.loads(json.dumps(first.saved()))
    second = Goodput.resume(1000.0, saved)
    second.add(start(1010.0, 11))
    second.add(event("steps", 1014.0, 15, step=4.0))  # 12 to 14 again, 15 new
    assert second.worker_s["start_up"] - first.worker_s["start_up"] == pytest.approx(20)
    assert second.worker_s["lost_work"] == pytest.approx(6)
    assert second.worker_s["useful"] - first.worker_s["useful"] == pytest.approx(2)
    assert sum(second.worker_s.values()) == pytest.approx(sum(first.worker_s.values()) + 28)


def test_run_that_never_starts_has_no_goodput() -> None:
    goodput = Goodput(0.0)
    assert goodput.report(0)["fraction"] == 0.0
    goodput.close(5.0)
    assert by_worker(goodput, 1) == {"start_up": 5.0}


PHASE = st.dictionaries(
    st.sampled_from(["start", "load", "data", "agree", "step", "validate", "sample", "checkpoint"]), st.floats(0, 100)
)
HAPPENS = st.one_of(
    st.tuples(st.just("start"), st.integers(0, 30), st.integers(1, 8), PHASE),
    st.tuples(st.sampled_from(["steps", "validation", "checkpoint", "finish"]), st.integers(0, 30), st.just(0), PHASE),
    st.tuples(st.sampled_from(["failure", "stall"]), st.just(0), st.just(0), st.just({})),
)


@given(st.lists(st.tuples(st.floats(0, 50), HAPPENS), max_size=20), st.floats(0, 50))
def test_categories_add_up_to_wall_time_by_workers(happenings: list[Any], last_s: float) -> None:
    at_s, whole, world, events = 0.0, 0.0, 1, []
    for gap_s, (kind, step, size, phases) in happenings:
        at_s += gap_s
        world = size if kind == "start" else world
        whole += gap_s * world
        made = {"kind": kind, "at_s": at_s, "step": step, "phase_s": phases}
        events.append({**made, "world_size": size, "import_s": 0.0} if kind == "start" else made)
    goodput = fold(0.0, events)
    goodput.close(at_s + last_s)
    report = goodput.report(0)
    assert sum(goodput.worker_s.values()) == pytest.approx(whole + last_s * world, abs=1e-6)
    assert set(goodput.worker_s) == set(CATEGORIES) and min(goodput.worker_s.values()) >= 0
    assert sum(report["share"].values()) == pytest.approx(1.0 if report["worker_s"] else 0.0)


def test_start_is_split_into_what_it_went_to() -> None:
    first = event("steps", 30.0, 1, data=4.0, agree=1.0, step=2.0)
    parts = start_split(10.0, start(20.0, load=3.0), first)
    assert parts == pytest.approx(
        {"scheduling": 3, "import": 4, "load": 3, "first_batch": 5, "first_step": 2, "other": 3, "total": 20}
    )
    assert sum(parts.values()) == pytest.approx(2 * parts["total"])


def test_worker_process_that_is_older_than_the_failure_is_not_counted_before_it() -> None:
    parts = start_split(18.0, {**start(20.0, load=1.0), "import_s": 500.0}, event("steps", 21.0, 1, step=1.0))
    assert parts["import"] == pytest.approx(1.0) and parts["scheduling"] == 0.0
