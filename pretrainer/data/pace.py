"""How often the loop of Ray Data's executor runs while no task does.

It waits for running tasks only: with none it spins, at 4 to 20 ms of a core a round (seen: 40 % of a core, on two cores
that the trainers want). So it rests after a round, for as long as the trainers' demand allows: it may hand on one slot
block a round, and where it had several to hand on it rests half as long. One length for all does not do: 50 ms starve
the trainers of small slot blocks (seen at 85 blocks/s), 10 ms are 45 % of a slow core at 13 blocks/s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

SHORTEST_S, LONGEST_S = 0.01, 0.05


class Rest(ExecutionCallback):
    """Rest after a round in which no task runs."""

    def __init__(self) -> None:
        self.rest_s, self.handed_on = SHORTEST_S, 0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        topology = executor._topology
        if not topology or any(op.num_active_tasks() for op in topology):
            return
        handed_on = next(reversed(topology)).metrics.num_outputs_taken
        self.rest_s = next_rest_s(self.rest_s, handed_on - self.handed_on)
        self.handed_on = handed_on
        time.sleep(self.rest_s)


def next_rest_s(rest_s: float, handed_on: int) -> float:
    """After a round that handed on so many blocks."""
    factor = 0.5 if handed_on > 1 else 1.0 if handed_on else 1.5
    return min(max(rest_s * factor, SHORTEST_S), LONGEST_S)


def install(context: DataContext) -> None:
    """Have executions of this context rest so, once."""
    if Rest not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Rest)
