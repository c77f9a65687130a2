"""Memory by sharding, slots, and the choice of GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.config import ModelConfig
from pretrainer.model.flops import GIB
from pretrainer.model.memory_plan import memory_plan
from pretrainer.model.presets import parameter_count, resolve
from pretrainer.plan.budget import Ask
from pretrainer.plan.cluster import (
    MICRO_TOKENS,
    SHARD_GPUS,
    Load,
    arrange,
    arrangements,
    choose_run,
    fits,
    parallel_degrees,
    possible,
    slots,
)
from pretrainer.plan.config_file import config_of
from pretrainer.plan.memory import Arrangement, memory_of
from pretrainer.plan.request import Impossible
from tests.plan.plans import plan, prices, request

SEVEN = resolve(ModelConfig(preset="llama2-7b"))
H100 = prices().gpus["H100"]
L4 = prices().gpus["L4"]
RUN = Arrangement(gpus=8, seq_len=4096, slot_sequences=4, slot_blocks=64, micro_sequences=4)


def load(preset: str, batch_tokens: float = 4e6, seq_len: int = 4096, days_of_one_h100: float = 1.0) -> Load:
    flops = days_of_one_h100 * 86_400 * H100.flops_per_s
    model = resolve(ModelConfig(preset=preset))
    return Load(model=model, vocab_size=32_000, seq_len=seq_len, batch_tokens=batch_tokens, flops=flops)


# --------------------------------------------------------------------------------------------------------------- memory


def test_state_is_shared_by_the_gpus_of_a_copy() -> None:
    parameters = parameter_count(SEVEN, 32_000)
    for shards in (1, 2, 8):
        memory = memory_of(SEVEN, 32_000, replace(RUN, shard_gpus=shards))
        assert memory.parameters + memory.optimizer == pytest.approx(12 * parameters / shards)
    split = memory_of(SEVEN, 32_000, replace(RUN, tensor_parallel=2))
    assert split.parameters + split.optimizer == pytest.approx(12 * parameters / 8)  # over all eight, either way


def test_every_way_to_share_needs_less() -> None:
    plain = memory_of(SEVEN, 32_000, RUN)
    split = memory_of(SEVEN, 32_000, replace(RUN, tensor_parallel=2))
    assert split.gradients < plain.gradients and split.activations < plain.activations
    full, one = (
        memory_of(SEVEN, 32_000, replace(RUN, **way)) for way in ({"checkpointing": "full"}, {"micro_sequences": 1})
    )
    assert full.activations < plain.activations / 4 and one.activations < plain.activations / 3
    assert max(full.total, one.total, split.total) < plain.total


def test_whole_gradients_are_kept_only_over_several_passes() -> None:
    several, once = RUN, replace(RUN, slot_blocks=8)
    assert (several.passes, once.passes, replace(once, micro_sequences=1).passes) == (8, 1, 4)
    whole = 4 * parameter_count(SEVEN, 32_000)
    assert memory_of(SEVEN, 32_000, several).gradients >= whole > memory_of(SEVEN, 32_000, once).gradients


@pytest.mark.parametrize(
    "given_ones",
    [
        {"preset": "1b", "tokens": 1e11},
        {"preset": "llama2-70b", "tokens": 1e12, "gpus": 1024},
        {"flops": 1e22, "gpu": "A100-40GB"},
        {"preset": "smolgpt", "tokens": 1e9, "gpu": "L4"},
    ],
)
def test_memory_is_what_a_dry_run_of_the_config_would_say(given_ones: dict[str, Any]) -> None:
    found = plan(**given_ones)
    config = replace(config_of(found), model=found.resolved)
    assert found.memory == memory_plan(config, found.vocab_size, found.run.gpus, on_gpu=True)


@given(st.integers(0, 6), st.sampled_from(["125m", "1b", "llama2-7b"]))
def test_more_gpus_never_need_more_memory_each(power: int, preset: str) -> None:
    model = resolve(ModelConfig(preset=preset))
    here, more = (memory_of(model, 32_000, replace(RUN, gpus=n, slot_blocks=128)) for n in (2**power, 2 ** (power + 1)))
    assert more.total <= here.total


# ---------------------------------------------------------------------------------------------------------------- slots


@given(st.integers(1, 100_000), st.integers(0, 14), st.sampled_from([256, 512, 2048, 4096, 8192, 32_768]))
def test_slots_feed_every_stream_alike_and_make_about_the_batch(rows: int, power: int, seq_len: int) -> None:
    streams = 2**power
    if streams > rows:
        return
    block, blocks = slots(rows, streams, seq_len)
    assert blocks % streams == 0 and blocks >= streams
    assert block & (block - 1) == 0 and (block == 1 or block * seq_len <= MICRO_TOKENS)
    assert rows / 1.5 <= block * blocks <= rows * 1.5


def test_tensor_parallelism_stays_inside_a_node_and_divides_the_model() -> None:
    assert list(parallel_degrees(SEVEN, H100, 64)) == [1, 2, 4, 8]
    assert list(parallel_degrees(SEVEN, H100, 2)) == [1, 2]
    assert list(parallel_degrees(SEVEN, replace(H100, gpus_per_node=4), 64)) == [1, 2, 4]
    assert list(parallel_degrees(replace(SEVEN, kv_heads=2), H100, 64)) == [1, 2]
    assert list(parallel_degrees(resolve(ModelConfig(preset="125m")), H100, 8)) == [1, 2, 4]


def test_the_simplest_arrangement_that_fits_is_taken() -> None:
    small = arrange(load("125m"), H100, 1)
    assert small is not None and (small.tensor_parallel, small.checkpointing) == (1, "none")
    assert small.micro_sequences == small.slot_sequences
    tight = arrange(load("llama2-7b"), L4, 64)
    assert tight is not None and (tight.tensor_parallel > 1 or tight.checkpointing != "none")
    assert fits(load("llama2-7b"), L4, tight)
    better = [run for run in arrangements(load("llama2-7b"), L4, 64)]
    assert not any(fits(load("llama2-7b"), L4, run) for run in better[: better.index(tight)])


def test_large_clusters_hold_copies() -> None:
    run = arrange(load("llama2-7b", 16e6), H100, 2048)
    assert run is not None and run.shard_gpus == SHARD_GPUS
    fewer = arrange(load("llama2-7b", 16e6), H100, 512)
    assert fewer is not None and fewer.shard_gpus is None


# --------------------------------------------------------------------------------------------------------------- choice


def asked(**given: object):
    return replace(request(tokens=1e9), **given)


def test_the_fewest_gpus_in_time_are_chosen() -> None:
    heavy = load("llama2-7b", days_of_one_h100=1000)
    assert choose_run(asked(), H100, heavy).gpus == 64  # 1000 / 30 = 33.3
    assert choose_run(asked(days=1000.0), H100, heavy).gpus == 2  # one cannot hold it
    assert choose_run(asked(days=4.0), H100, heavy).gpus == 256
    assert choose_run(asked(gpus=24), H100, heavy).gpus == 24


def test_a_run_that_nobody_gives_days_may_take_longer() -> None:
    endless = load("125m", batch_tokens=65_536, days_of_one_h100=1e5)
    run = choose_run(asked(), H100, endless)
    assert run.gpus == max(one.gpus for one in possible(endless, H100)) and endless.days(H100, run.gpus) > 30


def test_impossible_choices_say_why_and_what_else() -> None:
    heavy = load("llama2-70b", days_of_one_h100=1000)
    with pytest.raises(Impossible, match=r"69B parameters do not fit into 2 L4: .* 22 GiB") as told:
        choose_run(asked(gpus=2), L4, heavy)
    nearest = list(told.value.nearest)
    assert nearest[0].gpus is not None and nearest[0].gpus > 2 and nearest[0].gpu == "H100"
    assert [one.gpu for one in nearest[1:4]] == ["A100-40GB", "L40S", "H100"]
    assert nearest[-1].ask == Ask(parameters=nearest[-2].ask.parameters / 2)
    with pytest.raises(Impossible, match=r"--gpus=4096 .* 16 rows of 4,096") as told:
        choose_run(asked(gpus=4096), H100, load("125m", batch_tokens=65_536))
    assert told.value.nearest[0].gpus <= 16 * 4
    with pytest.raises(Impossible, match=r"--days=0.1 .* at most \d+ H100, which take") as told:
        choose_run(asked(days=0.1), H100, load("125m", batch_tokens=65_536, days_of_one_h100=1000))
    assert told.value.nearest[0].days is None and told.value.nearest[0].gpus


def test_more_of_the_same_gpu_is_offered_even_where_fewer_would_do() -> None:
    """Five GPUs cannot split matrices, so four hold what they do not."""
    small = prices().gpus["A100-40GB"]
    heavy = load("llama2-7b", seq_len=8192)
    assert [run.gpus for run in possible(heavy, small)][0] == 4
    with pytest.raises(Impossible, match="do not fit into 5 A100-40GB") as told:
        choose_run(asked(gpus=5), small, heavy)
    assert told.value.nearest[0].gpus == 8


def test_memory_is_compared_in_gib() -> None:
    run = arrange(load("1b"), H100, 8)
    assert run is not None
    needs = load("1b").bytes(run) / GIB
    assert fits(load("1b"), replace(H100, memory_gib=needs / 0.89), run)
    assert not fits(load("1b"), replace(H100, memory_gib=needs / 0.91), run)
