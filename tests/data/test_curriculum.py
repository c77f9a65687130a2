"""Segments of a run: what each trains, where a new line begins, that nothing is lost or repeated at a border."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pretrainer.config import Config, DataConfig, SegmentConfig, SourceConfig, TrainConfig
from pretrainer.config_load import parse_config, to_yaml
from pretrainer.data.curriculum import Curriculum, line_start, make_segments, realised_shares
from pretrainer.data.ledger.lines import open_line, read_line
from pretrainer.data.ledger.windows import Window
from pretrainer.errors import ConfigError
from pretrainer.storage import Store
from tests.data.harness import curated, document, make_plan, packed, stream

from pretrainer.data.packing.packer import PackWindows  # isort: skip

SOURCES = (SourceConfig(name="web", uris=("/nowhere",)), SourceConfig(name="books", uris=("/nowhere",)))


def config(*segments: SegmentConfig, steps: int = 20, **data: object) -> Config:
    values: dict = {"sources": SOURCES, "seq_len": 16, "slot_sequences": 4, "pack_window_tokens": 4224, "mix_cycle": 8}
    return Config(
        data=DataConfig(curriculum=segments, **{**values, **data}),
        train=TrainConfig(steps=steps, global_batch_tokens=6 * 64),
    )


def test_without_a_curriculum_there_is_one_segment() -> None:
    (segment,) = make_segments(config(), [3, 1])
    assert (segment.first_step, segment.end_step, segment.seq_len, segment.line) == (0, 20, 16, 0)
    assert segment.order.shares == (6, 2)


def test_steps_and_shares_of_segments() -> None:
    two = config(SegmentConfig(until=0.8, shares=(0.75, 0.25)), SegmentConfig(shares=(0.25, 0.75)))
    first, second = make_segments(two, [1, 1])
    assert (first.end_step, second.first_step, second.end_step) == (16, 16, 20)
    assert (first.order.shares, second.order.shares) == ((6, 2), (2, 6))
    both = Curriculum((first, second), 1)
    assert [both.at(step) for step in (15, 16, 20)] == [first, second, second]


def test_a_segment_of_the_same_line_goes_on_where_the_one_before_left_its_sources() -> None:
    two = config(SegmentConfig(until=0.55, shares=(0.75, 0.25)), SegmentConfig(shares=(0.25, 0.75)))
    segments = make_segments(two, [1, 1])
    seen: dict[int, list[int]] = {0: [], 1: []}
    for block in range(20 * 6):
        source, nth = Curriculum(segments, 6).at(block).order.expected(block)
        seen[source].append(nth)
    assert all(numbers == list(range(len(numbers))) for numbers in seen.values())
    assert len(seen[0]) + len(seen[1]) == 120


def test_the_number_of_a_block_is_the_inverse_of_what_is_expected() -> None:
    three = (SegmentConfig(until=0.3, shares=(1, 0)), SegmentConfig(until=0.6), SegmentConfig(seq_len=32))
    order = Curriculum(make_segments(config(*three), [3, 1]), 6)
    for block in range(120):
        source, nth = order.expected(block)
        assert order.number(order.line_of(block), source, nth) == block
        assert order.slot_sequences_of(block) == (4 if block < 72 else 2)
    taken = order.segments[1].order.taken_at(72)
    assert [order.number(0, source, taken[source]) for source in (0, 1)] == [None, None]


def test_restart_inside_a_segment_deals_from_a_cycle_of_that_segment() -> None:
    two = config(SegmentConfig(until=0.55, shares=(0.75, 0.25)), SegmentConfig(shares=(0.25, 0.75)))
    order = make_segments(two, [1, 1])[1].order
    for block in range(66, 120):
        start, by_source = order.restart(block)
        assert start <= block < start + 8
        at = {source: 0 for source in (0, 1)}
        for number in range(start, start + 8):
            source, nth = order.expected(number)
            assert nth == by_source[source] + at[source]
            at[source] += 1


def test_a_source_can_sit_out() -> None:
    two = config(SegmentConfig(until=0.5, shares=(1, 0)), SegmentConfig(shares=(0.5, 0.5)))
    first, second = make_segments(two, [1, 1])
    assert {first.order.expected(block)[0] for block in range(60)} == {0}
    assert second.order.expected(60) == (0, 60) and second.order.expected(61) == (1, 0)


def test_other_sequence_length_keeps_the_tokens_of_a_slot_block() -> None:
    two = config(SegmentConfig(until=0.5), SegmentConfig(seq_len=64))
    first, second = make_segments(two, [1, 1])
    assert (second.line, second.seq_len, second.slot_sequences) == (1, 64, 1)
    assert second.order.taken == (0, 0) and second.order.expected(60) == (0, 0)
    ours = second.of(replace(two, train=replace(two.train, micro_batch_sequences=2)))
    assert ours.slot_blocks_per_step == two.slot_blocks_per_step and ours.train.micro_batch_sequences == 1
    assert ours.data.seq_len == 64 and ours.total_steps == two.total_steps


def test_realised_shares_stand_beside_the_asked_ones() -> None:
    two = config(SegmentConfig(until=0.5, shares=(0.9, 0.1)), SegmentConfig(shares=(0.25, 0.75)))
    segments = make_segments(two, [1, 1])
    (web_asked, web), (_asked, books) = realised_shares(segments, 20, 6)
    given = [Curriculum(segments, 6).at(block).order.expected(block)[0] for block in range(120)]
    assert web_asked == pytest.approx(0.575) and web == given.count(0) / 120 and web + books == 1
    for step in (4, 13):
        (_asked, web), _books = realised_shares(segments, step, 6)
        assert web == pytest.approx(given[: 6 * step].count(0) / (6 * step))


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ((SegmentConfig(until=0.5), SegmentConfig(until=0.5)), "until"),
        ((SegmentConfig(until=0.5),), "end at 1"),
        ((SegmentConfig(shares=(1.0,)),), "each of the 2 sources"),
        ((SegmentConfig(seq_len=24),), "must divide"),
        ((SegmentConfig(seq_len=66),), "must divide"),
    ],
)
def test_impossible_curriculum_is_refused(segments: tuple[SegmentConfig, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(*segments)


def test_segment_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no step"):
        make_segments(config(SegmentConfig(until=0.001), SegmentConfig()), [1, 1])


def test_a_curriculum_reads_back_from_yaml() -> None:
    two = config(SegmentConfig(until=0.8, shares=(0.75, 0.25)), SegmentConfig(shares=(0.25, 0.75), seq_len=32))
    assert parse_config(to_yaml(two)) == two


def window(number: int, first: tuple[int, int], after: tuple[int, int]) -> Window:
    known = {"window": number, "first": first, "after": after, "first_sequence": 10 * number, "sequences": 10}
    return Window(**{**dict.fromkeys(Window.__dataclass_fields__, 0), **known})  # type: ignore[arg-type]


def test_a_line_begins_after_the_last_touched_window() -> None:
    assert line_start(None, 0, (7, 3)).begin == (7, 3)
    start = line_start(window(1, (2, 1), (5, 0)), 14, (0, 0))
    assert (start.begin, start.skipped_sequences) == ((5, 0), 6)
    assert line_start(window(1, (2, 1), (5, 0)), 20, (0, 0)).skipped_sequences == 0


def test_a_new_line_packs_the_rest_of_the_documents_once(tmp_path: Path) -> None:
    """Two lines over one source: every document of the second is new, and none between them is lost."""
    plan = make_plan(tmp_path, [document(n) for n in range(160)], pack_window_tokens=2200)
    base = Config(
        data=replace(plan.config, curriculum=(SegmentConfig(until=0.3), SegmentConfig(seq_len=32))),
        train=TrainConfig(steps=10, global_batch_tokens=2 * 64),
    )
    segments = make_segments(base, [1.0])
    first_line = stream(plan)
    (second,) = open_line(Store(plan.data_uri), [plan], segments, 1, 2)
    (start,) = read_line(Store(plan.data_uri), 1)
    trained = {w.window for w in plan.windows.read_all() if w.first_sequence < 6 * 4}
    assert second.begin == start.begin == plan.windows.read_all()[max(trained)].after and second.begin > (0, 0)
    assert start.skipped_sequences == sum(w.sequences for w in plan.windows.read_all() if w.window in trained) - 24
    blocks = packed(PackWindows(second, 0), curated(second, range(second.begin[0], plan.positions)))
    rest = [w.documents for w in plan.windows.read_all() if w.window not in trained]
    assert sum(w.documents for w in second.windows.read_all()) == sum(rest)
    assert len(blocks) > 0 and len(blocks[0]["tokens"]) == 2 * 33 * 4 and len(first_line) > 6
    (again,) = open_line(Store(plan.data_uri), [plan], segments, 1, 2)
    assert again == second
