"""Who is ended early: arithmetic on losses, the same whatever the order in which they are remembered."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from pretrainer.config import SweepConfig
from pretrainer.tuning.schedulers import decide, rungs
from tests.tuning.sweeps import bowl

ASHA = SweepConfig(scheduler="asha", reports=8, grace=0.25, reduction=4)
MEDIAN = SweepConfig(scheduler="median", reports=8, grace=0.25)


def test_rungs_are_powers_of_the_reduction_times_the_grace() -> None:
    assert rungs(ASHA) == [2]
    assert rungs(SweepConfig(reports=16, grace=1 / 16, reduction=2)) == [1, 2, 4, 8]
    assert rungs(SweepConfig(reports=9, grace=1 / 9, reduction=3)) == [1, 3]
    assert rungs(SweepConfig(reports=8, grace=1.0)) == []
    assert rungs(SweepConfig(reports=8, grace=0.01, reduction=8)) == [1]


def test_the_first_goes_on_and_then_only_the_best_quarter() -> None:
    assert decide(ASHA, [9.0, 5.0], []) is None
    reason = decide(ASHA, [9.0, 6.0], [[9.0, 5.0]])
    assert reason is not None and "6.0000" in reason and "25%" in reason and "best 1 of the 2" in reason
    assert decide(ASHA, [9.0, 4.0], [[9.0, 5.0]]) is None
    others = [[9.0, float(n)] for n in range(1, 8)]
    assert decide(ASHA, [9.0, 1.5], others) is None  # second of eight, and two may go on
    assert decide(ASHA, [9.0, 2.5], others) is not None
    assert decide(ASHA, [9.0, 1.0], [[9.0, 1.0]]) is None  # equals are not worse


def test_only_rungs_decide_and_only_trials_that_reached_them_count() -> None:
    good = [[9.0, 1.0, 1.0, 1.0]] * 5
    assert decide(ASHA, [9.0], good) is None and decide(ASHA, [9.0, 5.0, 5.0], good) is None
    assert decide(ASHA, [9.0, 5.0], [[1.0]] * 9) is None  # nobody else has come to the rung
    assert decide(ASHA, [9.0] * 8, [[1.0] * 8] * 9) is None  # it is at its end
    assert decide(SweepConfig(), [9.0, 5.0], good) is None


def test_a_loss_that_is_not_finite_never_goes_on() -> None:
    assert decide(ASHA, [9.0, math.inf], []) is not None


def test_median_ends_what_is_worse_than_the_others_were() -> None:
    others = [[4.0, 3.0, 2.0], [5.0, 4.0, 3.0], [6.0, 5.0, 4.0]]  # mean losses 3.5, 4.5, 5.5 up to the second report
    assert decide(MEDIAN, [9.0, 4.4], others) is None
    reason = decide(MEDIAN, [9.0, 4.6], others)
    assert reason is not None and "4.5000" in reason
    assert decide(MEDIAN, [4.4, 9.0], others) is None  # its best counts
    assert decide(MEDIAN, [9.0], others) is None  # grace
    assert decide(MEDIAN, [9.0, 9.0], others[:2]) is None  # too few to compare with
    assert decide(MEDIAN, [9.0] * 8, [[1.0] * 8] * 9) is None  # it is at its end


@given(st.lists(st.floats(1, 9), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_best_of_a_rung_goes_on_in_any_order_of_memory(losses: list[float], order: random.Random) -> None:
    others = [[9.0, loss] for loss in losses]
    shuffled = order.sample(others, len(others))
    assert decide(ASHA, [9.0, min(losses)], others) is None
    assert decide(ASHA, [9.0, 5.0], others) == decide(ASHA, [9.0, 5.0], shuffled)


def test_asha_keeps_the_best_and_saves_tokens() -> None:
    """Valleys as trials have them: the order at a quarter of the tokens is nearly the final one."""
    for seed in range(20):
        generator = random.Random(seed)
        finals = {(b, r): bowl(b, r) for b in (1024, 2048, 4096) for r in (2e-3, 6e-3, 18e-3, 54e-3)}
        curves = [[f + 2.0 * (1 - n / 8) + generator.gauss(0, 0.01) for n in range(1, 9)] for f in finals.values()]
        generator.shuffle(curves)
        seen: list[list[float]] = []
        for curve in curves:
            end = next((n for n in range(1, 9) if decide(ASHA, curve[:n], seen) is not None), 8)
            seen.append(curve[:end])
        spent = sum(map(len, seen)) / (8 * len(curves))
        best = min(losses[-1] for losses in seen if len(losses) == 8)
        assert best <= 1.01 * min(curve[-1] for curve in curves) and spent < 0.7
