"""Ring attention (Liu et al. 2023, arXiv:2310.01889): ranks that hold parts of the same rows pass keys and values on.

Each rank keeps the queries of its part; in every round it attends to the keys and values that it holds, while these go
to the next rank already, and the rounds' results are merged by their log-sum-exp. A row of S tokens is cut into 2 R
pieces, and rank r has pieces r and 2 R - 1 - r ("zigzag", Zhu 2024), so that a causal mask leaves all ranks alike
much to do. torch's own context_parallel (2.13) takes no mask but the causal one; this takes all that masks.py has.

Autograd does the backward pass: it sends gradients around the other way, and keeps each round's keys and values unless
the block is computed again (train.activation_checkpointing).

Shapes: B rows, N query heads, M key heads, D width of a head, R ranks, s = S / R tokens of a rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

NOT_SEEN = -1e30  # finite: a query that sees nothing in a round then has a weight of 0 in the sum, and no NaN


@dataclass(frozen=True)
class Ring:
    group: dist.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ring | None:
        """None where every rank holds whole rows."""
        return None if group is None else cls(group, dist.get_rank(group), dist.get_world_size(group))

    def places(self, length: int, rank: int | None = None, device: torch.device | str = "cpu") -> Tensor:
        """[s] int64: where a rank's tokens stand in a row of so many; of this rank by default."""
        rank = self.rank if rank is None else rank
        pieces = torch.arange(length, device=device).view(2 * self.size, -1)
        return torch.cat((pieces[rank], pieces[2 * self.size - 1 - rank]))

    def pass_on(self, x: Tensor) -> Tensor:
        """What the rank before has for x, of the same shape; every rank calls it. The copy runs until x is used."""
        sent, received = [0] * self.size, [0] * self.size
        sent[(self.rank + 1) % self.size] = received[(self.rank - 1) % self.size] = x.numel()
        return all_to_all_single_autograd(x.flatten(), received, sent, self.group).view(x.shape)

    def sum(self, x: Tensor) -> Tensor:
        """x summed over the ranks; without a gradient."""
        total = x.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total


@dataclass(frozen=True)
class RingMask:
    """What this rank's queries see in each round: in round i the keys of rank r - i."""

    ring: Ring
    rounds: list[Any]  # DenseMask or FlexMask


def dense_round(q: Tensor, k: Tensor, v: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(output [B, N, s, D], log-sum-exp [B, N, s]), float32."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q.float() @ k.mT / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~values, NOT_SEEN) if values.dtype == torch.bool else (scores + values).clamp(NOT_SEEN)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp() @ v, lse


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each; float32."""
    both = torch.logaddexp(lse, more_lse)
    return out * (lse - both).exp()[..., None] + more * (more_lse - both).exp()[..., None], both
