"""CPUs for one task of every stage, from the moment an execution begins and as long as it lasts.

Ray Data registers an execution with an empty request and lives on a share of what nobody asked for, in whole CPUs of
each node: nothing, where two runs share two CPUs or trainers leave 0.5 of one. With nothing reserved no stage may start
a task; only Ray's guard against standstill starts one now and then, when a trainer already waits, and because nothing
runs, Ray sees no need to ask for more. Later the execution that came first asks for twice what it uses, and is served
first. (Seen: two trials of a sweep on two cores waited for data half of the time.) So

- the first request is ours: one task, or the actor, of each stage. An autoscaler adds a node where that finds no room;
- one task of each stage is allowed whatever Ray's coordinator of reservations says. Ray's scheduler still gives a task
  its CPUs, or lets it wait for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import ExecutionResources
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class OneTaskOfEach(ExecutionCallback):
    """Ask for one task of each stage that needs CPUs, and count on no less."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        scaler: Any = executor._cluster_autoscaler
        stages = [op for op in executor._topology or {} if op.min_scheduling_resources().cpu > 0]
        if isinstance(executor._cluster_autoscaler, RateBasedClusterAutoscaler):  # Ray's default
            scaler._send_resource_request(scaler._construct_resource_request(dict.fromkeys(stages, 1)))
        least, granted = sum(op.min_scheduling_resources().cpu for op in stages), scaler.get_total_resources

        def total() -> ExecutionResources:
            found = granted()
            return found.copy(cpu=max(found.cpu, least))

        scaler.get_total_resources = total


def install(context: DataContext) -> None:
    """Have executions of this context begin so, once."""
    if OneTaskOfEach not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(OneTaskOfEach)
