"""How many GPUs, and how a step is laid over them: the simplest arrangement that fits, and the fewest in time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pretrainer.config import ModelConfig
from pretrainer.model.activations import Checkpointing
from pretrainer.model.flops import GIB
from pretrainer.model.memory_plan import USABLE
from pretrainer.model.presets import parameter_count
from pretrainer.plan.budget import Ask
from pretrainer.plan.hardware import Gpu, cost
from pretrainer.plan.memory import Arrangement, memory_of
from pretrainer.plan.request import Impossible, Request
from pretrainer.plan.units import duration, short

MICRO_TOKENS = 16_384
"""Tokens of a forward pass that fill a GPU; a slot block has at most so many."""
SHARD_GPUS = 512
"""Larger clusters hold copies of the parameters (HSDP): gathering them from more GPUs takes too long."""
MOST_GPUS = 2**17
DAYS = 30.0
"""How long a run may take where nobody says how many days or GPUs it has."""
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What GPUs are needed for."""

    model: ModelConfig
    """Resolved."""
    vocab_size: int
    seq_len: int
    batch_tokens: float
    flops: float
    """Of the whole run."""

    @property
    def rows(self) -> int:
        """Sequences of a batch."""
        return max(1, round(self.batch_tokens / self.seq_len))

    def bytes(self, run: Arrangement) -> int:
        """On each GPU."""
        return memory_of(self.model, self.vocab_size, run).total

    def days(self, gpu: Gpu, gpus: int) -> float:
        return cost(self.flops, gpu, gpus).days


def slots(rows: int, streams: int, seq_len: int) -> tuple[int, int]:
    """(rows of a slot block, slot blocks of a step) for about so many rows in a step; every stream has equally many."""
    wanted = round(math.log2(max(1.0, rows / streams)))
    block = 1 << min(wanted, max(1, MICRO_TOKENS // seq_len).bit_length() - 1)
    return block, streams * max(1, round(rows / (block * streams)))


def parallel_degrees(model: ModelConfig, gpu: Gpu, gpus: int) -> Iterator[int]:
    """Powers of two that tensor parallelism can have inside a node."""
    degree = 1
    while degree <= min(gpus, gpu.gpus_per_node):
        if all(width % degree == 0 for width in (gpus, model.heads, model.num_kv_heads, model.ffn_width)):
            yield degree
        degree *= 2


def arrangements(load: Load, gpu: Gpu, gpus: int) -> Iterator[Arrangement]:
    """All that can give every GPU a row, the simplest and fastest first."""
    for degree in parallel_degrees(load.model, gpu, gpus):
        if gpus // degree > load.rows:
            continue
        block, blocks = slots(load.rows, gpus // degree, load.seq_len)
        for shards in (SHARD_GPUS, None) if gpus > SHARD_GPUS and gpus % SHARD_GPUS == 0 else (None,):
            for checkpointing in CHECKPOINTING:
                for micro in dict.fromkeys((block, 1)):
                    yield Arrangement(
                        gpus=gpus,
                        seq_len=load.seq_len,
                        slot_sequences=block,
                        slot_blocks=blocks,
                        micro_sequences=micro,
                        tensor_parallel=degree,
                        shard_gpus=shards,
                        checkpointing=checkpointing,
                    )


def fits(load: Load, gpu: Gpu, run: Arrangement) -> bool:
    return load.bytes(run) <= USABLE * gpu.memory_gib * GIB


def arrange(load: Load, gpu: Gpu, gpus: int) -> Arrangement | None:
    """The simplest arrangement on so many GPUs; None where none fits, or where the batch has no row for each."""
    return next((run for run in arrangements(load, gpu, gpus) if fits(load, gpu, run)), None)


def possible(load: Load, gpu: Gpu) -> Iterator[Arrangement]:
    """One arrangement for each power of two that is possible, ascending."""
    gpus = 1
    while gpus <= min(MOST_GPUS, gpu.gpus_per_node * load.rows):
        run = arrange(load, gpu, gpus)
        if run is not None:
            yield run
        gpus *= 2


def choose_run(request: Request, gpu: Gpu, load: Load) -> Arrangement:
    """The GPUs that are asked for, or the fewest that are done in time. Raises Impossible."""
    if request.gpus is not None:
        run = arrange(load, gpu, request.gpus)
        if run is None:
            raise _wrong_gpus(request, request.gpus, gpu, load)
        return run
    runs = list(possible(load, gpu))
    if not runs:
        raise _too_large(request, gpu.gpus_per_node, gpu, load)
    days = request.days or DAYS
    run = next((run for run in runs if load.days(gpu, run.gpus) <= days), None)
    if run is None and request.days is not None:
        raise _too_late(request, runs[-1].gpus, gpu, load)
    return run or runs[-1]


def _too_late(request: Request, fastest: int, gpu: Gpu, load: Load) -> Impossible:
    return Impossible(
        f"--days={request.days:g} is not possible: a batch of {short(load.batch_tokens)} tokens feeds at most "
        f"{fastest:,} {gpu.name}, which take {duration(load.days(gpu, fastest))}",
        [replace(request, gpus=fastest, days=None)],
    )


def _wrong_gpus(request: Request, gpus: int, gpu: Gpu, load: Load) -> Impossible:
    """Too few for the model, or too many for the batch."""
    counts = [run.gpus for run in possible(load, gpu)]
    if not counts or next(arrangements(load, gpu, gpus), None) is not None:
        return _too_large(request, gpus, gpu, load)
    below = max((count for count in counts if count <= gpus), default=counts[0])
    return Impossible(
        f"--gpus={gpus} is not possible: a batch of {short(load.batch_tokens)} tokens has {load.rows:,} rows of "
        f"{load.seq_len:,}, and every GPU needs one of its own",
        [replace(request, gpus=below)],
    )


def _too_large(request: Request, gpus: int, gpu: Gpu, load: Load) -> Impossible:
    """The model needs more memory than the GPUs have, however it is sharded."""
    roomy = replace(load, batch_tokens=max(load.batch_tokens, gpus * load.seq_len))
    needs = min(load.bytes(run) for run in arrangements(roomy, gpu, gpus))
    parameters = parameter_count(load.model, load.vocab_size)
    return Impossible(
        f"{short(parameters)} parameters do not fit into {gpus:,} {gpu.name}: the best sharding needs "
        f"{needs / GIB:,.1f} GiB on each, and of their {gpu.memory_gib:g} GiB {USABLE:.0%} can be used",
        [*_with_memory(request, gpus, gpu, load), *_with_fewer_parameters(request, parameters)],
    )


def _with_memory(request: Request, gpus: int, gpu: Gpu, load: Load) -> Iterator[Request]:
    """More of the same GPU, then another one with more memory."""
    more = next((run.gpus for run in possible(load, gpu) if run.gpus > gpus), None)
    if more is not None:
        yield replace(request, gpus=more)
    larger = [other for other in request.prices.gpus.values() if other.memory_gib > gpu.memory_gib]
    for other in sorted(larger, key=lambda one: one.memory_gib):
        least = next((run.gpus for run in possible(load, other)), None)
        if least is not None:
            yield replace(request, gpu=other.name, gpus=max(least, request.gpus or 1), tflops=None)


def _with_fewer_parameters(request: Request, parameters: float) -> Iterator[Request]:
    """Smaller models on the same GPUs."""
    while parameters > 1e6:
        parameters /= 2
        yield replace(request, ask=Ask(parameters=parameters, law=request.ask.law))
