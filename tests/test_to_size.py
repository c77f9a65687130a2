"""What the driver does on a large cluster with a large corpus, counted: 10^6 chunks, 1,000 ranks, 100 nodes.

    python -m pytest -q tests/test_to_size.py

Lines of Python and bytes are the same on every machine; seconds would not be.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import pyarrow as pa
import pytest
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

from pretrainer.config import Config, DataConfig, SegmentConfig, SourceConfig, TrainConfig
from pretrainer.data import curriculum, mixture
from pretrainer.data.curriculum import make_segments
from pretrainer.data.pipeline import STRETCHES, cut_into_stretches
from pretrainer.data.readers import units
from pretrainer.data.readers.source import SHARDS, Manifest
from pretrainer.data.readers.units import UnitPlan, order_key, permute
from pretrainer.train import batch
from pretrainer.train.elasticity import elastic, resize
from pretrainer.train.elasticity.resize import useful_sizes
from tests.train.elasticity.test_elastic import Cluster, policy, size
from tests.work import lines_run

CHUNKS, RANKS, NODES = 10**6, 1000, 100
CHUNK_BYTES = 2**20


def manifest(chunks: int) -> Manifest:
    """Uncompressed shards of 100 chunks each."""
    shards = chunks // 100
    columns = {
        "source": [0] * shards,
        "root": ["s3://bucket/corpus"] * shards,
        "path": [f"part-{n:06d}.jsonl" for n in range(shards)],
        "size": [100 * CHUNK_BYTES] * shards,
        "version": [f"{n:032x}" for n in range(shards)],
    }
    return Manifest(("web",), ("auto",), (pa.table(columns, schema=SHARDS),))


def peak_bytes(call: Callable[[], object]) -> tuple[object, int]:
    """(what it returns, most bytes that Python and numpy held for it at a time)."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


def test_the_plan_of_a_million_chunks_is_a_few_megabytes_made_once() -> None:
    shards = manifest(CHUNKS)
    plan, peak = peak_bytes(lambda: UnitPlan(shards, 0, CHUNK_BYTES))
    assert isinstance(plan, UnitPlan) and len(plan) == CHUNKS
    assert peak < 4e6 and len(shards.to_bytes()) < 1.5e6
    assert lines_run(units, lambda: UnitPlan(shards, 0, CHUNK_BYTES)) < 30 * CHUNKS / 100, "work by shard, not by chunk"


def test_a_chunk_is_found_with_the_same_work_among_a_million() -> None:
    def work(chunks: int) -> int:
        plan, order = UnitPlan(manifest(chunks), 0, CHUNK_BYTES), permute(chunks, order_key(0, "web", 1))
        return lines_run(units, lambda: [plan.pieces(order(chunks // 7 * n)) for n in range(7)])

    assert work(CHUNKS) < 2 * work(CHUNKS // 1000) < 7 * 400


def test_a_million_chunks_are_few_rows_to_ray() -> None:
    stretches, peak = peak_bytes(lambda: cut_into_stretches(0, CHUNKS))
    assert isinstance(stretches, list) and len(stretches) == STRETCHES == 256 and peak < 1e6
    assert sum(one["end"] - one["first"] for one in stretches) == CHUNKS


@pytest.fixture
def config() -> Config:
    """Four blocks for each of a thousand ranks, from two sources; two segments."""
    shares = (0.75, 0.25)
    sources = tuple(SourceConfig(name=f"s{i}", uris=("/nowhere",), share=share) for i, share in enumerate(shares))
    data = DataConfig(
        sources=sources, seq_len=2048, slot_sequences=1,
        curriculum=(SegmentConfig(until=0.5, shares=shares), SegmentConfig(until=1.0, shares=shares[::-1])),
    )  # fmt: skip
    train = TrainConfig(steps=10**6, global_batch_tokens=4 * RANKS * 2048, num_workers=(1, RANKS))
    return Config(data=data, train=train)


def test_the_batch_of_a_thousand_ranks_is_dealt_once_and_a_rank_finds_its_own_at_once() -> None:
    blocks, step = 4 * RANKS, 10**6
    owned = [batch.owned_blocks(step, blocks, rank, RANKS, dealt_from=7) for rank in range(RANKS)]
    assert sorted(block for mine in owned for block in mine) == [*range(step * blocks, (step + 1) * blocks)]
    assert all(isinstance(mine, range) and len(mine) == 4 for mine in owned), "no rank lists what others have"
    assert lines_run(batch, lambda: batch.owned_blocks(step, blocks, 999, RANKS, 7)) <= 3


def test_which_block_is_next_does_not_cost_more_late_in_a_run(config: Config) -> None:
    order = curriculum.Curriculum(make_segments(config, [0.75, 0.25]), 4 * RANKS)

    def work(block: int) -> int:
        return sum(lines_run(module, lambda: (order.expected(block), order.restart(block)))
                   for module in (curriculum, mixture))  # fmt: skip

    assert work(3 * 10**9) <= 2 * work(4000) < 400


def test_sizes_of_a_thousand_workers_are_few(config: Config) -> None:
    sizes = useful_sizes(4 * RANKS, 1, RANKS)
    assert sizes[-1] == RANKS and len(sizes) < 150
    assert {Fraction(4 * RANKS, one) >= 4 for one in sizes} == {True}
    assert lines_run(resize, lambda: useful_sizes(4 * RANKS, 1, RANKS)) < 5 * RANKS


def test_a_hundred_nodes_are_looked_at_once_by_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(nodes: int) -> tuple[int, int | None]:
        cluster = Cluster(monkeypatch)
        cluster.nodes = {f"n{i:03d}": {"CPU": 64.0, "GPU": 8.0} for i in range(nodes)}
        elastic_policy = policy(8 * nodes, blocks=32 * nodes, use_gpu=True)[0]
        decided: list[int | None] = []
        lines = lines_run(
            elastic, lambda: decided.append(size(elastic_policy.make_decision_for_non_running_worker_group()))
        )
        return lines, decided[0]

    (few, small), (many, large) = look(NODES // 10), look(NODES)
    assert (small, large) == (8 * NODES // 10, 8 * NODES) and many < 11 * few and many < 15 * NODES


def test_rays_coordinator_places_a_thousand_workers_on_a_hundred_nodes() -> None:
    """What every look of it costs: some lines for each worker, and not for each pair of worker and node."""
    nodes = {f"n{i:03d}": {"CPU": 64.0, "GPU": 10.0} for i in range(NODES)}
    request = coordinator.OngoingRequest(
        first_request_time=0.0, requested_resources=[{"CPU": 4.0, "GPU": 1.0}] * RANKS,
        requested_label_selectors=[{}] * RANKS, request_remaining=frozenset(), priority=0, expiration_time=1e9,
        reserved_resources={}, strategy=coordinator.ResourceRequestStrategy.SPREAD,
    )  # fmt: skip
    found = {}
    lines = lines_run(coordinator, lambda: found.update(coordinator._compute_reservations(request, nodes)))
    assert len(found) == NODES and sum(has["GPU"] for has in found.values()) == RANKS
    assert lines < 50 * RANKS
