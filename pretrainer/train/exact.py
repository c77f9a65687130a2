"""Exact mode (`train.exact`), torch alone: a step whose weights are bit-identical at every world size W.

A float sum depends on the order of its terms, and with it on W; a sum of integers does not. So each slot block's
gradient is computed alone, on a replica of the whole model, rounded once to fixed-point integers, and added as int64
over this rank's slot blocks and over all ranks, in whatever order they come. What follows (one division, norm,
clipping, AdamW) every rank does alike on the same bits. The idea is that of reproducible summation (Demmel & Nguyen
2013, doi:10.1109/ARITH.2013.9), with one scale for the whole run instead of one per sum.

It holds for one kind of hardware, one version of torch and one number of threads: other kernels round a slot block's
own gradient differently. `agreed_digest` finds ranks that drift apart.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrainer.errors import ReplicaError
from pretrainer.train.spikes import Detector
from pretrainer.train.step import MicroBatch, Observer, StepResult, accumulate_gradients, apply_gradient

SUM_BITS = 62  # a whole sum stays below 2**62, half of what int64 holds
MEAN_BITS = 10  # the mean over tokens of an element of loss or gradient may reach 2**10


def make_deterministic(threads: int) -> None:
    """Kernels whose result depends on their input alone; call it before the first one runs on a GPU.

    In this strict mode torch runs the deterministic forms of flash and memory-efficient attention, leaves cuDNN's out,
    and raises for a kernel that has none. threads: of each rank on CPU, the same at every W, because kernels split
    their sums over them.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)


class BlockSum:
    """Loss and gradient summed over the slot blocks of a step, on all ranks, in any order: int64 multiples of 2**-f.

    f = 62 - 10 - ceil(log2 T) with T tokens in a global batch: to the mean over the batch each slot block adds a
    multiple of 2**-51 or finer, and its own mean may reach 2**10. Where an element is beyond that or not finite, loss
    or gradient becomes NaN on all ranks alike, and the step is not applied. The limit holds for each slot block, so
    that no sum of `blocks` of them, whole or in part, overflows.
    """

    def __init__(self, model: nn.Module, blocks: int, tokens: int) -> None:
        self.parameters = list(model.parameters())
        self.scale = 2.0 ** (SUM_BITS - MEAN_BITS - math.ceil(math.log2(tokens)))
        self.limit = float(2**SUM_BITS // blocks)
        # One buffer, so one collective: the gradient's elements, then loss, and how often either was out of range.
        sizes = [p.numel() for p in self.parameters]
        self.total = torch.zeros(sum(sizes) + 3, dtype=torch.int64, device=self.parameters[0].device)
        *self.gradients, self.loss, self.bad_loss, self.bad_gradient = self.total.split([*sizes, 1, 1, 1])

    def clear(self) -> None:
        self.total.zero_()

    @torch.no_grad()
    def add(self, nll: Tensor) -> None:
        """Add one slot block: its summed loss (a float64 scalar) and the model's gradient of it, which is cleared."""
        self._add(nll, self.loss, self.bad_loss)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is not None:
                self._add(parameter.grad, gradient, self.bad_gradient)
                parameter.grad = None

    def _add(self, value: Tensor, into: Tensor, bad: Tensor) -> None:
        scaled = (value * self.scale).flatten()  # a power of two: exact in float32 too
        bad += ~(scaled.abs().amax() <= self.limit)  # NaN is not below the limit either
        into += scaled.round_().to(torch.int64)  # where bad, any number: `take` does not use it

    def all_reduce(self) -> None:
        """Sum over the ranks; without a process group there is only this one."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.total)

    @torch.no_grad()
    def take(self, targets: int) -> Tensor:
        """Divide once by the targets: the mean gradient becomes the model's, the mean loss (float64) is returned."""
        unit = torch.full_like(self.loss, self.scale * targets, dtype=torch.float64)
        by_gradient, by_loss = (unit.masked_fill(bad > 0, math.nan) for bad in (self.bad_gradient, self.bad_loss))
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = (gradient.double() / by_gradient).to(parameter.dtype).view_as(parameter)
        return (self.loss.double() / by_loss).squeeze()


def exact_train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    blocks: Sequence[Sequence[MicroBatch]],
    global_targets: int,
    learning_rate: float,
    clip_norm: float,
    total: BlockSum,
    detector: Detector | None = None,
    observer: Observer | None = None,
) -> StepResult:
    """`train_step` on a replicated model; every rank calls it with the micro-batches of each of its slot blocks.

    Forward and backward pass communicate nothing, so ranks with fewer slot blocks (or none) need no dummies: they add
    exactly zero. The result is the same on every rank and at every W, to the bit.
    """
    total.clear()
    for block in blocks:
        total.add(accumulate_gradients(model, block, 0, 1.0, observer=observer))
    total.all_reduce()
    loss = total.take(max(1, global_targets))
    return apply_gradient(model, optimizer, loss, learning_rate, clip_norm, None, detector, observer)


def weights_digest(model: nn.Module) -> str:
    """`named_digest` of the parameters and buffers."""
    return named_digest({**dict(model.named_parameters()), **dict(model.named_buffers())})


def named_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, hex, over float tensors in the order of their names.

    For each: the line "<name> <dtype> <d0>x<d1>…", then its elements as little-endian bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype.name} {'x'.join(map(str, values.shape))}\n".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def agreed_digest(model: nn.Module) -> str:
    """The weights' digest; every rank calls it. Raises ReplicaError on all ranks when theirs differ."""
    return agreed(weights_digest(model))


def agreed(mine: str) -> str:
    """A digest that all ranks have; every rank calls it with its own. Raises ReplicaError on all when they differ."""
    digests = [mine]
    if dist.is_initialized():
        digests *= dist.get_world_size()
        dist.all_gather_object(digests, mine)
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise ReplicaError(
            f"train.exact=true, but the weights of ranks {odd} differ from those of rank 0: give all workers the same "
            "kind of hardware and the same environment, or set train.exact=false; the last checkpoint is sound"
        )
    return mine
