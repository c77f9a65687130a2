"""The stages in one process: the stream is a function of its inputs, whatever Ray does to the calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pretrainer.data import stages
from pretrainer.data.in_order import InOrderDedup
from pretrainer.data.ledger import ChunkKey
from pretrainer.data.packer import PackWindows
from pretrainer.data.pipeline import start_position
from pretrainer.errors import BadDataError, StorageError, StreamError
from pretrainer.schema import BOS, Batch
from tests.data.harness import curated, document, make_plan, no_held_out, packed, stream

TEXTS = [document(n) for n in range(120)]
TEXTS[50] = TEXTS[3]  # an exact duplicate
TEXTS[90] = TEXTS[7].rsplit(" ", 1)[0] + " changed"  # a near-duplicate


def documents_in(blocks: list[dict]) -> int:
    return sum(int((Batch.from_row(block, 16).tokens == BOS).sum()) for block in blocks)


def test_every_kept_document_is_packed_once(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    blocks = stream(plan)
    records = list(plan.ledger.records())
    assert sum(r.read for r in records) == 120
    dropped = {k: sum(r.dropped.get(k, 0) for r in records) for k in ("duplicate_exact", "duplicate_near")}
    assert dropped == {"duplicate_exact": 1, "duplicate_near": 1}
    assert documents_in(blocks) == sum(r.kept for r in records) == 118
    assert [b["block"] for b in blocks] == list(range(len(blocks)))
    assert plan.ledger.committed_units() == plan.units


def test_same_input_elsewhere_gives_the_same_stream(tmp_path: Path) -> None:
    assert stream(make_plan(tmp_path / "a", TEXTS)) == stream(make_plan(tmp_path / "b", TEXTS))


def test_order_seed_changes_the_order_and_nothing_else(tmp_path: Path) -> None:
    one, other = stream(make_plan(tmp_path / "a", TEXTS)), stream(make_plan(tmp_path / "b", TEXTS, order_seed=1))
    assert one != other and documents_in(one) == documents_in(other)


def test_second_epoch_has_the_same_documents_in_another_order(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, max_epochs=2)
    blocks = stream(plan)
    turn = next(w for w in plan.windows.read_all() if w.epoch == 1)
    first = [b for b in blocks if (b["block"] + 1) * 4 <= turn.first_sequence]
    assert documents_in(blocks) == 2 * 118
    assert {b["epoch"] for b in blocks} == {0, 1}
    assert [b["tokens"] for b in blocks[-len(first) :]] != [b["tokens"] for b in first]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.97])
def test_resume_at_any_block_reads_only_committed_chunks(tmp_path: Path, share: float) -> None:
    plan = make_plan(tmp_path, TEXTS, max_epochs=2)
    blocks = stream(plan)
    first = int(share * len(blocks))
    rows = [
        row
        for p in range(start_position(plan, first), plan.positions)
        for row in stages.read_chunks(pa.table({"position": [p]}), plan, plan.units)
    ]
    assert {row.column("kind")[0].as_py() for row in rows} == {"tokens"}
    assert packed(PackWindows(plan, first), rows) == blocks[first:]


def test_resume_in_the_middle_of_curation(tmp_path: Path) -> None:
    whole = stream(make_plan(tmp_path / "whole", TEXTS))
    plan = make_plan(tmp_path / "cut", TEXTS)
    before = packed(PackWindows(plan, 0), curated(plan, range(plan.units // 2)))
    first = len(before) // 2
    rows = curated(plan, range(start_position(plan, first), plan.positions), committed=plan.ledger.committed_units())
    assert packed(PackWindows(plan, first), rows) == whole[first:]


# What Ray may do to an in-order stage (seen on Ray 2.60 when a node is lost) ------------------------------------------
def test_replayed_chunks_get_their_first_answer(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    dedup = InOrderDedup(plan, no_held_out(plan))
    raw = [row for p in range(plan.units) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 0)]
    first = [dedup(row) for row in raw]
    assert [dedup(row).equals(want) for row, want in zip(raw[3:9], first[3:9], strict=True)] == [True] * 6
    fresh = InOrderDedup(plan, no_held_out(plan))  # a new actor with empty state that sees only a few old chunks
    assert [fresh(raw[i]).equals(first[i]) for i in (7, 2, len(raw) - 1)] == [True] * 3


def test_new_dedup_actor_goes_on_with_the_same_decisions(tmp_path: Path) -> None:
    one, other = make_plan(tmp_path / "a", TEXTS), make_plan(tmp_path / "b", TEXTS)
    want = curated(one, range(one.units))
    half = one.units // 2
    got = curated(other, range(half)) + curated(other, range(half, other.units))  # each call makes a new actor
    assert [row.column("docs") for row in got] == [row.column("docs") for row in want]


def test_gap_before_the_dedup_stage_stops(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    with pytest.raises(StreamError, match="was expected"):
        curated(plan, [0, 2])


def test_packer_answers_replays_and_new_actors_alike(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    rows = curated(plan, range(plan.units))
    packer = PackWindows(plan, 0)
    by_row = [packed(packer, [row]) for row in rows]
    assert [packed(packer, [rows[i]]) for i in (4, 3, 5)] == [by_row[i] for i in (4, 3, 5)]
    fresh = PackWindows(plan, 0)
    assert [packed(fresh, [rows[i]]) for i in (9, 2, 6)] == [by_row[i] for i in (9, 2, 6)]


def test_new_packer_inside_an_open_window_reads_what_it_has_not_seen(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "a", TEXTS)
    want = stream(plan)
    other = make_plan(tmp_path / "b", TEXTS)
    rows = curated(other, range(other.units))
    cut = 5
    got = packed(PackWindows(other, 0), rows[:cut]) + packed(PackWindows(other, 0), rows[cut:])
    assert got == want


def test_two_chunks_in_one_call_stop(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    rows = curated(plan, [0, 1])
    with pytest.raises(StreamError, match="instead of 1"):
        stages.one_chunk(pa.concat_tables(rows))


# Durable records ------------------------------------------------------------------------------------------------------
def test_changed_token_shard_is_refused(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    stream(plan)
    shard = next((tmp_path / "data/ledger/synthetic-c/tokens").iterdir())
    shard.write_bytes(shard.read_bytes().replace(b"\x01", b"\x02", 1))
    with pytest.raises(StreamError, match="does not match"):
        plan.ledger.read_tokens(ChunkKey.parse(shard.name))


def test_a_record_is_never_overwritten_with_other_bytes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    rows = curated(plan, [0])
    fresh = next(iter(stages.read_chunks(pa.table({"position": [0]}), plan, 0)))
    assert stages.tokenize_chunk(InOrderDedup(plan, no_held_out(plan))(fresh), plan).equals(
        rows[0]
    )  # the same again: fine
    other = make_plan(tmp_path / "other", TEXTS[::-1])
    raw = next(iter(stages.read_chunks(pa.table({"position": [0]}), other, 0)))
    changed = InOrderDedup(other, no_held_out(other))(raw)
    with pytest.raises(StorageError, match="other bytes"):
        stages.tokenize_chunk(changed, plan)


def test_only_the_contiguous_prefix_counts(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    stream(plan)
    gone = tmp_path / "data/ledger/synthetic-c/chunks/000000003-00000-e.json"
    gone.unlink()
    assert plan.ledger.committed_units() == 3
    assert [r.unit for r in plan.ledger.records()] == [0, 1, 2]


# Bad input ------------------------------------------------------------------------------------------------------------
def test_bad_records_become_dead_letters_and_are_counted(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    broken = sorted((tmp_path / "corpus").iterdir())[2]
    broken.write_bytes(broken.read_bytes().replace(b'{"text"', b'{~text"', 1))
    blocks = stream(plan)
    records = list(plan.ledger.records())
    assert sum(r.dead_letters for r in records) == 1
    assert documents_in(blocks) == 117
    letters = [p.read_text() for p in (tmp_path / "data/ledger/synthetic-c/dead_letters").iterdir()]
    assert len(letters) == 1 and '"reason": "bad_json"' in letters[0] and broken.name in letters[0]


def test_too_many_dead_letters_stop_the_run(tmp_path: Path) -> None:
    texts = [document(n) for n in range(200)]
    plan = make_plan(tmp_path, texts)
    for path in sorted((tmp_path / "corpus").iterdir())[:8]:
        path.write_bytes(path.read_bytes().replace(b'{"text"', b'{~text"'))
    with pytest.raises(BadDataError, match="could not be read"):
        stream(plan)


def test_held_out_documents_are_dropped_with_their_near_copies(tmp_path: Path) -> None:
    from pretrainer.data.dedup import signatures
    from pretrainer.schema import to_ipc

    plan = make_plan(tmp_path, TEXTS)
    held = signatures(pa.array([TEXTS[20], TEXTS[7]], pa.large_string()), plan.config.dedup)
    curated(plan, range(plan.units), dedup=InOrderDedup(plan, to_ipc(held.to_table())))
    records = list(plan.ledger.records())
    dropped = {k: sum(r.dropped.get(k, 0) for r in records) for r in records for k in r.dropped}
    assert dropped == {"held_out": 2, "held_out_near": 1, "duplicate_exact": 1}


def test_windows_number_sequences_without_gaps(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, max_epochs=2)
    blocks = stream(plan)
    windows = plan.windows.read_all()
    assert [w.first_sequence for w in windows] == np.cumsum([0, *(w.sequences for w in windows)])[:-1].tolist()
    assert windows[-1].first_sequence + windows[-1].sequences == 4 * len(blocks)
    assert all(a.after == b.first for a, b in zip(windows, windows[1:], strict=False))
