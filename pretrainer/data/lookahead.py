"""Bounded look-ahead for Ray Data's streaming executor.

Ray bounds what an operator may run ahead by *bytes*. A stream of descriptors (one int per chunk) has almost none, so
without this policy a source of a million chunks floods the executor with a million tiny blocks before the first one
is read (seen on Ray 2.60: 10^5 descriptors starved everything else). The policy lets an operator whose name contains
`expand` be at most `data.look_ahead_chunks` blocks ahead of the operator after it.

`backpressure_policies.enabled` is not a public setting of Ray: tests/data/test_ray_contract.py pins it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator

LOOK_AHEAD_KEY = "pretrainer.look_ahead_chunks"
EXPAND = "expand_positions"


class LookAhead(BackpressurePolicy):
    """Stop reading outputs of the descriptor operator while enough of them wait."""

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        if EXPAND not in op.name:
            return None
        taken = sum(down.metrics.num_task_inputs_processed for down in op.output_dependencies)
        waiting = op.metrics.num_task_outputs_generated - taken
        return 0 if waiting >= self._data_context.get_config(LOOK_AHEAD_KEY, 32) else None


def install(context: DataContext, look_ahead_chunks: int) -> None:
    """Add the policy to a data context, once."""
    context.set_config(LOOK_AHEAD_KEY, look_ahead_chunks)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, LookAhead])
