"""From the device to the host without waiting: tensors on their way, and what a step did.

A host that asks a GPU for a number waits until the GPU has done all it was given, and then the GPU waits for the host.
So nothing of a step is asked for while it runs: its numbers are copied behind it and looked at later.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class HostCopy:
    """A tensor on its way to the host, in pinned memory where it comes from a GPU; on the CPU the tensor itself.

    The copy is ordered behind what the current stream was given before, and `read` waits for it.
    """

    def __init__(self, tensor: Tensor) -> None:
        """On the CPU nothing is copied: the tensor must not be changed afterwards."""
        self.tensor = tensor.detach().to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event() if tensor.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def read(self) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensor


class StepResult:
    """What a step did, the same on every rank; on a GPU the first look at it waits until the step is done."""

    def __init__(self, loss: Tensor, grad_norm: Tensor, applied: Tensor, expert_tokens: Tensor | None = None) -> None:
        """Scalars on one device, and [L, E] int64 that nobody changes any more."""
        self._numbers = HostCopy(torch.stack([loss.double(), grad_norm.double(), applied.double()]))
        self._expert_tokens = None if expert_tokens is None else HostCopy(expert_tokens)

    @cached_property
    def _read(self) -> tuple[float, float, bool, tuple[tuple[int, ...], ...]]:
        loss, grad_norm, applied = self._numbers.read().tolist()
        counts = [] if self._expert_tokens is None else self._expert_tokens.read().tolist()
        return loss, grad_norm, bool(applied), tuple(tuple(block) for block in counts)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood over the global batch, in nats per target."""
        return self._read[0]

    @property
    def grad_norm(self) -> float:
        """Global norm before clipping."""
        return self._read[1]

    @property
    def applied(self) -> bool:
        """False when loss or gradient was not finite and the weights were left as they were."""
        return self._read[2]

    @property
    def expert_tokens(self) -> tuple[tuple[int, ...], ...]:
        """Per block: how often valid tokens chose each expert."""
        return self._read[3]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepResult) and self._read == other._read

    def __repr__(self) -> str:
        return f"StepResult{self._read}"
