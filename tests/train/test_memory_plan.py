"""The memory plan against the peak of real steps on the CPU; what is refused, and what is offered instead.

    python -m pytest -q tests/train/test_memory_plan.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from pretrainer.config import Config, DataConfig, ModelConfig, SegmentConfig, SourceConfig, TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model import memory_plan as plans
from pretrainer.model.activations import Pass, activation_bytes
from pretrainer.model.memory_plan import (
    GIB,
    PARTS,
    USABLE,
    MemoryPlan,
    check_memory,
    device_bytes,
    memory_plan,
    plan_table,
    remedies,
    setup_of,
)
from pretrainer.model.presets import parameter_count, resolve
from pretrainer.model.ring import Ring
from pretrainer.model.transformer import init_weights
from pretrainer.train.exact import BlockSum, exact_train_step
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding import parallel
from pretrainer.train.sharding.layout import Layout, Ranks
from pretrainer.train.step import MicroBatch, train_step
from tests.live_memory import LiveMemory
from tests.model.architectures import ARCHITECTURES, tiny
from tests.train.ranks import run_ranks

SOURCES = (SourceConfig(name="text", uris=("/nowhere",)),)
CPU = torch.device("cpu")
SMALL = tiny(layers=3, hidden=64, head_width=16, ffn_hidden=160)
DEEP = replace(SMALL, layers=6)
WIDE = tiny(layers=4, hidden=128, head_width=16, ffn_hidden=512)
EXPERTS = replace(ARCHITECTURES["mixtral"], hidden=64, head_width=16, ffn_hidden=96)


@dataclass(frozen=True)
class Case:
    """A step of one rank: so many micro-batches of rows x seq_len tokens."""

    model: ModelConfig
    vocab_size: int
    rows: int
    seq_len: int
    micro_batches: int = 1
    train: tuple[tuple[str, Any], ...] = ()
    keeps_gathered: bool = True
    fsdp: bool = False  # on one rank too

    @property
    def config(self) -> Config:
        data = DataConfig(sources=SOURCES, seq_len=self.seq_len, slot_sequences=self.rows * self.micro_batches)
        tokens = self.seq_len * data.slot_sequences
        fields = {"steps": 1, "global_batch_tokens": tokens, "micro_batch_sequences": self.rows, **dict(self.train)}
        return Config(data=data, model=self.model, train=TrainConfig(**fields))


IS_ALONE = plans.is_alone
SELECTIVE = ("activation_checkpointing", "selective")
HALF, EXACT = ("precision", "bfloat16"), ("exact", True)
CASES = {
    "activations": Case(SMALL, 96, 8, 64),
    "activations-half": Case(SMALL, 96, 8, 64, 1, (HALF,)),
    "activations-half-fsdp": Case(SMALL, 96, 8, 64, 1, (HALF,), fsdp=True),
    "activations-accumulated": Case(SMALL, 96, 8, 64, 2),
    "experts": Case(EXPERTS, 96, 8, 64),
    "loss": Case(SMALL, 2000, 4, 64),
    "loss-half-accumulated": Case(SMALL, 2000, 4, 64, 2, (HALF,)),
    "loss-half-accumulated-fsdp": Case(SMALL, 2000, 4, 64, 2, (HALF,), fsdp=True),
    "loss-in-chunks": Case(SMALL, 4000, 4, 64, 1, (("loss_chunk_tokens", 64),)),
    "loss-in-chunks-half": Case(SMALL, 4000, 4, 64, 1, (("loss_chunk_tokens", 64), HALF)),
    "loss-in-chunks-half-fsdp": Case(SMALL, 4000, 4, 64, 1, (("loss_chunk_tokens", 64), HALF), fsdp=True),
    "parameters": Case(WIDE, 500, 1, 32),
    "parameters-accumulated": Case(WIDE, 500, 1, 32, 2),
    "parameters-half-accumulated": Case(WIDE, 500, 1, 32, 2, (HALF,)),
    "parameters-half-accumulated-fsdp": Case(WIDE, 500, 1, 32, 2, (HALF,), fsdp=True),
    "parameters-resharded": Case(WIDE, 500, 1, 32, 2, (HALF,), keeps_gathered=False, fsdp=True),
    "bfloat16-moments": Case(WIDE, 500, 1, 32, 1, (("optimizer_state", "bfloat16"),)),
    "muon": Case(WIDE, 500, 1, 32, 1, (("optimizer", "muon"),)),
    "recomputed": Case(SMALL, 96, 8, 64, 1, (("activation_checkpointing", "full"),)),
    "recomputed-in-part-half": Case(SMALL, 96, 8, 64, 1, (SELECTIVE, HALF)),
    "recomputed-in-part-half-fsdp": Case(SMALL, 96, 8, 64, 1, (SELECTIVE, HALF), fsdp=True),
    "exact": Case(SMALL, 96, 8, 64, 1, (EXACT,)),
    "exact-half": Case(SMALL, 96, 8, 64, 1, (EXACT, HALF)),
    "exact-parameters": Case(WIDE, 500, 1, 32, 1, (EXACT,)),
    "exact-parameters-half": Case(WIDE, 500, 1, 32, 2, (EXACT, HALF)),
}


def arrange(case: Case) -> None:
    for module in (plans, parallel):
        module.RESHARD_FROM_PARAMETERS = 64_000_000 if case.keeps_gathered else 0
        module.is_alone = (lambda _train, _workers: False) if case.fsdp else IS_ALONE


def measured(case: Case) -> tuple[int, MemoryPlan]:
    """(bytes alive at the peak of a second step, the plan's)."""
    arrange(case)
    train, vocab_size = case.config.train, case.vocab_size
    model = parallel.build_model(case.model, vocab_size, train, CPU)
    init_weights(model, 0)
    optimizer = build_optimizer(model, train)
    columns = torch.arange(case.seq_len)
    documents, positions = (columns > case.seq_len // 3).long().repeat(case.rows, 1), columns.repeat(case.rows, 1)
    draw = [torch.randint(0, vocab_size, (case.rows, case.seq_len)) for _ in range(2 * case.micro_batches)]
    micro = [MicroBatch(a, b, positions, documents) for a, b in zip(draw[::2], draw[1::2], strict=True)]
    targets = train.global_batch_tokens
    total = BlockSum(model, 1, targets) if train.exact else None

    def step() -> None:
        if total is not None:
            exact_train_step(model, optimizer, [micro], targets, 1e-3, 1.0, total)
        else:
            train_step(model, optimizer, micro, 0, targets, 1e-3, 1.0)

    step()
    moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
    with LiveMemory([*model.parameters(), *moments, *([] if total is None else [total.total])]) as memory:
        step()
    return memory.peak, memory_plan(case.config, vocab_size, 1, False)


def all_measured(_rank: int, _world: int) -> dict[str, tuple[int, MemoryPlan]]:
    return {name: measured(case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def peaks() -> dict[str, tuple[int, MemoryPlan]]:
    return run_ranks(1, all_measured)[0]


@pytest.mark.parametrize("name", CASES)
def test_plan_is_the_peak_of_a_step(peaks: dict[str, tuple[int, MemoryPlan]], name: str) -> None:
    peak, plan = peaks[name]
    assert plan.total == pytest.approx(peak, rel=0.05)


def test_each_moment_is_the_peak_of_some_step(peaks: dict[str, tuple[int, MemoryPlan]]) -> None:
    assert {plan.moment for _peak, plan in peaks.values()} == {"loss", "backward pass", "update"}


# ------------------------------------------------------------------------------------------------------- two ranks


def kept_on_two(_rank: int, _world: int, name: str, half: bool) -> tuple[int, int]:
    """(bytes that a rank keeps of a forward pass, parameters it gathered left out; the plan's)."""
    train = TrainConfig(steps=1, num_workers=2, precision="bfloat16" if half else "float32", **{name: 2})
    ranks = Ranks(Layout.of(train, 2), "cpu")
    model = parallel.build_model(DEEP, 96, train, CPU, ranks)
    init_weights(model, 0)
    ring, columns = Ring.of(ranks.ring), torch.arange(64)
    places = columns if ring is None else ring.places(64)
    documents = (columns > 20).long().repeat(8, 1)
    tokens = torch.randint(0, 96, (8, len(places)), generator=torch.Generator().manual_seed(0))
    with LiveMemory(model.parameters()) as memory:
        before = memory.now()
        hidden = model(tokens, places.repeat(8, 1), documents, None, lambda states, _weight: states, ring)
        assert hidden.requires_grad
        kept = memory.now() - before
    run = Pass(rows=8, seq_len=64, half=half, device="cpu", **{name: 2})
    gathered = run.element * parameter_count(DEEP, 96) // train.tensor_parallel
    return kept - gathered, activation_bytes(DEEP, run)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["tensor_parallel", "context_parallel"])
def test_plan_of_activations_holds_on_two_ranks(name: str, half: bool) -> None:
    for kept, planned_bytes in run_ranks(2, kept_on_two, name, half):
        assert planned_bytes == pytest.approx(kept, rel=0.05)


# ------------------------------------------------------------------------------------------------------ many workers


def billion(workers: Any = 8, data: DataConfig | None = None, **train: Any) -> Config:
    """1 B parameters at 4,096 tokens: 64 slot blocks of 2 sequences a step."""
    data = data or DataConfig(sources=SOURCES, seq_len=4096, slot_sequences=2)
    train = {"steps": 10, "num_workers": workers, "global_batch_tokens": 64 * 8192} | train
    return Config(data=data, model=resolve(ModelConfig(preset="1b")), train=TrainConfig(**train))


VOCAB = 65_536


def planned(config: Config, workers: int = 8) -> MemoryPlan:
    return memory_plan(config, VOCAB, workers, True)


def test_shards_divide_parameters_and_moments_by_the_ranks_that_hold_one_copy() -> None:
    whole = planned(billion(1), 1)
    assert whole.parameters == 4 * parameter_count(billion().model, VOCAB) and whole.optimizer == 2 * whole.parameters
    for config, workers, ranks in ((billion(8), 8, 8), (billion(64), 64, 64), (billion(64, shard_workers=4), 64, 4)):
        plan = planned(config, workers)
        for part in ("parameters", "optimizer"):
            assert getattr(plan, part) == pytest.approx(getattr(whole, part) / ranks, abs=1)


def test_gradients_are_summed_whole_where_a_rank_has_several_micro_batches() -> None:
    config = billion(64)
    parameters = parameter_count(config.model, VOCAB)
    one, two = planned(config, 64), planned(billion(64, micro_batch_sequences=1), 64)
    assert setup_of(config, 64, True).micro_batches == 1
    assert setup_of(billion(64, micro_batch_sequences=1), 64, True).micro_batches == 2
    assert setup_of(config, 48, True).micro_batches == 2  # the busiest of 48 ranks has 2 of 64 slot blocks
    assert setup_of(config, 64, True).run.rows == 2
    assert two.gradients - one.gradients == 4 * parameters


def test_teams_share_rows_and_a_copy_of_the_parameters() -> None:
    config = billion(8, tensor_parallel=4, context_parallel=2)
    setup = setup_of(config, 8, True)
    assert (setup.shards, setup.micro_batches) == (2, 64)
    assert setup_of(billion(64, tensor_parallel=4, shard_workers=16), 64, True).shards == 4
    for parallel_config in (config, billion(8, tensor_parallel=2)):
        assert planned(parallel_config).parameters == pytest.approx(planned(billion(8)).parameters, abs=8)


def test_offloaded_state_lies_on_the_host() -> None:
    there, away = planned(billion()), planned(billion(cpu_offload=True))
    assert (away.parameters, away.optimizer) == (0, 0)
    assert away.host == 2 * there.parameters + there.optimizer
    assert away.total == there.total - there.parameters - there.optimizer


def test_the_longest_rows_of_a_curriculum_count() -> None:
    stages = (SegmentConfig(until=0.5, seq_len=1024), SegmentConfig(seq_len=8192))
    data = DataConfig(sources=SOURCES, seq_len=4096, slot_sequences=2, curriculum=stages)
    run = setup_of(billion(data=data), 8, True).run
    assert (run.rows, run.seq_len) == (1, 8192)


def test_precision_auto_is_bfloat16_on_gpus_alone() -> None:
    assert setup_of(billion(), 8, True).run.half and not setup_of(billion(), 8, False).run.half
    assert not setup_of(billion(precision="float32"), 8, True).run.half


# ------------------------------------------------------------------------------------------------ what does not fit


def test_a_step_that_just_fits_is_let_through_and_one_byte_less_is_refused() -> None:
    config = billion()
    needs = planned(config).total
    check_memory(config, VOCAB, 8, True, needs / USABLE + 1, "this GPU")
    with pytest.raises(ConfigError, match=rf"about {needs / GIB:.2f} GiB on each of 8 workers, and this GPU has"):
        check_memory(config, VOCAB, 8, True, (needs - 1) / USABLE, "this GPU")


def test_remedies_come_in_order_each_with_what_it_would_need_and_each_needs_less() -> None:
    data = DataConfig(sources=SOURCES, seq_len=4096, slot_sequences=4)
    config = billion(8, data=data, global_batch_tokens=64 * 16_384)
    offered = list(remedies(config, 8))
    assert [words for words, _config, _workers in offered] == [
        "train.activation_checkpointing=selective",
        "train.activation_checkpointing=full",
        "train.micro_batch_sequences=2",
        "train.micro_batch_sequences=1",
        "train.num_workers=16",
        "train.tensor_parallel=2",
        "train.optimizer_state=bfloat16",
    ]
    needs = planned(config).total
    for words, other, workers in offered:
        assert planned(other, workers).total < needs, words
    with pytest.raises(ConfigError) as caught:
        check_memory(config, VOCAB, 8, True, GIB, "an H100 GPU")
    sizes = [float(size) for size in re.findall(r"\((\d+\.\d\d) GiB\)", str(caught.value))]
    assert sizes == [round(planned(other, workers).total / GIB, 2) for _words, other, workers in offered]


def test_what_cannot_be_changed_is_not_offered() -> None:
    config = billion(
        64, activation_checkpointing="full", micro_batch_sequences=1, optimizer_state="bfloat16", shard_workers=8
    )
    assert [words for words, *_rest in remedies(config, 64)] == ["train.tensor_parallel=2"]
    half = billion(64, tensor_parallel=8, activation_checkpointing="full", micro_batch_sequences=1)
    assert [words for words, *_rest in remedies(half, 64)] == [  # 8 heads of keys are in 8 parts already
        "train.num_workers=128", "train.optimizer_state=bfloat16",
    ]  # fmt: skip
    odd = billion(3, activation_checkpointing="selective", micro_batch_sequences=1, beta2=0.99, exact=True)
    assert [words for words, *_rest in remedies(odd, 3)] == ["train.activation_checkpointing=full"]


def test_devices_are_known_by_their_own_name_and_by_rays() -> None:
    assert device_bytes("NVIDIA H200") == 139 * GIB and device_bytes("H200") == 139 * GIB
    assert device_bytes("NVIDIA H100 80GB HBM3") == 79 * GIB
    assert device_bytes("NVIDIA A100-SXM4-40GB") == 39 * GIB and device_bytes("A100") == 79 * GIB
    assert device_bytes("NVIDIA GH200 480GB") == 139 * GIB
    assert device_bytes("Some CPU") is None


def test_table_adds_up() -> None:
    plan = planned(billion(cpu_offload=True))
    rows = dict(plan_table(plan))
    parts = [f"- {name}" for name in PARTS if getattr(plan, name)]
    assert list(rows) == [*parts, "- on the host"]
    assert sum(float(rows[name].split()[0]) for name in parts) == pytest.approx(plan.total / GIB, abs=0.01)
