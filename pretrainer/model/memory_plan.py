"""Bytes that a rank needs at the peak of a step, as a table; and what to change where they do not fit.

A step has three moments at which it may need most: the loss (all activations and the logits), the backward pass of the
last block (all activations and what that block makes on the way), and the update (all sharded gradients). Between the
last two activations go and gradients come in proportion, so one of them is the peak. The plan is that of the largest.

Not counted: the driver's context on a GPU, buffers of NCCL and what the allocator cannot use; `USABLE` leaves a tenth
for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pretrainer.config import Config, ModelConfig, TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model.activations import Pass, activation_bytes, backward_bytes, joined_bytes
from pretrainer.model.flops import GIB, optimizer_state_bytes
from pretrainer.model.loss import LossSettings, chunk_length, chunk_tokens
from pretrainer.model.presets import block_parameters, parameter_count

USABLE = 0.9
RESHARD_FROM_PARAMETERS = 64_000_000  # 256 MB of float32, gathered, is worth freeing between forward and backward

# What torch says of a device's memory, in GiB; the first name found in the device's name counts, as in PEAK_FLOPS.
# A name that stands for several sizes has the largest: only what fits into none of them is refused.
DEVICE_GIB: dict[str, float] = {
    "B200": 178.0,
    "GH200": 139.0,
    "H200": 139.0,
    "H100 NVL": 93.0,
    "H100": 79.0,
    "H20": 95.0,
    "A100-SXM4-40GB": 39.0,
    "A100-PCIE-40GB": 39.0,
    "A100-40G": 39.0,
    "A100": 79.0,
    "A800": 79.0,
    "A40": 44.0,
    "A30": 23.0,
    "A10G": 22.0,
    "A10": 22.0,
    "L40S": 44.0,
    "L40": 44.0,
    "L4": 22.0,
}


def is_alone(train: TrainConfig, workers: int) -> bool:
    """Whether a worker has the model as it is, without FSDP2: nothing is shared or offloaded, and layers cast their
    parameters themselves (cast.py).

    FSDP2 on one rank copies every parameter and gradient: it costs a model of 1 M parameters 25 % of its step on a CPU,
    and keeps the host of a GPU so busy that one of 124 M waits for it (log 2026-11-27).
    """
    return workers == 1 and not train.cpu_offload


def device_bytes(device_name: str) -> float | None:
    """Memory of a device by its name (torch.cuda.get_device_name(), or Ray's accelerator type); None where unknown."""
    return next((size * GIB for name, size in DEVICE_GIB.items() if name in device_name), None)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank at the moment of its step that needs most."""

    moment: Literal["loss", "backward pass", "update"]
    parameters: int  # this rank's float32 shards
    gradients: int  # sharded, summed over micro-batches, and on their way from one to the other
    optimizer: int
    gathered: int  # whole parameters of the blocks at work, in the type of matrix products
    activations: int
    loss: int  # logits and gradients that the loss makes
    host: int = 0  # beside those: on the CPU, with cpu_offload

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(getattr(self, name) for name in PARTS)


PARTS = ("parameters", "gradients", "optimizer", "gathered", "activations", "loss")


@dataclass(frozen=True, kw_only=True)
class StepSetup:
    """How a step is laid over the ranks, beside its forward passes."""

    run: Pass
    micro_batches: int = 1  # forward passes of a rank in a step
    shards: int = 1  # ranks that the parameters are cut over, tensor parallel ones not counted
    optimizer: str = "adamw"
    moments: Literal["float32", "bfloat16"] = "float32"
    loss_chunk_tokens: int | None = None
    cpu_offload: bool = False
    alone: bool = False  # one rank without FSDP2


@dataclass(frozen=True)
class _Sizes:
    """Parameters on one tensor parallel rank."""

    block: int
    root: int  # tables and final norm
    blocks: int
    largest: int  # tensor

    @property
    def all(self) -> int:
        return self.root + self.blocks


def _sizes(config: ModelConfig, vocab_size: int, tensor_parallel: int) -> _Sizes:
    root = -(-(parameter_count(config, vocab_size) - config.layers * block_parameters(config)) // tensor_parallel)
    block = -(-block_parameters(config) // tensor_parallel)
    rows = max(vocab_size, max(1, config.moe.experts) * config.ffn_width)
    return _Sizes(block, root, config.layers * block, rows * config.hidden // tensor_parallel)


def _loss_bytes(config: ModelConfig, vocab_size: int, setup: StepSetup) -> int:
    """What the loss makes at its widest; see loss.py."""
    run, most = setup.run, chunk_tokens(LossSettings(setup.loss_chunk_tokens), vocab_size, setup.run.device)
    if run.tokens <= most and run.tensor_parallel == 1 and run.device == "cpu":
        return 12 * run.tokens * vocab_size  # float32: log probabilities, their gradient, and that of the logits
    rows, vocab_size = chunk_length(run.tokens, most), -(-vocab_size // run.tensor_parallel)
    table, cast = vocab_size * config.hidden, 2 if run.half else 0
    by_hidden, by_weight = run.element * run.tokens * config.hidden, 4 * table
    if run.device == "cuda" and not run.autocast and run.tensor_parallel == 1:
        inside = 2 * run.element * rows * vocab_size  # logits and their gradient
    else:
        # Logits in float32 beside their gradient in its type, and what by_weight gets where no kernel adds in place.
        added = 2 * table if run.half and run.device == "cpu" else 0
        inside = (4 + cast) * rows * vocab_size + added
    return by_hidden + by_weight + inside + (cast * (table + run.tokens * config.hidden) if run.autocast else 0)


def _scratch(setup: StepSetup, sizes: _Sizes) -> int:
    """What the optimizer needs beside gradients and moments: torch's fused AdamW nothing, ours float32 copies."""
    if setup.optimizer == "muon":
        return 4 * setup.run.element * sizes.largest
    return 12 * -(-sizes.largest // setup.shards) if setup.moments == "bfloat16" else 0


def _state(config: ModelConfig, vocab_size: int, setup: StepSetup) -> int:
    """Bytes of the moments on this rank."""
    states = optimizer_state_bytes(config, vocab_size, setup.optimizer, setup.moments)
    sizes = _sizes(config, vocab_size, setup.run.tensor_parallel)
    share = sizes.all / parameter_count(config, vocab_size)
    return -(-int(states * share) // setup.shards)


def sharded_plan(config: ModelConfig, vocab_size: int, setup: StepSetup) -> MemoryPlan:
    """Of a rank of a normal run, which sums whole gradients over its micro-batches before they are sharded."""
    run, sizes = setup.run, _sizes(config, vocab_size, setup.run.tensor_parallel)
    shard = -(-4 * sizes.all // setup.shards)
    summed = 4 * sizes.all if setup.micro_batches > 1 else 0
    # Small models stay gathered; of others two blocks are, and the buffers that they arrive in.
    keeps = parameter_count(config, vocab_size) <= RESHARD_FROM_PARAMETERS
    at_work = run.element * (sizes.root + (sizes.blocks if keeps else 2 * min(2, config.layers) * sizes.block))
    table = -(-vocab_size * config.hidden // run.tensor_parallel)
    reduced = 8 * max(sizes.block, sizes.root)  # on their way into shards
    if setup.alone:
        # Autograd keeps what was cast, or joined after that; where a block is computed again, until then.
        blocks = config.layers if run.checkpointing == "none" else 1
        casts = 2 * (table + blocks * sizes.block) - blocks * joined_bytes(config, run)
        at_work, reduced = casts if run.half else 0, 0
    held = dict(parameters=shard, optimizer=_state(config, vocab_size, setup))
    plans = [
        MemoryPlan(
            "loss", gradients=summed, gathered=at_work, activations=activation_bytes(config, run),
            loss=_loss_bytes(config, vocab_size, setup), **held,
        ),
        MemoryPlan(
            "backward pass", gradients=summed + run.element * sizes.block, gathered=at_work,
            activations=backward_bytes(config, run), loss=run.element * table, **held,
        ),
        MemoryPlan(
            "update", gradients=shard + max(reduced, _scratch(setup, sizes)),
            gathered=min(at_work, run.element * sizes.root), activations=0, loss=0, **held,
        ),
    ]  # fmt: skip
    if setup.cpu_offload:
        plans = [_offloaded(plan, shard) for plan in plans]
    return max(plans, key=lambda plan: plan.total)


def _offloaded(plan: MemoryPlan, shard: int) -> MemoryPlan:
    """Shards of parameters, gradients and moments live on the host."""
    gradients = plan.gradients - (shard if plan.moment == "update" else 0)
    return replace(plan, parameters=0, optimizer=0, gradients=gradients, host=2 * shard + plan.optimizer)


def exact_plan(config: ModelConfig, vocab_size: int, setup: StepSetup) -> MemoryPlan:
    """In exact mode: a replica, float32 gradients and the int64 sum over slot blocks, whole on every rank."""
    run, sizes = setup.run, _sizes(config, vocab_size, 1)
    cast = 2 * sizes.all if run.half else 0
    states = optimizer_state_bytes(config, vocab_size, setup.optimizer, setup.moments)
    held = dict(parameters=4 * sizes.all, optimizer=states)
    summed = (8 + (4 if setup.micro_batches > 1 else 0)) * sizes.all
    largest = 16 * sizes.largest  # converted as a whole
    plans = [
        MemoryPlan(
            "loss", gradients=summed, gathered=cast, activations=activation_bytes(config, run),
            loss=_loss_bytes(config, vocab_size, setup), **held,
        ),
        MemoryPlan(
            "backward pass", gradients=summed + 4 * sizes.block, gathered=cast,
            activations=backward_bytes(config, run), loss=4 * vocab_size * config.hidden, **held,
        ),
        MemoryPlan("update", gradients=12 * sizes.all + largest, gathered=0, activations=0, loss=0, **held),
    ]  # fmt: skip
    return max(plans, key=lambda plan: plan.total)


def setup_of(config: Config, workers: int, on_gpu: bool) -> StepSetup:
    """How so many workers run the config, at its longest rows; precision auto is bfloat16 on GPUs."""
    train, data = config.train, config.data
    half = train.precision in ("bfloat16", "float16") or (train.precision == "auto" and on_gpu)
    longest = max(data.seq_len, *(segment.seq_len or 0 for segment in data.curriculum), 0)
    rows = train.micro_batch_sequences or data.slot_sequences
    teams = workers // train.workers_per_stream  # each with slot blocks of its own
    passes = data.slot_sequences // rows
    return StepSetup(
        run=Pass(
            rows=max(1, rows * data.seq_len // longest),
            seq_len=longest,
            half=half,
            autocast=train.exact,
            device="cuda" if on_gpu else "cpu",
            documents=config.model.document_mask,
            checkpointing=train.activation_checkpointing,
            tensor_parallel=train.tensor_parallel,
            context_parallel=train.context_parallel,
        ),
        # In exact mode gradients are those of one slot block at a time.
        micro_batches=passes if train.exact else passes * -(-config.slot_blocks_per_step // teams),
        shards=(train.shard_workers or workers) // train.tensor_parallel,
        optimizer=train.optimizer,
        moments=train.optimizer_state,
        loss_chunk_tokens=train.loss_chunk_tokens,
        cpu_offload=train.cpu_offload,
        alone=is_alone(train, workers),
    )


def memory_plan(config: Config, vocab_size: int, workers: int, on_gpu: bool) -> MemoryPlan:
    """Of each of so many workers."""
    plan = exact_plan if config.train.exact else sharded_plan
    return plan(config.model, vocab_size, setup_of(config, workers, on_gpu))


def _can_split(model: ModelConfig, parts: int) -> bool:
    return all(width % parts == 0 for width in (model.heads, model.num_kv_heads, model.ffn_width))


def remedies(config: Config, workers: int) -> Iterator[tuple[str, Config, int]]:
    """What makes a step smaller, cheapest first: (words, the config with it, its workers)."""
    train, rows = config.train, config.train.micro_batch_sequences or config.data.slot_sequences
    order = ("none", "selective", "full")
    more: list[dict[str, Any]] = [
        {"activation_checkpointing": kind} for kind in order[order.index(train.activation_checkpointing) + 1 :]
    ]
    fewer = [part for part in range(1, rows) if config.data.slot_sequences % part == 0]
    more += [{"micro_batch_sequences": part} for part in sorted({*fewer[-1:], *fewer[:1]}, reverse=True)]
    if not train.exact:
        more += [{"num_workers": 2 * workers}] if train.shard_workers is None else []
        split = 2 * train.tensor_parallel
        more += [{"tensor_parallel": split}] if _can_split(config.model, split) else []
    more += [{"optimizer_state": "bfloat16"}] if train.optimizer_state == "float32" else []
    for change in more:
        with suppress(ConfigError):  # the model or the batch cannot be split so
            other = replace(config, train=replace(train, **change))
            ((field, value),) = change.items()
            yield f"train.{field}={value}", other, change.get("num_workers", workers)


def check_memory(config: Config, vocab_size: int, workers: int, on_gpu: bool, there: float, where: str) -> None:
    """Raise ConfigError, with what each remedy would need, when a worker's step does not fit into so many bytes."""
    needs = memory_plan(config, vocab_size, workers, on_gpu).total
    if needs <= USABLE * there:
        return
    others = [
        f"{words} ({memory_plan(other, vocab_size, count, on_gpu).total / GIB:.2f} GiB)"
        for words, other, count in remedies(config, workers)
    ]
    raise ConfigError(
        f"a step needs about {needs / GIB:.2f} GiB on each of {workers} workers, and {where} has {there / GIB:.2f} "
        f"GiB, of which {USABLE:.0%} can be used: {', or '.join([*others, 'a smaller model'])}"
    )


def plan_table(plan: MemoryPlan) -> list[tuple[str, str]]:
    """(part, its size in words), the total last; parts that need nothing are left out."""
    rows = [(f"- {name}", f"{getattr(plan, name) / GIB:8.3f} GiB") for name in PARTS if getattr(plan, name)]
    return [*rows, *([("- on the host", f"{plan.host / GIB:8.3f} GiB")] if plan.host else [])]
