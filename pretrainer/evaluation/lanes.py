"""Batches of rows, dealt to the ranks of a sharded model that all work in lockstep; one process is one lane.

A sharded model gathers its parameters in every forward pass, so all ranks make equally many. Ranks whose tokens differ
in training are lanes with batches of their own; those that split matrices have the same ones. Every rank is given the
same rows, and gets all results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
Row = tuple[int, ...]


@dataclass(frozen=True)
class Lanes:
    lane: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Lanes:
        """The ranks whose tokens differ are the lanes (see train/layout.py); without a process group there is one."""
        if not dist.is_initialized():
            return cls()
        group = getattr(model, "token_group", None)
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def deal(self, batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This lane's batches and whether they count: a lane without one of its own runs the last one again."""
        for first in range(0, len(batches), self.count):
            mine = first + self.lane
            yield batches[min(mine, len(batches) - 1)], mine < len(batches)

    def share(self, found: dict[int, T]) -> dict[int, T]:
        """What all lanes found."""
        if self.count == 1:
            return found
        box: list[dict[int, T]] = [{}] * self.count
        dist.all_gather_object(box, found, group=self.group)
        return {place: value for part in box for place, value in part.items()}

    def any(self, value: bool, device: torch.device | str) -> bool:
        """Whether it is true in any lane."""
        if self.count == 1:
            return value
        flag = torch.tensor([int(value)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag)


def batches_of(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Numbers of rows, the longest first, in batches whose rows times longest row are at most batch_tokens."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(rows: Sequence[Row], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Tokens and positions [B, S] int64, padded with id 0 on the right, which no token before it can see."""
    longest = max(map(len, rows))
    tokens = torch.zeros((len(rows), longest), dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens.to(device), torch.arange(longest, device=device).expand(len(rows), -1)
