"""Bounded look-ahead for Ray Data's streaming executor, in chunks and slot blocks.

Ray bounds what an operator may run ahead by *bytes*. That is not enough twice: a stream of descriptors (one int per
chunk) has almost none, so a source of a million chunks floods the executor before the first one is read; and the packer
would run through the whole corpus long before training needs it, at a few milliseconds of the executor's time per slot
block (seen on Ray 2.60: both starved the trainers of a 2-core machine). So

- descriptors: no stretch of them is expanded while `look_ahead_chunks` units wait to be read;
- chunks: no reader starts while `look_ahead_chunks` are between reader and packer;
- slot blocks: the packer takes no chunk while `look_ahead_blocks` are between it and the trainers. A window's blocks
  come at once, and Ray lets a call wait for its reader at every second one, so a round of the executor's loop (2 to 4
  ms of a core) moved one block; a call of the packer may be `look_ahead_blocks` ahead of its reader instead;
- sources: one that has slot blocks waiting starts no reader while the mixer has none of another source. Ray shares few
  CPUs out by operator, and a large source would otherwise keep a small one from the first step for a minute.

`backpressure_policies.enabled` is not a public setting of Ray: tests/data/test_ray_contract.py pins it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator

CHUNKS_KEY, BLOCKS_KEY = "pretrainer.look_ahead_chunks", "pretrainer.look_ahead_blocks"
EXPAND, READ, PACK = "expand_positions", "read_chunks", ("PackWindows", "CloseChunks")
AHEAD_OF_READER = "_generator_backpressure_num_objects"
OBJECTS_PER_BLOCK = 2  # the block and its metadata


class LookAhead(BackpressurePolicy):
    """Start no task while enough waits further down.

    Only starting tasks is held back, not reading what they made: Ray relaxes that limit whenever the operators below
    are idle, which they are when trainers are slow, and a task whose output waits keeps its executor spinning.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        if EXPAND in op.name:
            # One stretch at a time: how many units it holds is not known before they are made.
            waiting = _made(op) - _used(op.output_dependencies[0])
            return op.num_active_tasks() == 0 and waiting < self._limit(CHUNKS_KEY)
        if READ in op.name:
            pack = _downstream(op, PACK)
            in_flight = _made(op) + op.num_active_tasks() - _used(pack)
            return in_flight < self._limit(CHUNKS_KEY) and not self._must_yield(pack)
        if any(name in op.name for name in PACK):
            self._let_run_ahead(op)
            return self._waiting_below(op) < self._limit(BLOCKS_KEY)
        return True

    def _let_run_ahead(self, op: PhysicalOperator) -> None:
        """Of the packer alone: a reader that runs ahead would fill the object store with the chunks of its unit."""
        if len(op.input_dependencies) > 1:  # the mixer: its name holds those of what it mixes
            return
        op._ray_actor_task_remote_args[AHEAD_OF_READER] = OBJECTS_PER_BLOCK * self._limit(BLOCKS_KEY)  # type: ignore[attr-defined]

    def _must_yield(self, pack: PhysicalOperator) -> bool:
        """Whether this source is ahead while the mixer has nothing of another one that is not at its end."""
        mix = pack.output_dependencies[0] if pack.output_dependencies else None
        if mix is None or len(mix.input_dependencies) < 2 or self._waiting_at(mix, pack) == 0:
            return False
        return any(self._waiting_at(mix, other) == 0 and not other.has_completed() for other in mix.input_dependencies)

    def _waiting_at(self, mix: PhysicalOperator, pack: PhysicalOperator) -> int:
        return self._topology[pack].total_enqueued_output_blocks() + _mix_waits(mix, pack)

    def _limit(self, key: str) -> int:
        return int(self._data_context.get_config(key, 32))

    def _waiting_below(self, op: PhysicalOperator) -> int:
        """Blocks in every queue from this operator's output to the trainers."""
        waiting, before = self._topology[op].total_enqueued_output_blocks(), op
        for after in list(_chain(op))[1:]:
            is_mix = len(after.input_dependencies) > 1
            inputs = _mix_waits(after, before) if is_mix else self._topology[after].total_enqueued_input_blocks()
            waiting, before = waiting + inputs + self._topology[after].total_enqueued_output_blocks(), after
        return waiting


def _chain(op: PhysicalOperator) -> Iterator[PhysicalOperator]:
    yield op
    for down in op.output_dependencies:
        yield from _chain(down)


def _downstream(op: PhysicalOperator, names: tuple[str, ...]) -> PhysicalOperator:
    return next(o for o in _chain(op) if any(name in o.name for name in names))


def _made(op: PhysicalOperator) -> int:
    return op.metrics.num_task_outputs_generated


def _used(op: PhysicalOperator) -> int:
    return op.metrics.num_task_inputs_processed


def _mix_waits(mix: PhysicalOperator, source: PhysicalOperator) -> int:
    """Blocks of one source that wait in the mixer for their turn."""
    return int(mix._input_queues[mix.input_dependencies.index(source)].num_blocks())  # type: ignore[attr-defined]


def install(context: DataContext, look_ahead_chunks: int, look_ahead_blocks: int) -> None:
    """Add the policy to a data context, once."""
    context.set_config(CHUNKS_KEY, look_ahead_chunks)
    context.set_config(BLOCKS_KEY, look_ahead_blocks)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, LookAhead])
