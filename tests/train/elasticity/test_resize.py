"""When a run grows: useful sizes, a stable cluster, a checkpoint first, patience with nodes that flap; its requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.config import Config, DataConfig, SourceConfig, TrainConfig
from pretrainer.train.elasticity.resize import (
    BACKOFF_LIMIT,
    BURST_S,
    AutoscalerRequest,
    Burst,
    GrowthGate,
    best_size,
    sizes_of,
    useful_sizes,
)


@given(st.integers(1, 200), st.integers(1, 200))
def test_useful_sizes_are_those_that_shorten_a_step(blocks: int, largest: int) -> None:
    """By dealing the blocks out: the busiest rank has fewer than at any smaller world size."""
    busiest = [max(len(range(rank, blocks, world)) for rank in range(world)) for world in range(1, largest + 1)]
    want = [world for world in range(1, largest + 1) if all(busiest[world - 1] < b for b in busiest[: world - 1])]
    assert useful_sizes(blocks, 1, largest) == want


def test_useful_sizes_of_eight_blocks() -> None:
    assert useful_sizes(8, 1, 8) == [1, 2, 3, 4, 8]
    assert useful_sizes(8, 1, 5) == [1, 2, 3, 4]
    assert useful_sizes(8, 5, 7) == [5]  # the smallest allowed one, useful or not


def test_useful_sizes_of_teams() -> None:
    """A team counts once, and sizes are whole groups of workers."""
    assert useful_sizes(8, 2, 16, team=2, multiple=2) == [2, 4, 6, 8, 16]
    assert useful_sizes(8, 4, 16, team=1, multiple=4) == [4, 8]
    train = TrainConfig(steps=1, num_workers=(8, 16), global_batch_tokens=8192, tensor_parallel=2, shard_workers=4)
    source = SourceConfig(name="text", uris="*.txt", preset="none")
    config = Config(data=DataConfig(sources=(source,), seq_len=128, slot_sequences=8), train=train)
    assert sizes_of(config) == [8, 16]


@pytest.mark.parametrize(("possible", "size"), [(0, None), (1, 1), (3, 3), (7, 4), (8, 8), (99, 8)])
def test_best_size_is_the_largest_useful_one_that_fits(possible: int, size: int | None) -> None:
    assert best_size([1, 2, 3, 4, 8], possible) == size


def test_growth_waits_for_stability_and_then_for_a_checkpoint() -> None:
    gate = GrowthGate(stable_s=10)
    assert gate.look(0, 2, 4, 9, asked_step=20) == "stay"
    assert gate.look(9, 2, 4, 9, asked_step=20) == "stay"
    assert gate.look(10, 2, 4, 9, asked_step=20) == "checkpoint"
    assert gate.look(12, 2, 4, 9, asked_step=20) == "stay"
    assert gate.look(13, 2, 4, 9, asked_step=-1) == "stay", "Ray has deleted that one"
    assert gate.look(14, 2, 4, 9, asked_step=47) == "grow"
    assert gate.look(16, 4, 4, 9, asked_step=47) == "stay"


def test_capacity_that_goes_away_begins_the_wait_anew() -> None:
    gate = GrowthGate(stable_s=10)
    gate.look(0, 2, 4, 9, 0)
    assert gate.look(8, 2, 2, 9, 0) == "stay"
    assert gate.look(12, 2, 4, 9, 0) == "stay" and gate.look(21, 2, 4, 9, 0) == "stay"
    assert gate.look(22, 2, 4, 9, 0) == "checkpoint"


def test_a_checkpoint_that_was_asked_for_does_not_outlive_the_capacity() -> None:
    gate = GrowthGate(stable_s=0)
    assert gate.look(0, 2, 4, 9, 7) == "checkpoint"
    assert gate.look(1, 2, None, 9, 7) == "stay"
    assert gate.look(2, 2, 4, 9, 9) == "checkpoint", "step 9 was saved for something else"


def test_a_healthy_group_never_shrinks() -> None:
    gate = GrowthGate(stable_s=0)
    assert {gate.look(now, 4, 2, 9, now) for now in range(100)} == {"stay"}


def test_a_group_that_leaves_its_data_no_cpu_shrinks() -> None:
    gate = GrowthGate(stable_s=10)
    assert gate.look(0, 4, 2, room=2, asked_step=0) == "shrink"
    assert gate.look(0, 4, 4, room=3, asked_step=0) == "stay", "the size is the smallest there is"
    assert gate.look(0, 4, None, room=1, asked_step=0) == "stay", "not even the smallest size fits"


def grow(gate: GrowthGate, now: float) -> float:
    """Grow 2 -> 4 from `now` on; the time at which it happened."""
    step = 0
    while gate.look(now, 2, 4, 9, step) != "grow":
        step += gate.asked_at_step is not None
        now += 1
    return now


def test_flapping_nodes_are_given_ever_more_time() -> None:
    gate, now, waits = GrowthGate(stable_s=10), 0.0, []
    for _ in range(9):
        grown = grow(gate, now)
        waits.append(grown - now)
        now = grown + 1
        gate.restarted(now)
    assert waits[:3] == sorted(waits[:3]) and waits[1] > 1.8 * waits[0] and waits[2] > 1.8 * waits[1]
    assert gate.factor == BACKOFF_LIMIT


def test_a_growth_that_lasted_is_forgiven() -> None:
    gate = GrowthGate(stable_s=10, factor=4)
    gate.restarted(grow(gate, 0) + 1000)
    assert gate.factor == 1
    gate.restarted(2000)
    assert gate.factor == 1, "a failure without a growth before it says nothing about flapping"


@given(st.integers(1, 100), st.integers(1, 20), st.integers(20, 100), st.integers(0, 120))
def test_what_an_autoscaler_may_have_comes_however_much_too_much_is_wanted(
    blocks: int, smallest: int, largest: int, most: int
) -> None:
    """It grants a request whole or not at all. (At every look the patience with the last request is over.)"""
    sizes = useful_sizes(blocks, smallest, largest)
    asking, held = AutoscalerRequest(sizes, patience_s=10), 0
    for now_s in range(0, 20 * 100 * 10, 20):
        asked = asking.look(now_s, held)
        assert asked in sizes and (asked > held or asked == sizes[-1])
        held = asked if held < asked <= most else held
    assert held == (best_size(sizes, most) or 0)


def test_the_most_is_asked_for_while_nodes_come_and_half_way_down_when_none_does() -> None:
    asking = AutoscalerRequest([1, 2, 3, 4, 8], patience_s=300)
    seen = [(now_s, held, asking.look(now_s, held)) for now_s, held in (
        (0, 0), (299, 0), (300, 0), (599, 0), (600, 0), (610, 1), (620, 2), (900, 2), (919, 2), (920, 2),
    )]  # fmt: skip
    assert [asked for *_when, asked in seen] == [8, 8, 3, 3, 2, 2, 8, 8, 8, 4]


def test_patience_begins_anew_with_every_node_that_comes() -> None:
    asking = AutoscalerRequest([1, 2, 4], patience_s=300)
    assert [asking.look(now_s, held) for now_s, held in ((0, 0), (290, 1), (589, 1), (590, 1))] == [4, 4, 4, 2]


def test_where_a_cloud_has_nothing_the_most_is_asked_for_again() -> None:
    asking = AutoscalerRequest([1, 2], patience_s=1)
    assert [asking.look(now_s, 0) for now_s in range(5)] == [2, 1, 2, 1, 2]


def test_a_start_waits_for_the_next_node_while_one_has_just_come() -> None:
    burst = Burst(frozenset())
    burst.look(100.0, frozenset("a"))
    assert burst.goes_on(100.0) and burst.goes_on(100.0 + BURST_S - 1) and not burst.goes_on(100.0 + BURST_S)
    burst.look(130.0, frozenset("a"))
    assert not burst.goes_on(130.0), "nothing has come"
    burst.look(140.0, frozenset())
    assert not burst.goes_on(140.0), "one has gone"
    burst.look(150.0, frozenset("b"))
    assert burst.goes_on(150.0)


def test_nodes_that_come_and_go_do_not_keep_a_run_from_its_start() -> None:
    burst, waited = Burst(frozenset()), []
    for second in range(0, 200, 5):
        burst.look(float(second), frozenset({f"node {second}"}))
        waited.append(burst.goes_on(float(second)))
    assert waited.index(False) == 3 * BURST_S / 5 and not any(waited[waited.index(False) :])
