"""This rank's part of a checkpoint, held still while it is written: its shards, copied to the host; torch alone.

Only local shards are copied, into buffers that are kept for the next checkpoint (pinned where they come from a GPU).
What DCP plans with (shape, mesh, placements) it reads from the tensors themselves, where it never changes, so no
DTensor is rebuilt on a mesh of the host, and a mesh of any dimensions will do. torch 2.13 has stagers, and none fits:
DefaultStager as it comes needs a GPU, what it is made of (StateDictStager) copies whole storages and the mesh of every
DTensor, and BlockingAsyncStager keeps its buffers only where memory can be pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex

from pretrainer.model.generate import release_gathered
from pretrainer.train.optim.adamw import local

WEIGHTS = "model."


@dataclass(frozen=True)
class Staged:
    """What `write_sharded` writes: `tensors` say how they are laid out over the ranks, `shards` hold the elements."""

    tensors: dict[str, Tensor]
    shards: dict[str, Tensor]
    optimizer_step: int

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Back to what was staged, which must be a copy; every rank calls it."""
        tensors = named_tensors(model, optimizer)
        for name, shard in self.shards.items():
            local(tensors[name]).copy_(shard, non_blocking=True)
        set_optimizer_step(optimizer, self.optimizer_step)

    def weights(self) -> dict[str, Tensor]:
        """Name of a parameter or buffer -> this rank's elements."""
        return {name.removeprefix(WEIGHTS): t for name, t in self.shards.items() if name.startswith(WEIGHTS)}


class Staging:
    """Takes what a checkpoint holds. With `copies` it is a snapshot; without, it is so until the next step begins."""

    def __init__(self, copies: bool) -> None:
        self.copies = copies
        self._host: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Staged:
        """Valid until the next call, which writes into the same buffers. The optimizer is from `build_optimizer`."""
        tensors = named_tensors(model, optimizer)
        shards = {name: local(tensor) for name, tensor in tensors.items()}
        if self.copies:
            shards = {name: self._copy(name, shard) for name, shard in shards.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()  # the copies, and whatever another thread will read here
        return Staged(tensors, shards, optimizer_step(optimizer))

    def _copy(self, name: str, shard: Tensor) -> Tensor:
        if name not in self._host:
            pinned = shard.is_cuda and shard.numel() > 0  # nothing cannot be pinned
            self._host[name] = torch.empty_like(shard, device="cpu", pin_memory=pinned)
        return self._host[name].copy_(shard, non_blocking=True)


class StagedPlanner(DefaultSavePlanner):
    """DCP's planner for the tensors of a Staged, which writes its shards."""

    def __init__(self, staged: Staged) -> None:
        super().__init__()
        self.shards = staged.shards

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The data of an item of the plan; a rank has one shard of a tensor."""
        return self.shards[index.fqn]


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything in a checkpoint by name: `model.<name>` and `<moment>.<name>`, whole tensors and DTensors."""
    release_gathered(model)  # the optimizer knows the shards only
    # Detached views share storage with the parameters, so loading into them fills the model.
    named = dict(model.named_parameters())
    tensors = {f"{WEIGHTS}{name}": tensor.detach() for name, tensor in (*named.items(), *model.named_buffers())}
    for name, parameter in named.items():
        moments = {key: value for key, value in optimizer.state[parameter].items() if key != "step"}
        tensors |= {f"{moment}.{name}": value for moment, value in moments.items()}
    return tensors


def set_optimizer_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """The optimizer has updated so often."""
    for state in optimizer.state.values():
        state["step"].fill_(step)


def optimizer_step(optimizer: torch.optim.Optimizer) -> int:
    """How often the optimizer has updated: it counts per parameter, and train_step updates all of them or none."""
    counts = {int(state["step"]) for state in optimizer.state.values()}
    assert len(counts) == 1, f"parameters were updated unequally often: {sorted(counts)}"
    return counts.pop()
