"""From the device to the host without waiting: tensors on their way, and what a step did.

A host that asks a GPU for a number waits until the GPU has done all it was given, and then the GPU waits for the host.
So nothing of a step is asked for while it runs: its numbers are copied behind it and looked at later.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from pretrainer.train.spikes import REASONS, Verdict


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

    def __init__(
        self, loss: Tensor, grad_norm: Tensor, verdict: Verdict, expert_tokens: Tensor | None = None
    ) -> None:
        """Scalars on one device, and [L, E] int64 that nobody changes any more."""
        numbers = [loss.double(), grad_norm.double(), verdict.applied.double(), verdict.reason.double()]
        self._numbers = HostCopy(torch.cat([torch.stack(numbers), verdict.bounds.double()]))
        self._expert_tokens = None if expert_tokens is None else HostCopy(expert_tokens)

    @classmethod
    def left_out(cls, loss: float, grad_norm: float, reason: str) -> StepResult:
        """Of a step that is known to be left out, and is not run again."""
        number = torch.tensor(REASONS.index(reason))
        verdict = Verdict(torch.tensor(False), number, torch.full((2,), math.inf))
        return cls(torch.tensor(loss, dtype=torch.float64), torch.tensor(grad_norm, dtype=torch.float64), verdict)

    @cached_property
    def _read(self) -> tuple[float, float, bool, str, float, float, tuple[tuple[int, ...], ...]]:
        loss, grad_norm, applied, reason, *bounds = self._numbers.read().tolist()
        counts = [] if self._expert_tokens is None else self._expert_tokens.read().tolist()
        return loss, grad_norm, bool(applied), REASONS[int(reason)], *bounds, tuple(tuple(block) for block in counts)

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
        """False when the weights were left as they were."""
        return self._read[2]

    @property
    def reason(self) -> str:
        """What is wrong with the step, one of spikes.REASONS; empty when nothing is. It may be applied all the same."""
        return self._read[3]

    @property
    def loss_bound(self) -> float:
        """A loss above this is a spike."""
        return self._read[4]

    @property
    def grad_norm_bound(self) -> float:
        """A gradient norm above this is a spike."""
        return self._read[5]

    @property
    def expert_tokens(self) -> tuple[tuple[int, ...], ...]:
        """Per block: how often valid tokens chose each expert."""
        return self._read[6]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepResult) and self._read == other._read

    def __repr__(self) -> str:
        return f"StepResult{self._read}"
