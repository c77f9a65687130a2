"""A cluster as the policy sees it, by the answers that it reads, and a policy that asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from pretrainer.train.elasticity import elastic as module
from pretrainer.train.elasticity.elastic import UsefulSizes
from pretrainer.train.elasticity.resize import BURST_S, useful_sizes

STABLE_S = 10.0


class Cluster:
    """Nodes with CPUs (and GPUs); what the policy can see of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: dict[str, dict[str, float]] = {}
        self.leaving: dict[str, int] = {}
        self.dead: set[str] = set()
        self.for_data: set[str] = set()
        self.reservation: dict[str, dict[str, float]] | None = None  # everything, if nothing is said
        self.free: dict[str, dict[str, float]] = {}
        self.now_s = 0.0
        monkeypatch.setattr(ray, "nodes", self.described)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": sum(n["CPU"] for n in self.living())})
        monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: self.leaving)
        monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: self.free)
        monkeypatch.setattr("pretrainer.train.elasticity.elastic.time.monotonic", lambda: self.now_s)
        self.gone: set[str] = set()  # Ray has not noticed
        monkeypatch.setattr(module, "silent", lambda nodes: frozenset(n["NodeID"] for n in nodes) & self.gone)
        self.looked_at: list[set[str]] = []  # what Ray's coordinator saw of the nodes when it was asked to look
        self.sent: list[int] = []  # of the requests that did not wait for Ray's turn
        look = SimpleNamespace(remote=lambda _run, recompute: self.looked_at.append(set(self.nodes) - self.dead))
        coordinator = SimpleNamespace(get_reserved_resources=look)
        monkeypatch.setattr(UsefulSizes, "_autoscaling_coordinator", coordinator)
        monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
        monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda _self: self.reserved())
        monkeypatch.setattr(ElasticScalingPolicy, "_maybe_send_resource_request", lambda _self: None)
        monkeypatch.setattr(
            UsefulSizes, "_send_resource_request",
            lambda policy: self.sent.append(policy._get_num_workers_for_resource_request()),
        )  # fmt: skip

    def living(self) -> list[dict[str, float]]:
        return [resources for name, resources in self.nodes.items() if name not in self.dead]

    def described(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": name not in self.dead, "Resources": resources,
             "Labels": {"ray-subcluster": "data"} if name in self.for_data else {}}
            for name, resources in self.nodes.items()
        ]  # fmt: skip

    def reserved(self) -> dict[str, dict[str, float]]:
        """Ray's coordinator gives trainers no node that carries the label."""
        if self.reservation is not None:
            return self.reservation
        return {name: resources for name, resources in self.nodes.items() if name not in self.for_data}


class Driver:
    """The recorder that is asked for a checkpoint, and the step that is committed."""

    def __init__(self) -> None:
        self.asked, self.step = 0, 20
        self.request_checkpoint = SimpleNamespace(remote=self.ask)
        self.forgotten = 0
        self.forget_checkpoint = SimpleNamespace(remote=self.forget)
        self.begun, self.held = True, list[str]()  # whether the workers have trained a step; those that may not
        self.hold = SimpleNamespace(remote=self.keep_from_beginning)
        self.told: list[str] = []
        self.warn = SimpleNamespace(remote=lambda name, message: self.told.append(message))

    def ask(self) -> None:
        self.asked += 1

    def keep_from_beginning(self, workers: list[str]) -> bool:
        self.held = [] if self.begun else workers
        return not self.begun

    def forget(self) -> None:
        self.forgotten += 1


def policy(
    largest: int, blocks: int = 8, use_gpu: bool = False, cpus: float = 1.0, data_cpus: float = 0.0, smallest: int = 1,
    data_nodes: str | None = None, autoscaling: bool = False, is_first: bool = True,
) -> tuple[UsefulSizes, Driver]:
    resources = {"CPU": cpus, **({"GPU": 1} if use_gpu else {})}
    scaling = ScalingConfig(num_workers=(smallest, largest), use_gpu=use_gpu, resources_per_worker=resources)  # type: ignore[arg-type]
    driver = Driver()
    sizes = useful_sizes(blocks, smallest, largest)
    made = UsefulSizes(
        scaling, "a run", sizes, STABLE_S, data_cpus, driver, lambda: driver.step, data_nodes, autoscaling, is_first
    )
    return made, driver


def size(decision: Any) -> int | None:
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def first_start(policy: UsefulSizes, cluster: Cluster) -> int | None:
    """Its size when no node has come for a while."""
    policy.make_decision_for_non_running_worker_group()
    cluster.now_s += BURST_S
    return size(policy.make_decision_for_non_running_worker_group())


def running(policy: UsefulSizes, workers: int) -> Any:
    actors = [SimpleNamespace(actor=SimpleNamespace(_actor_id=bytes([rank]))) for rank in range(workers)]
    group = SimpleNamespace(num_workers=workers, workers=actors)
    return policy.make_decision_for_running_worker_group(group, None)
