"""How the ranks of a worker group are arranged; arithmetic alone, and the meshes and groups that follow from it.

    rank = ((replica * data + d) * context + c) * tensor + t

Neighbouring ranks split matrices (tensor), then sequences (context); such a *team* trains on the same slot blocks, and
its first rank reads them from the stream. Parameters are sharded over `data * context` ranks of a replica (FSDP2, and
HSDP with more than one replica) and over `tensor`. A stream rank is the number of a team: it stands where a rank stands
without teams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pretrainer.config import TrainConfig


@dataclass(frozen=True)
class Layout:
    world: int
    replicas: int = 1
    context: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, config: TrainConfig, world: int) -> Layout:
        """Of a worker group of this size, a multiple of config.worker_multiple."""
        assert world % config.worker_multiple == 0, (world, config.worker_multiple)
        replicas = 1 if config.shard_workers is None else world // config.shard_workers
        return cls(world, replicas, config.context_parallel, config.tensor_parallel)

    @property
    def team(self) -> int:
        """Ranks that train on the same slot blocks."""
        return self.context * self.tensor

    @property
    def streams(self) -> int:
        """Teams, each with slot blocks of its own."""
        return self.world // self.team

    def stream_rank(self, rank: int) -> int:
        return rank // self.team

    def reads(self, rank: int) -> bool:
        """Whether the rank takes its team's slot blocks from the stream; the others get them from it."""
        return rank % self.team == 0


class Ranks:
    """The meshes and process groups of a layout; every rank of the process group makes them, in the same order."""

    def __init__(self, layout: Layout, device_type: str) -> None:
        self.layout = layout
        shape = (layout.replicas, layout.world // (layout.replicas * layout.tensor), layout.tensor)
        self.mesh = init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
        context, tensor, team, world = layout.context, layout.tensor, layout.team, layout.world
        # Those that train on the same rows, None where a rank does so alone.
        self.team = self._group(team, [list(range(first, first + team)) for first in range(0, world, team)])
        # Those that hold the parts of the same sequences.
        self.ring = self._group(
            context,
            [
                list(range(first + t, first + team, tensor))
                for first in range(0, world, team)
                for t in range(tensor)
            ],
        )
        # Those whose tokens differ, to sum losses over; None for all ranks.
        self.tokens = self._group(tensor, [list(range(t, world, tensor)) for t in range(tensor)])

    @staticmethod
    def _group(degree: int, members: list[list[int]]) -> dist.ProcessGroup | None:
        return None if degree == 1 else dist.new_subgroups_by_enumeration(members)[0]

    @property
    def sharding(self) -> DeviceMesh:
        """Of FSDP2; with two dimensions it is HSDP."""
        return self.mesh["shard"] if self.layout.replicas == 1 else self.mesh["replicate", "shard"]

    def from_reader(self, value: Any) -> Any:
        """What the reader of the team gives; every rank of the team calls this."""
        if self.team is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.team, group_src=0)
        return box[0]
