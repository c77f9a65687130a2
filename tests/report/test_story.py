"""Events become curves and marks: what was trained last counts, and everything that happened is marked once.

    python -m pytest -q tests/report/test_story.py
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.report.story import Points, smooth, tell, thin, worlds
from tests.report.example import empty, events, facts, heal, start, steps_event, validation


def test_steps_count_as_they_were_trained_last() -> None:
    curve = tell(facts()).curve("loss")
    assert [step for step, _loss in curve] == list(range(10, 201, 10))
    assert dict(curve)[60] == pytest.approx(5.8) and dict(curve)[70] == pytest.approx(5.5)  # the second time


def test_a_rollback_takes_its_steps_back() -> None:
    told = [start(0, 2), *(steps_event(step, 5.0) for step in (10, 20, 30)),
            {"kind": "healing", "step": 29, "to_step": 10, "at_s": 1.0}, steps_event(20, 4.0)]  # fmt: skip
    assert tell(facts(events=told)).curve("loss") == [(10, 5.0), (20, 4.0)]
    told[4] = {"kind": "healing", "step": 29, "to_step": -1, "at_s": 1.0}  # nothing went back
    assert len(tell(facts(events=told)).curve("loss")) == 4


def test_everything_that_happened_is_marked_once() -> None:
    marks = tell(facts()).marks
    assert [(mark.step, mark.kind) for mark in marks] == [
        (60, "resize"), (90, "spike"), (100, "failure"), (120, "heal"), (150, "preempted"), (150, "driver"),
        (150, "resize"), (155, "warning"),
    ]  # fmt: skip
    words = {mark.kind: mark.words for mark in marks}
    assert "rank 1" in words["failure"] and "in 30 s" in words["preempted"]
    assert words["resize"] == "1 worker instead of 3 from step 150 on"
    assert [mark.at_s for mark in marks if mark.kind == "failure"] == [1101.0]


def test_a_stall_and_a_fatal_error_are_marked_where_the_run_stood() -> None:
    told = [start(0, 1), steps_event(10, 5.0), {"kind": "stall", "message": "rank 0 stands"},
            {"kind": "fatal", "message": "the stream broke"}]  # fmt: skip
    marks = tell(facts(events=told, heals=())).marks
    assert [(m.step, m.kind, m.words) for m in marks] == [
        (10, "stall", "rank 0 stands"), (10, "failure", "the stream broke"),
    ]  # fmt: skip


def test_a_checkpoint_that_is_told_twice_is_one() -> None:
    told = {"kind": "checkpoint", "step": 60, "order_digest": "a"}
    assert len(tell(facts(events=[told, told])).checkpoints) == 1
    assert [one["step"] for one in tell(facts()).checkpoints] == [60, 200]


def test_world_sizes_are_those_of_the_steps_as_trained_last() -> None:
    assert tell(facts()).worlds == [(0, 60, 2), (60, 150, 3), (150, 200, 1)]
    again = [{"step": s, "world_size": w} for s, w in ((0, 2), (50, 2), (20, 3), (20, 3))]
    assert worlds(again, 100) == [(0, 20, 2), (20, 100, 3)]
    assert worlds([], 10) == [] and worlds([{"step": 0, "world_size": 2}], 0) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=8), st.integers(1, 60))
def test_world_sizes_cover_every_step_once(starts: list[tuple[int, int]], last: int) -> None:
    attempts = [{"step": step, "world_size": world} for step, world in [(0, 1), *starts]]
    found = worlds(attempts, last)
    assert found[0][0] == 0 and found[-1][1] == last
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in zip(found, found[1:], strict=False))


def test_curves_by_source() -> None:
    story = tell(facts())
    assert set(story.source_losses()) == {"web", "code"} and len(story.source_losses()["web"]) == 20
    assert story.held_out("loss")["code"] == [(0, 6.4), (200, 4.3)]
    assert story.last_step == 200 and [one["steps_ahead"] for one in story.leads] == [12.5]


def test_what_is_no_number_is_no_point() -> None:
    none, nan = {"loss": None}, {"loss": float("nan")}
    told = [steps_event(10, 5.0), steps_event(20, 5.0) | none, steps_event(30, 1.0) | nan]
    assert tell(facts(events=told)).curve("loss") == [(10, 5.0)]
    assert tell(facts()).curve("mfu") == []
    assert validation(0, 1.0)["sources"] and tell(empty()).last_step == 0


def test_unknown_events_are_for_others() -> None:
    assert tell(facts(events=[{"kind": "goodput"}, {"kind": "new"}, *events()])).last_step == 200


def test_a_spike_that_was_only_reported_is_no_healing() -> None:
    kinds = [mark.kind for mark in tell(facts(events=(), heals=[heal(), heal(policy="rollback")])).marks]
    assert sorted(kinds) == ["heal", "spike"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000))
def test_thin_keeps_ends_order_and_range(values: list[float]) -> None:
    points: Points = [(float(step), value) for step, value in enumerate(values)]
    found = thin(points, most=100)
    assert len(found) <= 102 and found[-1] == points[-1] and found == sorted(found, key=lambda point: point[0])
    assert len({step for step, _value in found}) == len(found)
    assert min(values) - 1e-6 <= min(v for _s, v in found) and max(v for _s, v in found) <= max(values) + 1e-6


def test_smooth_is_a_trailing_mean() -> None:
    points: Points = [(float(n), float(n)) for n in range(10)]
    assert smooth(points, 0.2) == [(0, 0), *((n, n - 0.5) for n in range(1, 10))]
    assert smooth([]) == []
