"""The executor's rests: long for a slow reader, short for a fast one.

    python -m pytest -q tests/data/test_pace.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pretrainer.data.pace import LONGEST_S, SHORTEST_S, Rest, next_rest_s

ROUND_S, AT_MOST = 0.008, 4  # a round's own time, and how many blocks one hands on


@pytest.mark.parametrize(("blocks_per_s", "waits", "rests"), [(5, 0.0, 0.8), (13, 0.0, 0.8), (85, 0.01, 0.3)])
def test_a_slow_reader_lets_it_rest_and_a_fast_one_does_not_wait(blocks_per_s: int, waits: float, rests: float) -> None:
    clock, handed_on, rest_s, rested, late = 0.0, 0, SHORTEST_S, 0.0, 0
    while clock < 60.0:
        clock += ROUND_S
        wanted = int(clock * blocks_per_s) - handed_on
        late += wanted > AT_MOST
        now = min(wanted, AT_MOST)
        handed_on, rest_s = handed_on + now, next_rest_s(rest_s, now)
        clock, rested = clock + rest_s, rested + rest_s
    assert late / handed_on <= waits and rested / clock > rests


def test_a_rest_has_bounds() -> None:
    assert next_rest_s(SHORTEST_S, 9) == SHORTEST_S
    assert next_rest_s(LONGEST_S, 0) == LONGEST_S
    assert next_rest_s(LONGEST_S, 1) == LONGEST_S and next_rest_s(LONGEST_S, 2) == LONGEST_S / 2


class Op:
    def __init__(self, active: int, handed_on: int) -> None:
        self.active, self.metrics = active, SimpleNamespace(num_outputs_taken=handed_on)

    def num_active_tasks(self) -> int:
        return self.active


def executor(active: int, handed_on: int) -> Any:
    return SimpleNamespace(_topology=dict.fromkeys([Op(active, 9), Op(0, handed_on)]))


def test_it_rests_once_a_round_where_no_task_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("pretrainer.data.pace.time.sleep", slept.append)
    rest = Rest()
    for active, handed_on in [(1, 0), (0, 0), (0, 0), (0, 1), (2, 3), (0, 5), (0, 5)]:
        rest.on_execution_step(executor(active, handed_on))
    assert slept == pytest.approx([0.015, 0.0225, 0.0225, 0.01125, 0.016875]), "a round's share, not the sum"
