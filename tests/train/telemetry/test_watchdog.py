"""The watchdog names what holds a run up, from what ranks said; failures count until a checkpoint.

    python -m pytest -q tests/train/telemetry/test_watchdog.py
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from pretrainer.data.mixture import Mixture
from pretrainer.train.telemetry.phases import PERIOD_S, Phases, process_age_s, pulse_period_s
from pretrainer.train.telemetry.watchdog import Diagnosis, Pulse, diagnose, failures_in_a_row

TIMEOUT_S, PULSE_S = 100.0, 5.0
MIXTURE = Mixture((3, 1))  # dealt as sources 0, 1, 0, 0


def pulse(rank: int, phase: str, step: int = 7, block: int | None = None, **ages: float) -> Pulse:
    return Pulse(rank, 3, 40 + rank, "node", phase, step, block, ages.get("silent", 1.0), ages.get("unchanged", 200.0))


def judge(*pulses: Pulse, timeout_s: float = TIMEOUT_S) -> Diagnosis | None:
    return diagnose(pulses, timeout_s, PULSE_S, MIXTURE, ["code", "web"])


def test_nothing_is_wrong_while_one_rank_moves() -> None:
    hung = [pulse(r, "step") for r in range(3)]
    assert judge(*hung) is not None
    assert judge(*hung[:2], replace(hung[2], unchanged_s=TIMEOUT_S - 1)) is None


def test_before_the_first_pulse_and_when_switched_off_there_is_no_stall() -> None:
    assert judge() is None
    assert judge(*[pulse(r, "step") for r in range(3)], timeout_s=0) is None


def test_a_start_has_more_time_until_its_first_step() -> None:
    waiting = [replace(pulse(rank, "data", block=28, unchanged=450.0), begun=rank > 0) for rank in range(3)]
    assert judge(*waiting) is None
    late = [replace(p, unchanged_s=510.0) for p in waiting]
    found = judge(*late)
    assert found is not None and found.kind == "data"


def test_silent_rank_is_named_before_those_that_wait_for_it() -> None:
    found = judge(pulse(0, "data", block=9), pulse(1, "step", silent=190.0), pulse(2, "agree"))
    assert found is not None and found.kind == "rank" and found.ranks == (1,)
    assert "rank 1 of 3 (process 41) has reported nothing for 190 s, last in step of step 7" in found.text


def test_rank_that_never_reported_is_named() -> None:
    found = judge(pulse(0, "agree"), pulse(1, "agree"))
    assert found is not None and found.ranks == (2,) and "rank 2 of 3 has never reported" in found.text


@pytest.mark.parametrize(("block", "source", "nth"), [(8, "code", 6), (9, "web", 2), (11, "code", 8)])
def test_starved_rank_names_block_and_source(block: int, source: str, nth: int) -> None:
    found = judge(pulse(0, "agree"), pulse(1, "data", block=block), pulse(2, "data", block=block + 4))
    assert found is not None and found.kind == "data" and found.ranks == (1, 2)
    assert f"rank 1 of 3 waits for slot block {block}, rank 2 of 3 waits for slot block {block + 4}" in found.text
    assert f"behind is source {source} with its block {nth}" in found.text


def test_the_earliest_block_that_is_waited_for_is_behind() -> None:
    found = judge(pulse(0, "data", block=12), pulse(1, "data", block=9), pulse(2, "agree"))
    assert found is not None and found.ranks == (1, 0) and "behind is source web with its block 2" in found.text


def test_stream_that_does_not_begin_is_starvation() -> None:
    found = judge(*[pulse(r, "data") for r in range(3)])
    assert found is not None and found.kind == "data" and "rank 2 of 3 waits for the stream" in found.text


def test_rank_behind_in_a_collective_is_told_from_those_that_wait() -> None:
    found = judge(pulse(0, "step", 8), pulse(1, "checkpoint", 7), pulse(2, "step", 8))
    assert found is not None and found.kind == "collective" and found.ranks == (1,)
    assert "ranks 1 in checkpoint of step 7, ranks 0, 2 in step of step 8" in found.text


def test_ranks_at_the_earlier_step_are_suspect_although_they_are_more() -> None:
    found = judge(pulse(0, "step", 7), pulse(1, "agree", 8), pulse(2, "step", 7))
    assert found is not None and found.ranks == (0, 2)


def test_all_in_one_collective_are_all_suspect() -> None:
    found = judge(*[pulse(r, "step", 8) for r in range(3)])
    assert found is not None and found.ranks == (0, 1, 2) and "all in one collective" in found.text


# Failures in a row ----------------------------------------------------------------------------------------------------


def events(kinds: str) -> list[dict[str, Any]]:
    names = {"s": {"kind": "start"}, "f": {"kind": "failure"}, "c": {"kind": "checkpoint"}, "t": {"kind": "steps"},
             "p": {"kind": "failure", "reason": "preempted"}}  # fmt: skip
    return [dict(names[letter]) for letter in kinds]


@pytest.mark.parametrize(
    ("kinds", "count"),
    [("", 0), ("sf", 1), ("sfsfsf", 3), ("ffff", 4), ("sfsfscsf", 1), ("sfstcf", 1), ("sfc", 0), ("spspsfsp", 1),
     ("sftsft", 2)],
)  # fmt: skip
def test_failures_count_until_a_checkpoint(kinds: str, count: int) -> None:
    assert len(failures_in_a_row(events(kinds))) == count


# Phases ---------------------------------------------------------------------------------------------------------------


def test_phases_add_up_and_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrainer.train.telemetry import phases as module

    now_s = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now_s[0])
    phases = Phases(0, 1, 7, "node", lambda _said: None, 1.0)
    for at_s, phase in ((2.0, "load"), (5.0, "data"), (6.0, "step"), (8.0, "data")):
        now_s[0] = at_s
        phases.enter(phase, 3)
    now_s[0] = 9.0
    assert phases.take() == {"start": 2.0, "load": 3.0, "data": 2.0, "step": 2.0}
    now_s[0] = 10.0
    assert phases.take() == {"data": 1.0}


def test_phase_is_told_by_a_thread_until_the_end() -> None:
    told: list[dict[str, Any]] = []
    enough = threading.Event()

    def tell(said: dict[str, Any]) -> None:
        told.append(said)
        if len(told) > 3:
            enough.set()
        if len(told) == 2:
            raise ConnectionError("the recorder is gone for a moment")

    phases = Phases(1, 2, 7, "node", tell, 0.001).begin()
    phases.enter("data", 4, 17)
    assert enough.wait(10)
    phases.end()
    phases._thread.join(10)
    assert told[-1] == {"rank": 1, "world": 2, "pid": 7, "node": "node", "phase": "data", "step": 4, "block": 17,
                        "changes": 1, "begun": False}  # fmt: skip
    phases.enter("step", 4)
    phases.enter("data", 5, 18)
    assert phases.now["begun"], "a step was finished"


def test_pulses_are_several_within_a_stall_and_never_more_than_needed() -> None:
    assert pulse_period_s(1800.0) == pulse_period_s(0) == PERIOD_S and pulse_period_s(10.0) == 1.0


def test_age_of_this_process_grows() -> None:
    first = process_age_s()
    assert 0 < first <= process_age_s() < 86_400
