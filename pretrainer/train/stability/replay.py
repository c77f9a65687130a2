"""Steps of a run once more, from the checkpoint before them, in one process; torch alone.

A step is a function of the checkpoint, its slot blocks and the config. So a loss that comes out again was the batch's
or the config's doing, and one that does not was not computed right, then or now.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pretrainer.config import Config
from pretrainer.model.ring import Ring
from pretrainer.schema import Batch, MaskVocabulary
from pretrainer.train.checkpoints.checkpoint import load_sharded
from pretrainer.train.exact import make_deterministic
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.optim.schedule import learning_rate
from pretrainer.train.readback import StepResult
from pretrainer.train.sharding.parallel import build_model, precision_for
from pretrainer.train.spec import TrainState
from pretrainer.train.stability.healing import Healer
from pretrainer.train.stepper import Stepper, prepare
from pretrainer.train.telemetry.auditlog import Line

# Relative differences of loss and gradient norm that another number of workers, or another GPU, makes by rounding.
ROUNDING = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (2e-2, 1e-1), torch.float16: (1e-2, 5e-2)}

Blocks = Callable[[int], Sequence[tuple[int, Batch]]]
"""step -> its slot blocks with their global numbers."""


@dataclass(frozen=True)
class Compared:
    """A step as it was logged and as it came out again."""

    line: Line
    result: StepResult
    tolerances: tuple[float, float]  # relative, of loss and gradient norm

    @property
    def is_same(self) -> bool:
        logged = (self.line.loss, self.line.grad_norm)
        found = (self.result.loss, self.result.grad_norm)
        return all(close(a, b, limit) for a, b, limit in zip(logged, found, self.tolerances, strict=True))


def close(logged: float | None, found: float, limit: float) -> bool:
    """Whether a number came out again; None was not finite."""
    if logged is None or not math.isfinite(found):
        return logged is None and not math.isfinite(found)
    return abs(logged - found) <= limit * max(abs(logged), abs(found), 1e-12)


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """A process group of this process, which sharding asks for; none is left behind."""
    if dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_one_worker(config: Config) -> Config:
    """The same run without a split: what it computes does not change."""
    train = dataclasses.replace(
        config.train, num_workers=1, shard_workers=None, tensor_parallel=1, context_parallel=1, async_checkpoints=False
    )
    return dataclasses.replace(config, train=train)


def tolerances(config: Config, device: torch.device) -> tuple[float, float]:
    """Relative, of loss and gradient norm; in exact mode none are needed on the same kind of hardware."""
    return (0.0, 0.0) if config.train.exact else ROUNDING[precision_for(config.train, device)]


def replay(
    config: Config,
    vocab_size: int,
    mask_vocabulary: MaskVocabulary | None,
    checkpoint: Path,
    blocks: Blocks,
    healer: Healer,
    last_step: int,
    device: torch.device,
) -> Iterator[tuple[int, StepResult]]:
    """(step, what came out) of every step from the checkpoint's up to last_step, which is run even if it was left out.

    healer: what was decided, and is obeyed. Call it inside `alone`.
    """
    config = on_one_worker(config)
    if config.train.exact:
        make_deterministic(config.train.threads_per_worker or 1)
    model = build_model(config.model, vocab_size, config.train, device)
    optimizer = build_optimizer(model, config.train)
    state = TrainState(**load_sharded(model, optimizer, checkpoint))
    scale = None if state.loss_scale is None else LossScale(device, state.loss_scale, state.good_steps)
    stepper, ring = Stepper(config, model, optimizer, scale, None), Ring.of(None)
    for step in range(state.step, last_step + 1):
        left_out = healer.left_out(step) if step < last_step else None
        prepared = [
            prepare(config, mask_vocabulary, device, ring, step, number, batch) for number, batch in blocks(step)
        ]
        rate = learning_rate(config.train, step, config.total_steps) * healer.lr_factor(step)
        clip_norm = config.train.clip_norm * healer.clip_factor(step)
        targets = sum(one.targets for one in prepared)
        yield step, left_out or stepper.run(prepared, len(prepared), targets, rate, clip_norm)
