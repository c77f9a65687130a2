"""The mixing pattern against a copy of Ray's rule, shares, and restarts at cycle boundaries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.config import SourceConfig
from pretrainer.data.mixture import Mixture, make_mixture, mixing_weights


def ray_rule(weights: list[float], blocks: int) -> list[int]:
    """MixOperator._select_most_behind_input of Ray 2.60, for sources that never end."""
    seen, out = [0] * len(weights), []
    for _ in range(blocks):
        total, best, most, best_weight = sum(seen), -1, float("-inf"), -1.0
        for i, weight in enumerate(weights):
            gap = weight / sum(weights) * total - seen[i]
            if gap > most or (gap == most and weight > best_weight):
                best, most, best_weight = i, gap, weight
        seen[best] += 1
        out.append(best)
    return out


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.sampled_from([16, 64, 256]))
def test_pattern_is_ray_s_and_periodic(raw: list[int], cycle: int) -> None:
    mixture = make_mixture([float(r) for r in raw], cycle)
    assert mixture.cycle == cycle and min(mixture.shares) >= 1
    want = ray_rule([float(s) for s in mixture.shares], 3 * cycle)
    assert [mixture.expected(b)[0] for b in range(3 * cycle)] == want


@given(st.lists(st.integers(1, 60), min_size=2, max_size=4), st.integers(0, 400))
def test_restart_continues_the_same_sequence(raw: list[int], block: int) -> None:
    mixture = make_mixture([float(r) for r in raw], 32)
    start, firsts = mixture.restart(block)
    assert start <= block < start + 32
    dealt = list(firsts)
    for number, source in enumerate(ray_rule([float(s) for s in mixture.shares], 40), start):
        assert mixture.expected(number) == (source, dealt[source])
        dealt[source] += 1


def test_one_source_needs_no_cycle() -> None:
    mixture = make_mixture([3.0], 64)
    assert mixture == Mixture((1,)) and mixture.expected(17) == (0, 17) and mixture.restart(17) == (17, [17])


@pytest.mark.parametrize(
    ("weights", "shares"), [([0.5, 0.5], (8, 8)), ([0.999, 0.001], (15, 1)), ([0.7, 0.2, 0.1], (11, 3, 2))]
)
def test_largest_remainder(weights: list[float], shares: tuple[int, ...]) -> None:
    assert make_mixture(weights, 16).shares == shares


def test_weights_follow_sizes_unless_shares_are_given() -> None:
    a, b = SourceConfig(name="a", uris=("x",), weight=2.0), SourceConfig(name="b", uris=("y",), weight=1.0)
    assert mixing_weights([a, b], [100, 300]) == [0.4, 0.6]
    c, d = SourceConfig(name="c", uris=("x",), share=0.75), SourceConfig(name="d", uris=("y",), share=0.25)
    assert mixing_weights([c, d], [100, 300]) == [0.75, 0.25]
