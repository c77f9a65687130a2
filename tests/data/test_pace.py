"""The executor's rests: long for a slow reader, short for a fast one.

    python -m pytest -q tests/data/test_pace.py
"""

from __future__ import annotations

import pytest

from pretrainer.data.pace import LONGEST_S, SHORTEST_S, next_rest_s

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
