"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, made orthogonal, for hidden matrices.

The update of a matrix is the nearest semi-orthogonal matrix to its Nesterov momentum, so that every direction moves
equally far. As in Moonlight (Liu et al. 2025, arXiv:2502.16982) it is scaled by 0.2 sqrt(max(rows, columns)), which
gives it the root mean square of a usual AdamW update: one learning rate, one schedule and one weight decay serve both
optimizers. Jordan's own scale is sqrt(max(1, rows / columns)), which needs a learning rate of its own.

Under FSDP2 a matrix is a DTensor. Momentum is kept sharded; the direction is gathered whole (in the type that it is
made orthogonal in), every rank makes it orthogonal and cuts its own shard out. The work is repeated on every rank
instead of spread: with m <= n it costs about 20 m²n + 10 m³ operations for each matrix m x n, against 6 mn for each of
the rank's tokens, so it is under 10 % of a step from 50 m tokens per rank on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrainer.train.optim.adamw import keep, local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic: steep at 0, and it need not converge to 1
ITERATIONS = 5
EPSILON = 1e-7
RMS_OF_ADAMW = 0.2


def newton_schulz(matrix: Tensor) -> Tensor:
    """U S' V^T for matrix U S V^T [..., m, n], with all S' near 1 (about 0.7 to 1.2); in the type of the matrix.

    Leading dimensions are a batch: the experts of a layer. A zero matrix stays zero.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)  # singular values at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def orthogonal_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs, as Jordan's (the iteration forgives its rounding), float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _is_whole_here(parameter: Tensor) -> bool:
    """Whether this rank holds whole matrices: a plain tensor, or experts [E, m, n] sharded by expert."""
    if not isinstance(parameter, DTensor):
        return True
    by_expert = parameter.ndim == 3
    return all(placement.is_replicate() or (by_expert and placement.is_shard(0)) for placement in parameter.placements)


def orthogonal(direction: Tensor, parameter: Tensor) -> Tensor:
    """This rank's elements of newton_schulz(direction); direction holds this rank's elements. A collective call."""
    direction = direction.to(orthogonal_dtype(direction.device))
    if _is_whole_here(parameter):
        return newton_schulz(direction)
    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    sharded = DTensor.from_local(
        direction, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    whole = newton_schulz(sharded.full_tensor())
    # src_data_rank=None: every rank has the same matrix, so it cuts its own shard and nothing is sent.
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()


def muon_update(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    skip: Tensor | None = None,
) -> None:
    """One step, in place; every rank calls it for the same parameters in the same order.

    state: `step` (float32 scalar) and `momentum_buffer` in any float type, rounded to nearest when it is kept. group:
    `lr`, `momentum`, `weight_decay`. The momentum is a running mean, (1 - momentum) of Jordan's sum, which changes
    nothing: the direction's length does not count. skip: bool scalar, true where nothing may change.
    """
    momentum, values, gradient = group["momentum"], local(parameter), local(gradient).float()
    mean = local(state["momentum_buffer"]).float().lerp(gradient, 1 - momentum)
    update = orthogonal(gradient.lerp(mean, momentum), parameter)
    scale = RMS_OF_ADAMW * max(parameter.shape[-2:]) ** 0.5
    decayed = values * (1 - group["lr"] * group["weight_decay"])
    keep(state["step"], state["step"] + 1, skip)
    keep(state["momentum_buffer"], mean, skip)
    keep(parameter, decayed.add_(update.to(values.dtype), alpha=-group["lr"] * scale), skip)
