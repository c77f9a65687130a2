"""How workers are fed. Without torch: Ray's actor that keeps the data set reads this file and needs none."""

from __future__ import annotations

from typing import Any

import ray.data
import ray.train


class OrderedDataConfig(ray.train.DataConfig):
    """Ray's own `configure` hard-codes `equal=True`, which tears the last blocks into rows and drops some.

    The ranks of a team (layout.py) have one split together, from which its first rank reads.
    """

    def __init__(self, team: int = 1) -> None:
        super().__init__()
        self.team = team

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        # No locality hints: with them a block goes to the rank that is near it instead of the rank whose turn it is.
        streams = world_size // self.team
        splits = {name: ds.streaming_split(streams, equal=False) for name, ds in datasets.items()}
        return [{name: split[rank // self.team] for name, split in splits.items()} for rank in range(world_size)]
