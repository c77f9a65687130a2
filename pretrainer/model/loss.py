"""Cross-entropy of the next token, whole or in chunks, with PaLM's z-loss as an option.

Float32 logits of N tokens take 4 N V bytes, and their gradient as much again: 4.3 GB for 8,192 tokens of a vocabulary
of 131,072. In chunks they exist for a few tokens at a time, because the gradients of the hidden states and of the
output weight are computed beside the loss, in the forward pass, and only scaled in the backward pass (as in Liger, Hsu
et al. 2024, arXiv:2410.10989). The work is the same; nothing is computed twice. In its place there is a float32
gradient of the output weight, 4 V H bytes, which the sum over the chunks is kept in.

Under tensor parallelism the output weight is a DTensor whose rows are split over ranks: each has the logits of its own
part of the vocabulary, and only log Z and the target's logit of each token are exchanged (Shoeybi et al. 2019,
arXiv:1909.08053).

Shapes: N tokens, H hidden, V vocabulary (of this rank), n tokens of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

IGNORE = -100  # target that carries no loss; cross_entropy's own default
CHUNK_BYTES = 2**28  # float32 logits that may exist at a time: 8,192 tokens of a vocabulary of 8,192, 512 of 131,072


@dataclass(frozen=True)
class LossSettings:
    chunk_tokens: int | None = None  # tokens whose logits exist at a time; None: as many as CHUNK_BYTES hold
    z_loss: float = 0.0  # PaLM's factor of log(Z)^2, 1e-4 there; 0 leaves it out


class Loss(NamedTuple):
    """Float32 scalars, summed over the valid targets; 0 with a zero gradient where nothing is live."""

    objective: Tensor  # what is minimised: nll, and the z-loss if there is one
    nll: Tensor  # negative log-likelihood in nats; carries no gradient


class Part(NamedTuple):
    """The rows of the output weight that this rank has."""

    group: dist.ProcessGroup  # the ranks that have them all together
    first: int

    @classmethod
    def of(cls, weight: Tensor) -> Part | None:
        """None where they are all here."""
        if not isinstance(weight, DTensor):
            return None
        mesh = weight.device_mesh
        each = -(-weight.shape[0] // mesh.size())  # as torch.chunk splits them
        return cls(mesh.get_group(), min(each * mesh.get_local_rank(), weight.shape[0]))

    def combine(self, log_z: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        """(log Z, the target's logit) [n] over the whole vocabulary from those of each part; alike on all ranks."""
        mine = torch.stack((log_z, logit))
        each = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(each, mine, group=self.group)
        parts = torch.stack(each)
        return parts[:, 0].logsumexp(0), parts[:, 1].sum(0)


def chunk_tokens(settings: LossSettings, vocab_size: int) -> int:
    """Tokens whose logits may exist at a time; more of them are a case for `chunked_loss`."""
    return settings.chunk_tokens or max(1, CHUNK_BYTES // (4 * vocab_size))


def whole_loss(logits: Tensor, targets: Tensor, live: bool = True, z_loss: float = 0.0) -> Loss:
    """Loss of logits [..., V] that exist already, for targets [...] int64. z-loss: PaLM, arXiv:2204.02311, section 5.
    """
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    # `where`, not a product: 0 * NaN is NaN.
    keep = (targets != IGNORE) & live
    total = torch.where(keep, nll, 0.0).sum()
    if not z_loss:
        return Loss(total, total.detach())
    return Loss(total + z_loss * torch.where(keep, logits.logsumexp(-1).square(), 0.0).sum(), total.detach())


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor, live: bool, settings: LossSettings) -> Loss:
    """`whole_loss` of hidden [..., H] @ weight [V, H]^T for targets [...], of which no more than a chunk ever exists.

    Give it to the model's forward pass as its `output`: under FSDP2 the weight is whole during that alone.

    Matrix products have the type of hidden (or of autocast), softmax and sums are float32, and so is the sum of the
    weight's gradient over the chunks. Chunks are taken in their order, so the result is a function of the inputs. A
    target that is IGNOREd, and everything when not live, has no part in any product: a NaN there goes nowhere.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    keep, chunk = (targets != IGNORE) & live, chunk_tokens(settings, weight.shape[0])
    part = Part.of(weight)
    rows = weight.to_local() if isinstance(weight, DTensor) else weight
    with torch.autocast(kind, enabled=False):
        return Loss(*_ChunkedLoss.apply(
            hidden.to(dtype), rows.to(dtype), targets, keep, live, chunk, settings.z_loss, torch.is_grad_enabled(), part
        ))  # fmt: skip


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor, live: bool, chunk: int, z_loss: float,
        with_gradient: bool, part: Part | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        objective, nll = torch.zeros((), device=hidden.device), torch.zeros((), device=hidden.device)
        by_hidden = torch.zeros_like(hidden) if with_gradient else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradient else None
        for first in range(0, hidden.shape[0] if live else 0, chunk):
            cut = slice(first, first + chunk)
            inside = keep[cut, None]
            h = torch.where(inside, hidden[cut], 0.0)
            logits = (h @ weight.T).float()  # [n, V]
            chunk_nll, log_z, target, here = _chunk_loss(logits, targets[cut], keep[cut], part)
            nll += chunk_nll
            objective += chunk_nll if not z_loss else chunk_nll + z_loss * log_z.square().sum()
            if by_hidden is not None and by_weight is not None:
                gradient = _logit_gradient(logits, log_z, target, here, inside, z_loss).to(hidden.dtype)
                by_hidden[cut] = torch.where(inside, gradient @ weight, 0.0)
                by_weight += gradient.T @ h
                del gradient
            del logits  # else they stand beside those of the next chunk
        if part is not None and by_hidden is not None:
            dist.all_reduce(by_hidden, group=part.group)
        ctx.gradients, ctx.dtype = (by_hidden, by_weight), weight.dtype
        ctx.mark_non_differentiable(nll)
        return objective, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_objective: Tensor, _by_nll: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients are scaled in place: backward runs once"
        (by_hidden, by_weight), ctx.gradients = ctx.gradients, None
        return by_hidden.mul_(by_objective), by_weight.mul_(by_objective).to(ctx.dtype), *[None] * 7


def _chunk_loss(
    logits: Tensor, targets: Tensor, keep: Tensor, part: Part | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(nll summed over kept tokens, log Z [n] or 0 where not kept, row of the target [n, 1], 1 where it is here)."""
    row = torch.where(keep, targets, 0) - (0 if part is None else part.first)
    here = (row >= 0) & (row < logits.shape[-1])
    row = torch.where(here, row, 0)[:, None]
    log_z, logit = logits.logsumexp(-1), torch.where(here, logits.gather(-1, row)[:, 0], 0.0)
    if part is not None:
        log_z, logit = part.combine(log_z, logit)
    log_z = torch.where(keep, log_z, 0.0)
    return torch.where(keep, log_z - logit, 0.0).sum(), log_z, row, here[:, None]


def _logit_gradient(
    logits: Tensor, log_z: Tensor, target: Tensor, here: Tensor, keep: Tensor, z_loss: float
) -> Tensor:
    """softmax (1 + 2 z log Z) - one-hot, 0 where not kept; [n, V] float32, in the place of the logits."""
    probabilities = logits.sub_(log_z[:, None]).exp_()
    if z_loss:
        probabilities *= 1 + 2 * z_loss * log_z[:, None]
    probabilities.scatter_(-1, target, probabilities.gather(-1, target) - here.to(probabilities.dtype))
    return probabilities.masked_fill_(~keep, 0.0)
