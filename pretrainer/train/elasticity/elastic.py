"""Sizes of worker groups: Ray's own policies with our sizes, growth behind a checkpoint (see `resize`), and one
reservation per run.

`_initialize_and_run_controller` and the scaling policies are internals of Ray 2.60; what is used of them is pinned by
tests/train/elasticity/test_elastic.py. The policy lives in Ray's controller actor and asks the recorder for the
checkpoint it waits for.
"""

from __future__ import annotations

import contextlib
import copy
import math
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from pretrainer import subcluster
from pretrainer.train.elasticity.resize import AutoscalerRequest, Burst, GrowthGate, best_size

TOLERANCE = 1e-6  # Ray divides floats, and 1.0 // 0.1 is 9
LOOK_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 2.0
MOST_AT_ONCE = 64
NOTHING_CAME = (
    "no node came in {s:.0f} s while {most} workers were asked for, so {less} are asked for now; the autoscaler grants "
    "a request whole or not at all: is the upper end of train.num_workers more than the cluster may have (ray status)?"
)


def silent(nodes: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Ids of those nodes, of what ray.nodes() gives, whose raylet lets nobody connect.

    Ray takes a node that is gone for a living one until five of its looks, 15 s, have failed. Its trainers end at once,
    and a group that counted on it would wait for it until Ray's timeout for the start of a group is over.
    """
    asked = list(nodes)
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        answered = list(pool.map(_answers, asked))
    if not any(answered):  # not even the node of this process: something between here and there forbids it
        return frozenset()
    return frozenset(node["NodeID"] for node, answers in zip(asked, answered, strict=True) if not answers)


def _answers(node: Mapping[str, Any]) -> bool:
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(address, ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True


class OneReservation:
    """A run's start takes over the CPUs that Ray's coordinator reserves for the run's last start.

    Ray names a reservation after the trainer's random id and keeps that of a killed driver for 180 s. Beside the new
    one it leaves the data stages nothing: the re-submitted run then waits 170 s for its first batch.
    """

    reservation: str

    def after_controller_start(self, train_run_context: Any) -> None:
        named = copy.copy(train_run_context)
        object.__setattr__(named, "run_id", self.reservation)
        super().after_controller_start(named)  # type: ignore[misc]  # of the policy that this is mixed into


class FixedSize(OneReservation, FixedScalingPolicy):
    """Always as many workers as the config says."""

    def __init__(self, scaling_config: Any, reservation: str) -> None:
        super().__init__(scaling_config)
        self.reservation = reservation


class UsefulSizes(OneReservation, ElasticScalingPolicy):
    """Starts at the largest useful size that fits and grows right after a checkpoint; see `resize`."""

    def __init__(
        self,
        scaling_config: Any,
        reservation: str,
        sizes: list[int],
        stable_s: float,
        data_cpus: float,
        recorder: Any,
        asked_step: Callable[[], int],
        data_nodes: str | None = None,
        autoscaling: bool = False,
        is_first: bool = True,
    ) -> None:
        """data_cpus: what data needs where trainers may be too; data_nodes: the subcluster that it has for itself;
        autoscaling: nodes come for what is asked for; is_first: of the run's first segment, before which no trainer
        has asked for a node."""
        super().__init__(scaling_config)
        self.reservation = reservation
        self.sizes = sizes
        self.gate, self.burst = GrowthGate(stable_s), Burst(frozenset() if is_first else None)
        self.request, self.has_told = AutoscalerRequest(sizes), False
        self.data_cpus, self.recorder, self.asked_step = data_cpus, recorder, asked_step
        self.data_nodes, self.autoscaling = data_nodes, autoscaling
        self.requested, self.living = 0, frozenset[str]()
        self.silent = frozenset[str]()  # nodes that Ray takes for living, at a start

    def _maybe_send_resource_request(self) -> None:
        """Ray sends the request every 20 s; one that has become another is sent at once."""
        wanted = self._get_num_workers_for_resource_request()
        if wanted == self.requested:
            return super()._maybe_send_resource_request()
        self.requested = wanted
        self._send_resource_request()

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """Ray's coordinator looks at the nodes every 20 s; when others have come, it is asked to look at once."""
        living = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
        self.burst.look(time.monotonic(), living)
        if living != self.living:
            look = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            with contextlib.suppress(ray.exceptions.RayError):  # the next look asks again, and Ray's warns
                ray.get(look, timeout=LOOK_TIMEOUT_S)
                self.living, self._latest_reserved_resources_query_time = living, -math.inf
        return super()._get_reserved_resources()

    def _get_num_workers_for_resource_request(self) -> int:
        """Ray gives trainers everything before data gets anything, so CPU trainers ask for what leaves data its own."""
        if self.scaling_config.use_gpu or self.data_nodes:
            return self._what_is_granted() if self.autoscaling else self.sizes[-1]
        fits = best_size(self.sizes, self._beside_data()) or 0
        is_enough = fits == self.sizes[-1] or (fits > 0 and not self.autoscaling)
        return fits if is_enough else self._one_node_more(fits)

    def _what_is_granted(self) -> int:
        """The most, or less where that brings nothing; the first time the person who waits is told."""
        before, asked = self.request.asked, self.request.look(time.monotonic(), self._held())
        if asked < before == self.sizes[-1] and not self.has_told:
            self.has_told = True
            self.recorder.warn.remote("nodes", NOTHING_CAME.format(most=before, less=asked, s=self.request.patience_s))
        return asked

    def _one_node_more(self, fits: int) -> int:
        """The next useful size, and so many that the nodes that are there do not hold them.

        Asked for what fits, the autoscaler adds nothing; asked for more than all of its nodes hold, nothing either: it
        grants a request whole or not at all. So the cluster grows node by node, as far as it may. Where not even the
        fewest fit, this is asked for in any case. (Seen: one worker on a node of one CPU, 0.9 of which data needs; the
        run asked for the one worker and waited for ever.)
        """
        return max(next(size for size in self.sizes if size > fits), self._held() + 1)

    def _held(self) -> int:
        """Whole workers that trainers' nodes hold if nothing else runs there."""
        theirs = [node for node in ray.nodes() if node["Alive"] and not subcluster.holds(self.data_nodes, node)]
        return sum(self._whole_workers(node["Resources"]) for node in theirs)

    def _whole_workers(self, has: dict[str, float]) -> int:
        need = {name: n for name, n in self.scaling_config._resources_per_worker_not_none.items() if n > 0}
        return min(int(has.get(name, 0.0) / amount + TOLERANCE) for name, amount in need.items())

    def _beside_data(self, leaving: Collection[str] = ()) -> int:
        """Workers whose CPUs the cluster has beside those of the data stages; not on nodes that leave."""
        each = float(self.scaling_config._resources_per_worker_not_none.get("CPU", 0.0))
        theirs = subcluster.cpus(self.data_nodes, ray.nodes()) if self.data_nodes else self.data_cpus
        going = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in leaving]
        gone = sum(n["Resources"].get("CPU", 0.0) for n in going if not subcluster.holds(self.data_nodes, n))
        left = ray.cluster_resources().get("CPU", 0.0) - gone - theirs
        return int(left / each + TOLERANCE) if each else self.sizes[-1]

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """Whole workers of a useful size on nodes that are not about to go away; 0 if not even the smallest fits.

        Ray's coordinator reserves on a node that leaves until it is gone, although the autoscaler has brought another
        in its place by then; what is reserved there may be had where nobody uses it.
        """
        leaving = {*(ray._private.state.state.get_draining_nodes() or {}), *self.silent}
        staying = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
        holds = {name: self._whole_workers(has) for name, has in reserved_resources.items()}
        found = sum(holds.get(node["NodeID"], 0) for node in staying)
        if to_move := sum(holds.get(name, 0) for name in leaving):
            found += min(to_move, self._unused(staying, reserved_resources))
        return best_size(self.sizes, min(found, self._beside_data(leaving))) or 0

    def _unused(self, nodes: list[dict[str, Any]], reserved: dict[str, dict[str, float]]) -> int:
        """Workers that trainers' nodes have room for beside what is reserved for this run and what runs there."""
        free, room = ray._private.state.available_resources_per_node(), 0
        for name in (node["NodeID"] for node in nodes if not subcluster.holds(self.data_nodes, node)):
            mine = reserved.get(name, {})
            left = {kind: amount - mine.get(kind, 0.0) for kind, amount in free.get(name, {}).items()}
            room += max(0, self._whole_workers(left))
        return room

    def after_controller_start(self, train_run_context: Any) -> None:
        self.recorder.forget_checkpoint.remote()  # which the controller of the segment before may have asked for
        super().after_controller_start(train_run_context)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        if self.gate.asked_at_step is not None:
            self.recorder.forget_checkpoint.remote()
        self.gate.restarted(time.monotonic())
        self.silent = frozenset()
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self.silent = silent(node for node in ray.nodes() if node["Alive"])
            decision = super().make_decision_for_non_running_worker_group() if self.silent else decision
        return NoopDecision() if self._waits_for_the_next(decision) else decision

    def _waits_for_the_next(self, decision: ScalingDecision) -> bool:
        """Whether a start with less than the most waits for the node that comes next."""
        is_less = isinstance(decision, ResizeDecision) and decision.num_workers < self.sizes[-1]
        return self.autoscaling and is_less and self.burst.goes_on(time.monotonic())

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        self.silent = frozenset()
        self._maybe_send_resource_request()
        reserved = self._get_reserved_resources()
        if reserved is None:
            return NoopDecision()
        possible, size = self._count_possible_workers(reserved), worker_group_state.num_workers
        asked_step = self.asked_step() if possible > size else -1
        room = size if self.scaling_config.use_gpu else self._beside_data()
        verdict = self.gate.look(time.monotonic(), size, possible or None, room, asked_step)
        if verdict == "checkpoint" and self._hold(worker_group_state.workers):
            verdict = self.gate.grow(time.monotonic())
        elif verdict == "checkpoint":
            self.recorder.request_checkpoint.remote()
        if verdict not in ("grow", "shrink"):
            return NoopDecision()
        self.recorder.forget_checkpoint.remote()  # rank 0 may end before it says that it has saved
        return self._get_resize_decision(possible)

    def _hold(self, workers: list[Any]) -> bool:
        """Keep the group from its first step; whether it had not begun it. A start takes minutes, most of it the first
        batch, which is not waited for where a larger group will wait for it again."""
        names = [worker.actor._actor_id.hex() for worker in workers]
        try:
            return bool(ray.get(self.recorder.hold.remote(names), timeout=LOOK_TIMEOUT_S))
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
            return False


class PolicyTorchTrainer(TorchTrainer):
    """A TorchTrainer whose worker group is sized by the given policy."""

    def __init__(self, *args: Any, scaling_policy: OneReservation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scaling_policy = scaling_policy

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        changed = {**controller_init_kwargs, "scaling_policy": self.scaling_policy}
        return super()._initialize_and_run_controller(**changed)  # type: ignore[misc]  # the stub is of Train V1
