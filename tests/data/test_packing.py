"""Packing: every token exactly once, in its document's order, with its boundaries."""

import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DataConfig, SourceConfig
from pretrainer.data.packing.packing import (
    PACKERS,
    Rows,
    empty_row,
    join_documents,
    pack_concat,
    pack_window,
    slot_block,
    window_permutation,
)
from pretrainer.data.packing.placement import best_fit_decreasing
from pretrainer.schema import BOS, EOS, PAD, TOKENIZED, Batch, Specials

examples = settings(deadline=None, max_examples=60)
ROW_LENGTHS = st.integers(3, 17)
DOCUMENTS = st.lists(st.lists(st.integers(70, 500), max_size=40), max_size=12)


def tokenized(documents: list[list[int]]) -> pa.Table:
    n = len(documents)
    return pa.table([[str(i) for i in range(n)], [0] * n, list(range(n)), [1] * n, documents], schema=TOKENIZED)


def texts_of(rows: np.ndarray, lengths: np.ndarray) -> list[int]:
    return [int(t) for row, n in zip(rows, lengths, strict=True) for t in row[:n]]


def joined(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    flat = np.array([t for d in documents for t in d], np.uint32)
    return join_documents(flat, np.cumsum([0, *map(len, documents)]), Specials())


def packed(mode: str, documents: list[list[int]], length: int) -> Rows:
    return PACKERS[mode](*joined(documents), length, PAD)


def pieces_of(rows: Rows) -> list[tuple[int, int, list[int]]]:
    """(document, row, ids) of each start, in order of the rows."""
    found = []
    for number in range(len(rows)):
        row = rows.row(number)
        ends = [*row.starts[1:], row.length]
        for document, begin, end in zip(row.documents, row.starts, ends, strict=True):
            found.append((int(document), number, row.tokens[begin:end].tolist()))
    return found


@examples
@given(DOCUMENTS, ROW_LENGTHS)
def test_concat_holds_the_documents_end_to_end(documents: list[list[int]], length: int) -> None:
    rows = packed("concat", documents, length)
    assert texts_of(rows.tokens, rows.lengths) == [t for d in documents for t in (BOS, *d, EOS)]
    begins = [s for s in rows.starts if rows.tokens.ravel()[s] == BOS]
    assert len(begins) == len(documents)
    assert set(rows.starts) - set(begins) == {r * length for r in range(len(rows))} - set(begins)


@pytest.mark.parametrize("mode", PACKERS)
@examples
@given(DOCUMENTS, ROW_LENGTHS)
def test_every_id_stands_once_and_in_order(mode: str, documents: list[list[int]], length: int) -> None:
    rows = packed(mode, documents, length)
    own: list[list[list[int]]] = [[] for _ in documents]
    for document, _row, ids in pieces_of(rows):
        own[document].append(ids)
    assert [sum(ids, []) for ids in own] == [[BOS, *d, EOS] for d in documents]
    assert (rows.documents, rows.discarded) == (len(documents), 0)
    assert rows.padded == rows.tokens.size - sum(len(d) + 2 for d in documents)
    assert rows.split == sum(len(ids) > 1 for ids in own)


@pytest.mark.parametrize("mode", PACKERS)
@examples
@given(DOCUMENTS, ROW_LENGTHS)
def test_a_row_is_filled_from_the_left_and_padded_behind(mode: str, documents: list[list[int]], length: int) -> None:
    rows = packed(mode, documents, length)
    for number, (row, used) in enumerate(zip(rows.tokens, rows.lengths, strict=True)):
        assert 0 < used <= length and rows.row(number).starts[0] == 0
        assert (row[:used] != PAD).all() and (row[used:] == PAD).all()


@pytest.mark.parametrize("mode", ["best_fit", "pad"])
@examples
@given(DOCUMENTS, ROW_LENGTHS)
def test_only_documents_longer_than_a_row_are_cut(mode: str, documents: list[list[int]], length: int) -> None:
    pieces = pieces_of(packed(mode, documents, length))
    counts = Counter(document for document, _row, _ids in pieces)
    assert counts == {n: -(-(len(d) + 2) // length) for n, d in enumerate(documents)}
    assert all(len(ids) > 1 for _document, _row, ids in pieces), "a piece of one id is no target"


@examples
@given(DOCUMENTS, ROW_LENGTHS)
def test_pad_gives_each_piece_its_row(documents: list[list[int]], length: int) -> None:
    pieces = pieces_of(packed("pad", documents, length))
    assert [row for _document, row, _ids in pieces] == list(range(len(pieces)))


@examples
@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 40))
def test_best_fit_is_the_plain_one(lengths: list[int], row_length: int) -> None:
    rows, columns = best_fit_decreasing(np.array(lengths, np.int64), row_length)
    room: list[int] = []
    filled: list[int] = []  # time at which each row was filled last
    for time, piece in enumerate(sorted(range(len(lengths)), key=lambda p: (-lengths[p], p))):
        fitting = [r for r in range(len(room)) if room[r] >= lengths[piece]]
        row = min(fitting, key=lambda r: (room[r], -filled[r])) if fitting else len(room)
        if row == len(room):
            room, filled = [*room, row_length], [*filled, time]
        assert (rows[piece], columns[piece]) == (row, row_length - room[row])
        room[row], filled[row] = room[row] - lengths[piece], time


def log_normal_documents(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.random.default_rng(0).lognormal(np.log(400), 1.2, tokens // 500).astype(np.int64)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), tokens) + 1]
    return join_documents(np.full(lengths.sum(), 100, np.uint32), np.concatenate([[0], np.cumsum(lengths)]), Specials())


def library_documents() -> tuple[np.ndarray, np.ndarray]:
    """A piece per four bytes of each file of the standard library: lengths as a tokenizer makes them of real code."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    lengths = np.array([path.stat().st_size // 4 for path in sorted(folder.glob("*.py"))])
    return join_documents(np.full(lengths.sum(), 100, np.uint32), np.concatenate([[0], np.cumsum(lengths)]), Specials())


def test_best_fit_wastes_less_than_a_hundredth_of_a_default_window() -> None:
    config = DataConfig(sources=(SourceConfig(name="s", uris=("x",)),))
    rows = PACKERS["best_fit"](*log_normal_documents(config.pack_window_tokens), config.seq_len + 1, PAD)
    assert rows.padded < 0.001 * rows.tokens.size and len(rows) > 4000
    assert rows.split < 0.3 * rows.documents


def test_best_fit_wastes_little_on_real_code() -> None:
    rows = PACKERS["best_fit"](*library_documents(), 1025, PAD)
    assert rows.padded < 0.01 * rows.tokens.size and len(rows) > 300


def test_a_rest_of_one_id_takes_another_along() -> None:
    document = list(range(70, 79))  # with bos and eos 11 ids
    assert pieces_of(packed("pad", [document], 10)) == [(0, 0, [BOS, *document[:8]]), (0, 1, [78, EOS])]
    assert pieces_of(packed("concat", [document], 10)) == [(0, 0, [BOS, *document]), (0, 1, [EOS])]


@pytest.mark.parametrize("mode", PACKERS)
def test_an_empty_document_is_bos_and_eos(mode: str) -> None:
    assert pieces_of(packed(mode, [[], [70]], 8))[-1 if mode == "best_fit" else 0][2] == [BOS, EOS]


def test_split_documents_are_counted() -> None:
    rows = pack_concat(*join_documents(np.arange(100, 120, dtype=np.uint32), np.array([0, 3, 20]), Specials()), 10, PAD)
    assert (rows.split, rows.documents, len(rows)) == (1, 2, 3)
    assert rows.documents_at.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("mode", PACKERS)
@examples
@given(DOCUMENTS, ROW_LENGTHS)
def test_the_main_document_has_most_ids_of_its_row(mode: str, documents: list[list[int]], length: int) -> None:
    rows = packed(mode, documents, length)
    main = rows.main_documents()
    assert len(main) == len(rows)
    for number in range(len(rows)):
        own = [(document, ids) for document, row, ids in pieces_of(rows) if row == number]
        assert main[number] == max(own, key=lambda piece: len(piece[1]))[0]


@pytest.mark.parametrize("mode", PACKERS)
@examples
@given(DOCUMENTS, st.integers(0, 5))
def test_window_is_a_permutation_of_its_rows(mode: str, documents: list[list[int]], seed: int) -> None:
    shuffled, rows = pack_window([tokenized(documents)], 8, mode, Specials(), ("s", seed))
    order = window_permutation(len(rows), "s", seed)
    assert sorted(order) == list(range(len(rows)))
    for got, number in zip(shuffled, order, strict=True):
        want = rows.row(int(number))
        assert got.length == want.length
        for name in ("tokens", "starts", "documents"):
            assert (getattr(got, name) == getattr(want, name)).all()


def test_permutation_depends_on_its_key_alone() -> None:
    assert (window_permutation(100, 1, "a") == window_permutation(100, 1, "a")).all()
    assert (window_permutation(100, 1, "a") != window_permutation(100, 2, "a")).any()
    # Pinned: another numpy or platform that permutes otherwise would change every run's order.
    assert window_permutation(8, "pinned").tolist() == PINNED


PINNED = [1, 6, 7, 4, 0, 2, 3, 5]


def test_tables_of_several_chunks_join(seq_len: int = 8) -> None:
    one, _ = pack_window(
        [tokenized([[70, 71], [72]]), tokenized([]), tokenized([[73]])], seq_len, "concat", Specials(), ("k",)
    )
    other, _ = pack_window([tokenized([[70, 71], [72], [73]])], seq_len, "concat", Specials(), ("k",))
    assert [r.tokens.tolist() for r in one] == [r.tokens.tolist() for r in other]


def test_sliced_table_packs_like_a_copy() -> None:
    table = tokenized([[70, 71], [72, 73, 74], [75]])
    sliced, _ = pack_window([table.slice(1, 1)], 8, "concat", Specials(), ("k",))
    assert sliced[0].tokens.tolist() == [BOS, 72, 73, 74, EOS, PAD, PAD, PAD, PAD]


def test_slot_block_tells_targets() -> None:
    rows, _ = pack_window([tokenized([[70, 71, 72], [73]])], 5, "concat", Specials(), ("k",))
    rows = sorted(rows, key=lambda r: -r.length)
    batch = Batch.from_row(slot_block([*rows, empty_row(5, Specials())], 0, 3, 0).to_pylist()[0], 5)
    # bos 70 71 72 eos bos | 73 eos pad… | pad…: a document's first token and the padding are no targets
    assert batch.tokens.tolist()[0] == [BOS, 70, 71, 72, EOS, BOS]
    assert batch.has_target().tolist() == [
        [True, True, True, True, False],
        [True, False, False, False, False],
        [False] * 5,
    ]


def test_document_starts_count_in_every_row_of_a_slot_block() -> None:
    rows, _ = pack_window([tokenized([[70], [71], [72], [73]])], 5, "concat", Specials(), ("k",))
    batch = Batch.from_row(slot_block(rows, 0, 0, 0).to_pylist()[0], 5)
    assert batch.tokens[:, [0, 3]].tolist() == [[BOS, BOS]] * 2
    assert batch.has_target().tolist() == [[True, True, False, True, True]] * 2


def test_pad_equal_to_eos_keeps_eos_a_target() -> None:
    same = Specials(bos=1, eos=2, pad=2)
    rows, _ = pack_window([tokenized([[70]])], 5, "concat", same, ("k",))
    batch = Batch.from_row(slot_block(rows, 0, 0, 0).to_pylist()[0], 5)
    assert batch.has_target().tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize("mode", PACKERS)
def test_empty_window_has_no_rows(mode: str) -> None:
    rows, counts = pack_window([tokenized([])], 7, mode, Specials(), ("k",))
    assert rows == [] and (len(counts), counts.documents, counts.split, counts.padded) == (0, 0, 0, 0)
    assert len(counts.main_documents()) == 0
