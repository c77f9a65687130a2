"""The stream on a local store: packing, order, dead letters, drops, held-out documents, windows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pretrainer.data import stages
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.filters.filters import judge
from pretrainer.data.held_out import _held_out_rows
from pretrainer.data.ledger.ledger import ChunkKey
from pretrainer.data.packing.packer import PackWindows
from pretrainer.data.pipeline import start_position
from pretrainer.errors import BadDataError
from pretrainer.schema import TOKENIZED, Batch
from tests.data.harness import curated, document, make_plan, packed, stream
from tests.data.stream_parts import TEXTS, documents_in


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


def test_order_in_a_window_depends_on_seed_source_and_window(tmp_path: Path) -> None:
    """One unit and one window per epoch, so that nothing but the permutation of the window can change the order."""

    def rows(folder: str, **changes: object) -> list[bytes]:
        whole = {"chunk_bytes": 1 << 20, "pack_window_tokens": 1 << 20, "slot_sequences": 1}
        blocks = stream(make_plan(tmp_path / folder, TEXTS[:10], **whole, **changes))
        return [block["tokens"] for block in blocks]

    two_windows = rows("a", max_epochs=2)
    orders = [two_windows[: len(two_windows) // 2], two_windows[len(two_windows) // 2 :]]
    orders += [rows("b", order_seed=1), rows("c", name="other")]
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == len(orders)


def test_order_of_units_depends_on_seed_source_and_epoch(tmp_path: Path) -> None:
    plans = [
        make_plan(tmp_path / "a", TEXTS, max_epochs=2),
        make_plan(tmp_path / "b", TEXTS, order_seed=1),
        make_plan(tmp_path / "c", TEXTS, name="other"),
    ]
    places = [[plan.place(p) for p in range(plan.positions)] for plan in plans]
    units = plans[0].units
    orders = [[place.unit for place in of] for of in (places[0][:units], places[0][units:], *places[1:])]
    assert all(sorted(order) == list(range(units)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert [orders[0][place.curated_at] for place in places[0]] == [place.unit for place in places[0]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.97])
def test_resume_at_any_block_reads_only_committed_chunks(tmp_path: Path, share: float) -> None:
    plan = make_plan(tmp_path, TEXTS, max_epochs=2)
    blocks = stream(plan)
    first = int(share * len(blocks))
    start = start_position(plan, first)
    window = next(w for w in plan.windows.read_all() if w.first[0] == start)
    assert window.first_sequence <= first * 4 < window.first_sequence + window.sequences
    rows = [
        row
        for p in range(start, plan.positions)
        for row in stages.read_chunks(pa.table({"position": [p]}), plan, plan.units)
    ]
    assert {row.column("kind")[0].as_py() for row in rows} == {"tokens"}
    assert packed(PackWindows(plan, first), rows) == blocks[first:]


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_every_packing_mode_packs_all_and_resumes_alike(tmp_path: Path, packing: str) -> None:
    plan = make_plan(tmp_path, TEXTS, packing=packing)
    blocks = stream(plan)
    assert documents_in(blocks) == 118
    first = len(blocks) // 2
    positions = range(start_position(plan, first), plan.positions)
    assert packed(PackWindows(plan, first), curated(plan, positions, committed=plan.units)) == blocks[first:]


@pytest.mark.parametrize("trained", [0.5, 1.0])
def test_resume_in_the_middle_of_curation(tmp_path: Path, trained: float) -> None:
    whole = stream(make_plan(tmp_path / "whole", TEXTS))
    plan = make_plan(tmp_path / "cut", TEXTS)
    before = packed(PackWindows(plan, 0), curated(plan, range(plan.units // 2)))
    first = int(len(before) * trained)
    assert trained < 1 or start_position(plan, first) == plan.windows.read_all()[-1].first[0] > 0
    rows = curated(plan, range(start_position(plan, first), plan.positions), committed=plan.ledger.committed_units())
    assert packed(PackWindows(plan, first), rows) == whole[first:]


@pytest.mark.parametrize("chunks_per_actor", [1000, 1])
def test_too_many_dead_letters_stop_the_run(tmp_path: Path, chunks_per_actor: int) -> None:
    texts = [document(n) for n in range(200)]
    plan = make_plan(tmp_path, texts)
    for path in sorted((tmp_path / "corpus").iterdir())[:8]:
        path.write_bytes(path.read_bytes().replace(b'{"text"', b'{~text"'))
    with pytest.raises(BadDataError, match="could not be read"):
        for first in range(0, plan.units, chunks_per_actor):
            curated(plan, range(first, min(first + chunks_per_actor, plan.units)))


def test_filter_drops_are_counted_and_not_packed(tmp_path: Path) -> None:
    texts = [*TEXTS[:9], "too short", "1234567890 " * 80, "# # # # " * 60]
    plan = make_plan(tmp_path, texts, preset="prose")
    blocks, records = stream(plan), list(plan.ledger.records())
    expected = Counter(judge(pa.array(texts, pa.large_string()), "prose").reasons)
    kept = expected.pop(None)
    assert 0 < kept < 12 and documents_in(blocks) == kept == sum(r.kept for r in records)
    assert sum((Counter(r.dropped) for r in records), Counter()) == expected


def test_edited_texts_are_trained_and_rules_can_be_changed(tmp_path: Path) -> None:
    kept = "\n".join(f"Sentence number {number} of this page is kept." for number in range(5))
    page = f"Home About Us Contact\n{kept}\nWe use cookies here, as everybody does."

    def trained(name: str, *rules: str) -> list[str]:
        plan = make_plan(tmp_path / name, [page], preset="c4", rules=rules)
        stream(plan)
        rows = plan.ledger.read_tokens(ChunkKey(0, 0))[0].column("tokens").to_pylist()
        return [plan.tokenizer.decode(ids) for ids in rows]

    assert trained("as published") == [kept]
    assert trained("one rule less", "c4_terminal_punctuation=off") == [page.rsplit("\n", 1)[0]]
    assert trained("another limit", "c4_too_few_sentences=6") == []


def test_held_out_documents_are_dropped_with_their_near_copies(tmp_path: Path) -> None:
    from pretrainer.data.dedup.dedup import signatures
    from pretrainer.schema import to_ipc

    plan = make_plan(tmp_path, TEXTS)
    held = signatures(pa.array([TEXTS[20], TEXTS[7]], pa.large_string()), plan.config.dedup)
    curated(plan, range(plan.units), dedup=InOrderDedup(plan, to_ipc(held.to_table())))
    records = list(plan.ledger.records())
    dropped = {k: sum(r.dropped.get(k, 0) for r in records) for r in records for k in r.dropped}
    assert dropped == {"held_out": 2, "held_out_near": 1, "duplicate_exact": 1}


@pytest.mark.parametrize(
    ("packing", "lengths"), [("concat", [0, 0, 14, 17]), ("best_fit", [0, 0, 15, 16]), ("pad", [0, 7, 9, 15])]
)
def test_held_out_rows_are_packed_like_training(tmp_path: Path, packing: str, lengths: list[int]) -> None:
    plan = make_plan(tmp_path, TEXTS[:1], packing=packing)
    tokens = [[70] * 13, [71] * 7, [72] * 5]  # with bos and eos 15, 9 and 7 ids for rows of 17
    table = pa.table([["a", "b", "c"], [0] * 3, [0, 1, 2], [1] * 3, tokens], schema=TOKENIZED)
    (block,) = _held_out_rows(plan, table).to_pylist()
    batch = Batch.from_row(block, 16)
    assert sorted(batch.lengths) == lengths
    assert len(batch.starts) == (4 if packing == "concat" else 3)


def test_windows_number_sequences_without_gaps(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, max_epochs=2)
    blocks = stream(plan)
    windows = plan.windows.read_all()
    assert [w.first_sequence for w in windows] == np.cumsum([0, *(w.sequences for w in windows)])[:-1].tolist()
    assert windows[-1].first_sequence + windows[-1].sequences == 4 * len(blocks)
    assert all(a.after == b.first for a, b in zip(windows, windows[1:], strict=False))
    for epoch in (0, 1):  # padded at its very end alone
        padding = [i for b in blocks if b["epoch"] == epoch for i in Batch.from_row(b, 16).lengths == 0]
        assert sum(padding) < 4 and padding == sorted(padding)


def test_an_epoch_does_not_depend_on_how_many_follow(tmp_path: Path) -> None:
    """So that a run whose sources came to their ends goes on when max_epochs is raised."""
    one, three = (stream(make_plan(tmp_path / str(n), TEXTS, max_epochs=n)) for n in (1, 3))
    assert one == three[: len(one)] and len(one) < len(three) == 3 * len(one)


def test_window_closes_with_the_chunk_that_fills_it_or_ends_the_epoch(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS, max_epochs=2)
    stream(plan)
    tokens_of_unit = [record.tokens for record in plan.ledger.records()]  # one chunk per unit here
    for window in plan.windows.read_all():
        tokens = [tokens_of_unit[plan.place(p).curated_at] for p in range(window.first[0], window.after[0])]
        assert sum(tokens) == window.tokens
        assert sum(tokens[:-1]) < plan.config.pack_window_tokens
        assert sum(tokens) >= plan.config.pack_window_tokens or window.after[0] % plan.units == 0
