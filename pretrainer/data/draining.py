"""The one actor of an in-order stage works on while its node is about to go.

Ray Data gives no tasks to actors on nodes that have notice, for other actors of the pool can have them. A stage that
sees its chunks in order has no other: the stream would stand still until the node is gone, and the trainers, who wait
for their next batch, could not save before that. (Seen: a notice of 40 s passed so, and 16 steps were trained again.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import _NodeAwareActorPool

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class OnlyActor(_NodeAwareActorPool):
    """A pool of one: for it no node has notice."""

    @property
    def _draining_nodes_snapshot(self) -> dict[str, int]:  # type: ignore[override]  # Ray sets it at each look
        return {}

    @_draining_nodes_snapshot.setter
    def _draining_nodes_snapshot(self, found: dict[str, int]) -> None:
        pass


class WorkOn(ExecutionCallback):
    """Make it so in the pools of an execution."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        pools = [getattr(op, "_actor_pool", None) for op in executor._topology or {}]
        for pool in pools:
            if type(pool) is _NodeAwareActorPool and pool.max_size() == 1:
                pool.__class__ = OnlyActor


def install(context: DataContext) -> None:
    """Have executions of this context work so, once."""
    if WorkOn not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(WorkOn)
