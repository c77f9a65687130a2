"""Cross-entropy of the next token, whole or in chunks, with PaLM's z-loss as an option.

Float32 logits of N tokens take 4 N V bytes, and their gradient as much again: 4.3 GB for 8,192 tokens of a vocabulary
of 131,072. In chunks they exist for a few tokens at a time, because the gradients of the hidden states and of the
output weight are computed beside the loss, in the forward pass, and only scaled in the backward pass (as in Liger, Hsu
et al. 2024, arXiv:2410.10989). The work is the same; nothing is computed twice. In its place there is a float32
gradient of the output weight, 4 V H bytes, which the sum over the chunks is kept in.

On CUDA what stands between the products of a chunk is compiled into two passes over its logits, and float32 ones never
exist: they are read, and their gradient written, in the type of the products. Not so under
`torch.use_deterministic_algorithms`: a compiled reduction may be tuned on the spot, and then its order is not ours.

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

from pretrainer.model.compiled import for_device

IGNORE = -100  # target that carries no loss; cross_entropy's own default
# Float32 logits that may exist at a time, by kind of device: on the CPU 8,192 tokens of a vocabulary of 8,192, 512 of
# 131,072. A chunk reads and writes the output weight's gradient once, so on GPUs, which have the memory, it is longer.
CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}


@dataclass(frozen=True)
class LossSettings:
    chunk_tokens: int | None = None  # most tokens whose logits exist at a time; None: as many as CHUNK_BYTES hold
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


def chunk_tokens(settings: LossSettings, vocab_size: int, device_type: str) -> int:
    """Tokens whose logits may exist at a time; more of them are a case for `chunked_loss`."""
    return settings.chunk_tokens or max(1, CHUNK_BYTES[device_type] // (4 * vocab_size))


def chunk_length(tokens: int, most: int) -> int:
    """Tokens of a chunk: a power of two of them hold all, so that rows of the usual lengths fall into equal ones and
    nothing is compiled twice."""
    pieces = 1 << (-(-tokens // most) - 1).bit_length()
    return max(1, -(-tokens // pieces))


def is_fused(hidden: Tensor) -> bool:
    """Whether what stands between a chunk's products is compiled."""
    return hidden.is_cuda and not torch.are_deterministic_algorithms_enabled()


def whole_loss(logits: Tensor, targets: Tensor, live: bool = True, z_loss: float = 0.0) -> Loss:
    """Loss of logits [..., V] that exist already, for targets [...] int64. z-loss: PaLM, arXiv:2204.02311, section 5.
    """
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()
    targets = targets if live else torch.full_like(targets, IGNORE)
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    if not z_loss:
        return Loss(total, total.detach())
    # `where`, not a product: 0 * NaN is NaN.
    squares = torch.where(targets != IGNORE, logits.logsumexp(-1).square(), 0.0)
    return Loss(total + z_loss * squares.sum(), total.detach())


def chunked_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, live: bool, settings: LossSettings, seed: Tensor | None = None
) -> Loss:
    """`whole_loss` of hidden [..., H] @ weight [V, H]^T for targets [...], of which no more than a chunk ever exists.

    Give it to the model's forward pass as its `output`: under FSDP2 the weight is whole during that alone.

    Matrix products have the type of hidden (or of autocast), softmax and sums are float32, and so is the sum of the
    weight's gradient over the chunks. Chunks are taken in their order, so the result is a function of the inputs. A
    target that is IGNOREd, and everything when not live, has no part in any product: a NaN there goes nowhere.

    seed: the gradient that the objective is going to get in the backward pass, a float32 scalar. In float16, where
    small numbers are zero, the gradients of the logits must have it before they are rounded; other types need none.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    keep, part = (targets != IGNORE) & live, Part.of(weight)
    chunk = chunk_length(len(targets), chunk_tokens(settings, weight.shape[0], kind))
    rows = weight.to_local() if isinstance(weight, DTensor) else weight
    with torch.autocast(kind, enabled=False):
        return Loss(*_ChunkedLoss.apply(
            hidden.to(dtype), rows, targets, keep, live, chunk, settings.z_loss, torch.is_grad_enabled(),
            part, seed,
        ))  # fmt: skip


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, rows: Tensor, targets: Tensor, keep: Tensor, live: bool, chunk: int, z_loss: float,
        with_gradient: bool, part: Part | None, seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        weight = rows.to(hidden.dtype)
        objective, nll = torch.zeros((), device=hidden.device), torch.zeros((), device=hidden.device)
        by_hidden = torch.zeros_like(hidden) if with_gradient else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradient else None
        chunk_of = for_device(_fused_chunk, hidden.device.type) if part is None and is_fused(hidden) else _chunk
        for first in range(0, hidden.shape[0] if live else 0, chunk):
            cut = slice(first, first + chunk)
            inside = keep[cut, None]
            h = torch.where(inside, hidden[cut], 0.0)
            chunk_objective, chunk_nll, gradient = chunk_of(
                h @ weight.T, targets[cut], keep[cut], part, z_loss, with_gradient, seed
            )
            objective += chunk_objective
            nll += chunk_nll
            if by_hidden is not None and by_weight is not None and gradient is not None:
                by_hidden[cut] = torch.where(inside, gradient @ weight, 0.0)
                _add_product(by_weight, gradient.T, h)
            del gradient  # else it stands beside the logits of the next chunk
        if part is not None and by_hidden is not None:
            dist.all_reduce(by_hidden, group=part.group)
        ctx.gradients, ctx.dtype, ctx.seed = (by_hidden, by_weight), rows.dtype, seed
        ctx.mark_non_differentiable(nll)
        return objective, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_objective: Tensor, _by_nll: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients are scaled in place: backward runs once"
        (by_hidden, by_weight), ctx.gradients = ctx.gradients, None
        factor = by_objective if ctx.seed is None else by_objective / ctx.seed
        return by_hidden.mul_(factor), by_weight.mul_(factor).to(ctx.dtype), *[None] * 8


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where total is float32; without a product of its own where there is a kernel for that."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b


def _chunk(
    logits: Tensor, targets: Tensor, keep: Tensor, part: Part | None, z_loss: float, with_gradient: bool,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(objective, nll, gradient of the logits [n, V] or None) of one chunk's logits [n, V].

    Exponentials are taken once and in the place of the logits. The gradient is softmax (1 + 2 z log Z) - one-hot.
    """
    dtype, logits = logits.dtype, logits.float()
    row = torch.where(keep, targets, 0)[:, None] - (0 if part is None else part.first)
    here = (row >= 0) & (row < logits.shape[-1])  # the target is in this rank's part
    row = torch.where(here, row, 0)
    logit = torch.where(here, logits.gather(-1, row), 0.0)[:, 0]
    most = logits.amax(-1)
    exponentials = logits.sub_(most[:, None]).exp_()
    log_z = most + exponentials.sum(-1).log()
    if part is not None:
        log_z, logit = part.combine(log_z, logit)
    log_z = torch.where(keep, log_z, 0.0)
    nll = torch.where(keep, log_z - logit, 0.0).sum()
    objective = nll + z_loss * log_z.square().sum() if z_loss else nll
    if not with_gradient:
        return objective, nll, None
    factor, hit = (most - log_z).exp(), here[:, 0].float()
    factor = factor * (1 + 2 * z_loss * log_z) if z_loss else factor
    factor, hit = (torch.where(keep, x if seed is None else x * seed, 0.0)[:, None] for x in (factor, hit))
    gradient = exponentials.mul_(factor)
    return objective, nll, gradient.scatter_(-1, row, gradient.gather(-1, row) - hit).to(dtype)


def _fused_chunk(
    logits: Tensor, targets: Tensor, keep: Tensor, part: None, z_loss: float, with_gradient: bool, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same for torch.compile: one loop over a row for its log Z and one for its gradient. Comparing every column
    with the target costs nothing there, where a scatter would need the row to exist in float32."""
    exact = logits.float()
    target = torch.where(keep, targets, 0)[:, None]
    log_z = torch.where(keep, exact.logsumexp(-1), 0.0)
    nll = torch.where(keep, log_z - exact.gather(-1, target)[:, 0], 0.0).sum()
    objective = nll + z_loss * log_z.square().sum() if z_loss else nll
    if not with_gradient:
        return objective, nll, None
    probabilities = (exact - log_z[:, None]).exp()
    if z_loss:
        probabilities = probabilities * (1 + 2 * z_loss * log_z[:, None])
    hit = torch.arange(logits.shape[-1], device=logits.device) == target
    gradient = torch.where(keep[:, None], probabilities - hit.float(), 0.0)
    return objective, nll, (gradient if seed is None else gradient * seed).to(logits.dtype)
