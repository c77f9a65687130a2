"""The look-ahead's rules on operators that only have numbers; on Ray itself: test_ray_contract.py.

    python -m pytest -q tests/data/test_lookahead.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pretrainer.data.lookahead import AHEAD_OF_READER, BLOCKS_KEY, CHUNKS_KEY, LookAhead

CHUNKS, BLOCKS = 4, 6


class Op:
    """An operator with what the policy asks of one, connected to those it reads from."""

    def __init__(self, name: str, *before: Op) -> None:
        self.name, self.input_dependencies, self.output_dependencies = name, list(before), []
        self.made = self.used = self.active = self.waiting_in = self.waiting_out = 0
        self.completed = False
        self._ray_actor_task_remote_args: dict[str, int] = {}
        self._input_queues = [SimpleNamespace(num_blocks=lambda op=op: op.in_mix) for op in before]
        self.in_mix = 0
        for op in before:
            op.output_dependencies.append(self)

    @property
    def metrics(self) -> Any:
        return SimpleNamespace(num_task_outputs_generated=self.made, num_task_inputs_processed=self.used)

    def num_active_tasks(self) -> int:
        return self.active

    def has_completed(self) -> bool:
        return self.completed

    def total_enqueued_output_blocks(self) -> int:
        return self.waiting_out

    def total_enqueued_input_blocks(self) -> int:
        return self.waiting_in


def chain() -> list[Op]:
    """expand -> read -> pack of one source."""
    expand = Op("MapBatches(expand_positions)")
    read = Op("MapBatches(read_chunks)", expand)
    return [expand, read, Op("MapBatches(PackWindows)", read)]


def policy(*ops: Op) -> LookAhead:
    config = {CHUNKS_KEY: CHUNKS, BLOCKS_KEY: BLOCKS}
    context: Any = SimpleNamespace(get_config=lambda key, default: config.get(key, default))
    topology: Any = {op: op for op in ops}
    resources: Any = None
    return LookAhead(context, topology, resources)


def allows(rules: LookAhead, op: Any) -> bool:
    return rules.can_add_input(op)


@pytest.mark.parametrize(("active", "made", "used", "answer"), [(0, 7, 4, True), (0, 8, 4, False), (1, 0, 0, False)])
def test_descriptors_one_stretch_at_a_time_while_few_wait(active: int, made: int, used: int, answer: bool) -> None:
    expand, read, pack = chain()
    expand.active, expand.made, read.used, pack.active = active, made, used, 1
    assert allows(policy(expand, read, pack), expand) is answer


@pytest.mark.parametrize(("made", "active", "packed", "answer"), [(5, 1, 3, True), (5, 2, 3, False), (9, 0, 5, False)])
def test_chunks_between_reader_and_packer_are_bounded(made: int, active: int, packed: int, answer: bool) -> None:
    expand, read, pack = chain()
    read.made, read.active, pack.used = made, active, packed
    assert allows(policy(expand, read, pack), read) is answer


CASES = [(2, 2, 1, True), (2, 2, 2, False), (6, 0, 0, False)]


@pytest.mark.parametrize(("out", "split_in", "split_out", "answer"), CASES)
def test_slot_blocks_between_packer_and_trainers_are_bounded(
    out: int, split_in: int, split_out: int, answer: bool
) -> None:
    *before, pack = chain()
    split = Op("split(2)", pack)
    pack.waiting_out, split.waiting_in, split.waiting_out = out, split_in, split_out
    assert allows(policy(*before, pack, split), pack) is answer


def test_only_the_packer_runs_ahead_of_its_reader() -> None:
    ops = chain()
    rules = policy(*ops)
    for op in ops:
        allows(rules, op)
    assert [op._ray_actor_task_remote_args for op in ops] == [{}, {}, {AHEAD_OF_READER: 2 * BLOCKS}]


def test_a_mixer_is_no_packer_although_its_name_holds_theirs() -> None:
    one, other = chain(), chain()
    mix = Op("Mix(MapBatches(PackWindows), MapBatches(PackWindows))", one[-1], other[-1])
    del mix._ray_actor_task_remote_args  # Ray's has none
    assert allows(policy(*one, *other, mix), mix)


def two_sources() -> tuple[list[Op], list[Op], LookAhead]:
    one, other = chain(), chain()
    mix = Op("Mix", one[-1], other[-1])
    return one, other, policy(*one, *other, mix)


def test_slot_blocks_of_another_source_do_not_hold_a_packer_back() -> None:
    one, other, rules = two_sources()
    one[-1].in_mix = BLOCKS
    assert not allows(rules, one[-1]) and allows(rules, other[-1])


def test_source_that_is_ahead_waits_for_one_that_has_nothing_for_the_mixer() -> None:
    one, other, rules = two_sources()
    assert allows(rules, one[1]) and allows(rules, other[1])
    one[-1].in_mix = 1
    assert not allows(rules, one[1]) and allows(rules, other[1])
    other[-1].waiting_out = 1
    assert allows(rules, one[1]) and allows(rules, other[1])


def test_source_at_its_end_holds_nobody_back() -> None:
    one, other, rules = two_sources()
    one[-1].in_mix, other[-1].completed = 1, True
    assert allows(rules, one[1])
