"""Where pieces of documents go in rows: best-fit-decreasing bin packing and the copy, as compiled kernels.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830), algorithm 1. Departure: the open
rows with the same room left are a stack, so that ties are decided by the order of the stream alone.

Legend: P pieces, L ids in a row.
"""

from __future__ import annotations

import numpy as np

from pretrainer.data.compiled import kernel

NONE = -1

_kernel = _inner = kernel()


def best_fit_decreasing(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of every piece, each [P] int64, for piece lengths [P] between 1 and row_length ids.

    Pieces go longest first (equal ones in their order) into the open row with the least room that takes them; among
    equal rooms into the row that was filled last. Cost O(P log L): a radix sort for rows below 65,536 ids, and a
    segment tree over the rooms 0 … L.
    """
    assert lengths.min(initial=1) >= 1 and lengths.max(initial=0) <= row_length, "the kernel checks no bounds"
    missing = (row_length - lengths).astype(np.min_scalar_type(row_length))
    return _place(lengths.astype(np.int64), np.argsort(missing, kind="stable"), row_length)


@_inner
def _set(tree: np.ndarray, room: int, held: bool) -> None:
    """Mark whether some open row has this room; a node of the tree says whether one below it does."""
    node = tree.size // 2 + room
    tree[node] = held
    while node > 1:
        node //= 2
        tree[node] = tree[2 * node] or tree[2 * node + 1]


@_inner
def _least_room(tree: np.ndarray, length: int) -> int:
    """The least room of an open row that is at least `length`, or NONE."""
    node = tree.size // 2 + length
    if tree[node]:
        return length
    while node > 1 and (node % 2 == 1 or not tree[node + 1]):
        node //= 2
    if node <= 1:
        return NONE
    node += 1
    while node < tree.size // 2:
        node = 2 * node if tree[2 * node] else 2 * node + 1
    return node - tree.size // 2


@_kernel
def _place(lengths: np.ndarray, order: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    leaves = 1
    while leaves <= row_length:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.bool_)
    newest = np.full(row_length + 1, NONE, np.int64)  # of the open rows with each room
    older = np.empty(lengths.size, np.int64)  # the open row below each in its stack
    rows, columns = np.empty(lengths.size, np.int64), np.empty(lengths.size, np.int64)
    opened = 0
    for piece in order:
        room = _least_room(tree, lengths[piece])
        if room == NONE:
            row, room = opened, row_length
            opened += 1
        else:
            row = newest[room]
            newest[room] = older[row]
            if newest[room] == NONE:
                _set(tree, room, False)
        rows[piece], columns[piece] = row, row_length - room
        room -= lengths[piece]
        if newest[room] == NONE:
            _set(tree, room, True)
        older[row], newest[room] = newest[room], row
    return rows, columns


@_kernel
def copy_pieces(
    ids: np.ndarray, begins: np.ndarray, lengths: np.ndarray, starts: np.ndarray, tokens: np.ndarray
) -> None:
    """Copy each piece ids[begin : begin + length] to its start in tokens; begins, lengths and starts are [P] int64."""
    for piece in range(lengths.size):
        begin, start, length = begins[piece], starts[piece], lengths[piece]
        tokens[start : start + length] = ids[begin : begin + length]
