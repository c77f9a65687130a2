"""A run without workers says so, and what a worker group needs: on a cluster that grows it may wait for a long time."""

from __future__ import annotations

from typing import Any

import ray

from pretrainer.config import Config

EVERY_S = 120.0
ENDS = ("failure", "finish", "rewind")  # of a worker group


class Waiting:
    """Since when no worker group has been at work. Times are those of events, seconds since 1970."""

    def __init__(self, config: Config, on_gpu: bool, data_cpus: float, now_s: float) -> None:
        self.needs = needs(config, on_gpu, data_cpus)
        self.since_s: float | None = now_s
        self.told_s = now_s

    def notice(self, event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            self.since_s = None
        elif event["kind"] in ENDS and self.since_s is None:
            self.since_s = self.told_s = event["at_s"]

    def look(self, now_s: float) -> list[dict[str, Any]]:
        """What is to be recorded: an event every two minutes."""
        if self.since_s is None or now_s - self.told_s < EVERY_S:
            return []
        self.told_s = now_s
        minutes = (now_s - self.since_s) / 60
        return [{"kind": "waiting", "message": f"no workers for {minutes:.0f} min: {self.needs}; {there()}"}]


def needs(config: Config, on_gpu: bool, data_cpus: float) -> str:
    """What a worker group and its data ask the cluster for."""
    (lo, hi), train = config.train.worker_range, config.train
    count = f"{lo} to {hi} workers" if lo < hi else f"{hi} workers"
    gpus = f" and {train.gpus_per_worker:g} GPUs" if on_gpu else ""
    return f"{count} of {train.cpus_per_worker:g} CPUs{gpus}, and {data_cpus:g} CPUs for data are asked for"


def there() -> str:
    has = ray.cluster_resources()
    return (
        f"the nodes that are there have {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs "
        "(`ray status` shows what is pending)"
    )
