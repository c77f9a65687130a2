"""Rows and speed of best-fit packing beside plain Python and the lower bound, on synthetic documents.

python tests/benchmarks/bench_packing.py [documents] [row length]
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np

from pretrainer.config.data import MIB
from pretrainer.data.packing.packing import PACKERS, Pieces, cut_documents, join_documents
from pretrainer.data.packing.placement import best_fit_decreasing
from pretrainer.schema import PAD, Specials


def synthetic_lengths(documents: int) -> np.ndarray:
    """Log-normal numbers of tokens, median 400."""
    return np.random.default_rng(0).lognormal(np.log(400), 1.2, documents).astype(np.int64)


def default_window() -> tuple[np.ndarray, np.ndarray]:
    """Joined ids and begins of the first documents, as many as the default window of 4 Mi tokens holds."""
    lengths = synthetic_lengths(20_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    offsets = offsets[: np.searchsorted(offsets, 4 * MIB) + 1]
    return join_documents(np.full(offsets[-1], 100, np.uint32), offsets, Specials())


def plain_best_fit(lengths: list[int], row_length: int) -> list[int]:
    """Row of every piece by best-fit-decreasing with a sorted list of (room, row), as one writes it in Python."""
    rooms: list[tuple[int, int]] = []
    rows = [0] * len(lengths)
    opened = 0
    for piece in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        at = bisect_left(rooms, (lengths[piece], 0))
        if at < len(rooms):
            room, rows[piece] = rooms.pop(at)
        else:
            room, rows[piece] = row_length, opened
            opened += 1
        if room > lengths[piece]:
            insort(rooms, (room - lengths[piece], rows[piece]))
    return rows


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """(CPU seconds of this process, result)."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def line(name: str, rows: int, bound: int, total: int, seconds: float) -> None:
    speed = f"{total / seconds / 1e6:12,.1f}" if seconds else " " * 12
    print(f"{name:<42}{rows:>10,}{rows - bound:>10,}{1 - bound / rows:>10.4%}{seconds:>9.2f}{speed}")


def compare(name: str, pieces: Pieces, total: int, row_length: int) -> None:
    """Both placements on the same pieces, side by side."""
    bound = -(-total // row_length)
    ours_s, (rows, _columns) = timed(lambda: best_fit_decreasing(pieces.lengths, row_length))  # type: ignore[misc]
    plain_s, plain = timed(lambda: plain_best_fit(pieces.lengths.tolist(), row_length))
    line(f"{name}: ours", int(rows.max()) + 1, bound, total, ours_s)
    line(f"{name}: plain Python", max(plain) + 1, bound, total, plain_s)  # type: ignore[call-overload]


def main(documents: int, row_length: int) -> None:
    lengths = synthetic_lengths(documents) + 2
    total = int(lengths.sum())
    best_fit_decreasing(np.array([1, 2]), row_length)  # compiles
    print(f"{documents:,} documents, {total:,} ids, rows of {row_length:,}; CPU seconds of one core")
    print(f"{'':<42}{'rows':>10}{'wasted':>10}{'share':>10}{'s':>9}{'M tokens/s':>12}")
    line("lower bound, ceil(ids / row)", -(-total // row_length), -(-total // row_length), total, 0)
    compare("placement", cut_documents(np.cumsum(lengths) - lengths, total, row_length), total, row_length)
    ids, begins = default_window()
    for mode, pack in PACKERS.items():
        pack(ids[:4], begins[:1], row_length, PAD)
        seconds, rows = timed(lambda pack=pack: pack(ids, begins, row_length, PAD))  # type: ignore[misc]
        line(f"{mode}: one default window, ids laid out", len(rows), -(-len(ids) // row_length), len(ids), seconds)  # type: ignore


if __name__ == "__main__":
    main(*(int(argument) for argument in (sys.argv[1:] + ["1000000", "1025"][len(sys.argv) - 1 :])))
