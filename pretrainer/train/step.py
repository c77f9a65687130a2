"""One optimizer step, torch alone: forward and backward over this rank's micro-batches, check, clip, update.

A step trains the same global batch at every world size W: losses are summed over all valid targets of all ranks and
divided once by their global number, gradients are summed over ranks, and ranks with fewer micro-batches run dummy
ones.

Shapes: b rows of one micro-batch, S tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pretrainer.model.balance import GroupCounts
from pretrainer.model.loss import IGNORE, Loss, LossSettings, chunk_tokens, chunked_loss, whole_loss
from pretrainer.model.ring import Ring
from pretrainer.model.transformer import Transformer, logits
from pretrainer.train.optim.fused import FusedAdamW
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.readback import StepResult
from pretrainer.train.sharding.experts import (
    auxiliary_loss,
    balance_experts,
    needs_slot_block_counts,
    routed_counts,
    take_expert_tokens,
)
from pretrainer.train.spikes import Detector, plain_verdict

__all__ = [
    "IGNORE", "MicroBatch", "Observer", "StepResult", "accumulate_gradients", "accumulate_runs", "all_reduce_sum",
    "apply_gradient", "batch_loss", "dropout_seed", "gradient_norm", "nll_sum", "seed_generators", "token_group",
    "train_step",
]  # fmt: skip


CLIP_EPSILON = 1e-6  # that of torch's clip_grads_with_norm_


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass, on the model's device."""

    inputs: Tensor  # [b, S] int64
    targets: Tensor  # [b, S] int64, IGNORE where nothing is predicted
    positions: Tensor  # [b, S] int64, counted from the start of each document
    document_ids: Tensor | None  # [b, S] int64, or None where every row may attend to all of itself
    seed: int = 0  # of dropout
    slot_block: int = 0  # its number in the run; a slot block's micro-batches follow each other on one rank
    ring: Ring | None = None  # then the others are this rank's part of the rows, but document_ids are whole


def dropout_seed(run_seed: int, step: int, slot_block: int, micro_batch: int) -> int:
    """Seed of one forward pass; it names the data, never the rank, so dropout does not depend on the world size."""
    key = f"{run_seed}/dropout/{step}/{slot_block}/{micro_batch}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def seed_generators(batch: MicroBatch) -> None:
    """Let the coming forward pass draw by the batch's seed.

    `torch.manual_seed` tells every kind of device, and where one was never used it keeps the stack of the caller for
    later: 0.1 to 0.3 ms a call, more than a layer of a small model takes.
    """
    torch.default_generator.manual_seed(batch.seed)
    if batch.inputs.is_cuda:
        torch.cuda.manual_seed(batch.seed)


def token_group(model: nn.Module) -> dist.ProcessGroup | None:
    """The ranks whose tokens differ, for sums over tokens; None for all ranks (see layout.py)."""
    return getattr(model, "token_group", None)


def all_reduce_sum(
    values: Sequence[float], device: torch.device | str, group: dist.ProcessGroup | None = None
) -> list[float]:
    """Sums over the ranks (of the group) as float64, exact for integers up to 2**53; without a process group the
    values themselves.

    With device="cpu" the ranks' hosts agree among themselves and no GPU is waited for.
    """
    return sum_over_ranks(torch.tensor(values, dtype=torch.float64, device=device), group).tolist()


def sum_over_ranks(total: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The tensor, summed over the ranks in place; it stays on its device, and the host does not wait."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total, group=group)
    return total


def batch_loss(model: nn.Module, batch: MicroBatch, live: bool = True, seed: Tensor | None = None) -> Loss:
    """Loss of a micro-batch, summed over its valid targets; in chunks where its logits are too many to exist at once.

    The model's attribute `loss_settings` says how, where it has one (see parallel.py). seed: the gradient that the
    objective is going to get, where float16 needs to know (see `chunked_loss`).
    """
    settings = getattr(model, "loss_settings", LossSettings())
    arguments = batch.inputs, batch.positions, batch.document_ids
    if not isinstance(model, Transformer):
        return whole_loss(model(*arguments), batch.targets, live, settings.z_loss)

    def loss(hidden: Tensor, weight: Tensor) -> Any:
        most = chunk_tokens(settings, model.vocab_size, hidden.device.type)
        if isinstance(weight, DTensor) or hidden.is_cuda or batch.targets.numel() > most:
            return chunked_loss(hidden, weight, batch.targets, live, settings, seed)
        return whole_loss(logits(hidden, weight), batch.targets, live, settings.z_loss)

    return model(*arguments, None, loss, batch.ring)


def nll_sum(model: nn.Module, batch: MicroBatch, live: bool = True) -> Tensor:
    """Negative log-likelihood summed over the valid targets, float32 scalar without a gradient; 0 when not live."""
    return batch_loss(model, batch, live).nll


def _sync_on(model: nn.Module, is_last: bool) -> None:
    # Gradients of earlier micro-batches add up unsharded; one reduce-scatter per step instead of one per micro-batch.
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        model.set_is_last_backward(is_last)


def _states(hidden: Tensor, output_weight: Tensor) -> Tensor:
    return hidden


@torch.no_grad()
def _slot_block_counts(model: nn.Module, runs: Sequence[tuple[MicroBatch, bool]]) -> list[GroupCounts | None]:
    """For each forward pass the choices of experts in its whole slot block, None where it is that or none are needed.

    A balance loss over a slot block that is split needs all its counts before the first backward pass: one more
    forward pass, without gradient. Slot blocks have equally many micro-batches on all ranks, so all ranks agree on it.
    """
    numbers = [batch.slot_block for batch, live in runs if live]
    if not needs_slot_block_counts(model) or len(set(numbers)) == len(numbers):
        return [None] * len(runs)
    chosen: dict[int, Tensor] = {}
    tokens: dict[int, Tensor] = {}
    for batch, live in runs:  # dummies too: sharded models gather their parameters in step
        seed_generators(batch)
        model(batch.inputs, batch.positions, batch.document_ids, None, _states, batch.ring)
        counts, number = routed_counts(model, (batch.targets != IGNORE) & live, batch.ring), batch.slot_block
        chosen[number] = chosen.get(number, 0) + counts.chosen
        tokens[number] = tokens.get(number, 0) + counts.tokens
    return [GroupCounts(chosen[batch.slot_block], tokens[batch.slot_block]) for batch, _live in runs]


class Observer(Protocol):
    """Sees what a step computes, on the device; it must not make the host wait (monitor.py)."""

    def passed(self, batch: MicroBatch, nll: Tensor) -> None:
        """A forward and backward pass is done, and no dummy."""

    def gradient(self, model: nn.Module) -> None:
        """The gradient of all ranks is there, not yet clipped."""


def accumulate_gradients(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    dummies: int,
    denominator: float,
    scale: Tensor | None = None,
    observer: Observer | None = None,
) -> Tensor:
    """Forward and backward over all micro-batches and `dummies` masked repeats of the last; this rank's nll sum.

    With a mixture of experts the auxiliary losses are in the gradient, not in the sum. scale: a factor of the gradient
    beside 1 / denominator.
    """
    assert batches, "a rank without a micro-batch has no valid row for its dummies: W must not exceed G"
    runs = [(batch, True) for batch in batches] + [(batches[-1], False)] * dummies
    return accumulate_runs(model, runs, denominator, scale, observer)


def accumulate_runs(
    model: nn.Module,
    runs: Sequence[tuple[MicroBatch, bool]],
    denominator: float,
    scale: Tensor | None = None,
    observer: Observer | None = None,
) -> Tensor:
    """The same for passes of which each says whether it counts."""
    total = torch.zeros((), dtype=torch.float64, device=runs[0][0].inputs.device)
    seed = None if scale is None else scale / denominator
    for index, ((batch, live), counts) in enumerate(zip(runs, _slot_block_counts(model, runs), strict=True)):
        _sync_on(model, index == len(runs) - 1)
        seed_generators(batch)
        loss = batch_loss(model, batch, live, seed)
        auxiliary = auxiliary_loss(model, (batch.targets != IGNORE) & live, counts, batch.ring)
        objective = loss.objective if auxiliary is None else loss.objective + auxiliary
        (objective / denominator if seed is None else objective * seed).backward()
        total += loss.nll
        if observer is not None and live:
            observer.passed(batch, loss.nll)
    return total


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradient over all ranks' shards, a plain scalar; NaN or Inf when any element is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and not any(isinstance(gradient, DTensor) for gradient in gradients):
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    dummies: int,
    global_targets: int,
    learning_rate: float,
    clip_norm: float,
    loss_scale: LossScale | None = None,
    detector: Detector | None = None,
    observer: Observer | None = None,
) -> StepResult:
    """Train on one global batch; every rank calls it with its own micro-batches.

    dummies: how many micro-batches more the busiest rank has. global_targets: valid targets of all ranks together;
    loss and gradient are divided by max(1, global_targets). When loss or gradient norm is not finite, or the detector
    vetoes the step, the weights and the optimizer stay untouched on all ranks alike and the result says applied=False.
    Clipping: Pascanu et al. 2013, arXiv:1211.5063. loss_scale: for float16. The host looks at no number of the device,
    so on a GPU the step is only begun when this returns.
    """
    denominator = float(max(1, global_targets))
    scale = None if loss_scale is None else loss_scale.scale
    local = accumulate_gradients(model, batches, dummies, denominator, scale, observer)
    loss = sum_over_ranks(local, token_group(model)) / denominator
    return apply_gradient(model, optimizer, loss, learning_rate, clip_norm, loss_scale, detector, observer)


def apply_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    learning_rate: float,
    clip_norm: float,
    loss_scale: LossScale | None = None,
    detector: Detector | None = None,
    observer: Observer | None = None,
) -> StepResult:
    """Clip the model's gradient and update the weights, if loss and gradient are finite and the detector lets them;
    clears the gradient.

    loss: a float64 scalar, the same on every rank. Every rank calls it.
    """
    expert_tokens = take_expert_tokens(model)
    if loss_scale is not None:
        loss_scale.unscale(model)
    # As the optimizer has them: walking through the modules takes as long as clipping a small model.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = gradient_norm(parameters).to(loss.device)  # the gradient may be offloaded
    if observer is not None:
        observer.gradient(model)
    verdict = (plain_verdict if detector is None else detector.judge)(loss, norm)
    applied = verdict.applied
    _update(optimizer, parameters, applied, norm, clip_norm, learning_rate)
    optimizer.zero_grad(set_to_none=True)
    balance_experts(model, expert_tokens, applied)
    if loss_scale is not None:
        verdict = loss_scale.explain(verdict)
        loss_scale.update(verdict.finite)
    return StepResult(loss, norm, verdict, expert_tokens)


def _update(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], applied: Tensor, norm: Tensor,
    clip_norm: float, learning_rate: float,
) -> None:  # fmt: skip
    """Clip and move the weights, or leave weights and optimizer as they are to the bit; decided on the device."""
    device = parameters[0].device
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    # torch.amp.GradScaler tells a fused optimizer in this way; ours listen to it too.
    told = {"found_inf": (~applied).float().to(device)}
    if isinstance(optimizer, FusedAdamW):  # whose kernel reads the gradient anyway
        told["grad_scale"] = ((norm + CLIP_EPSILON) / clip_norm).clamp(min=1.0).to(device)
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    vars(optimizer).update(told)
    optimizer.step()
    for name in told:
        delattr(optimizer, name)
