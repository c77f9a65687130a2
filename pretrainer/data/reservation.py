"""CPUs for one task of every stage, from the moment an execution begins.

Ray Data registers an execution with an empty request and lives on a share of what nobody asked for, in whole CPUs of
each node: nothing, where two runs share two CPUs or trainers leave 0.5 of one. With nothing reserved no stage may start
a task; only Ray's guard against standstill starts one now and then, when a trainer already waits, and because nothing
runs, Ray sees no need to ask for more (seen: two trials of a sweep on two cores waited for data half of the time).
So the first request is ours. Ray's own later ones hold at least as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import RateBasedClusterAutoscaler
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class OneTaskOfEach(ExecutionCallback):
    """Ask Ray's coordinator for one task, or the actor, of each stage that needs CPUs."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        scaler = executor._cluster_autoscaler
        assert isinstance(scaler, RateBasedClusterAutoscaler), "Ray's default since 2.57"
        one_each = {op: 1 for op in scaler._non_shuffle_ops if op.min_scheduling_resources().cpu > 0}
        scaler._send_resource_request(scaler._construct_resource_request(one_each))


def install(context: DataContext) -> None:
    """Have executions of this context begin so, once."""
    if OneTaskOfEach not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(OneTaskOfEach)
