"""Many phrases in one pass: an Aho-Corasick automaton (Aho and Corasick 1975) as a dense table for kernels.

ASCII letters match in either case; other characters match byte by byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Automaton(NamedTuple):
    """S states; state 0 is the start."""

    moves: np.ndarray  # [S, 256] int32: the state after a byte
    found: np.ndarray  # [S] int64: bits of the groups whose phrases end in the state


def automaton(groups: Mapping[int, Sequence[str]]) -> Automaton:
    """Bit -> the phrases that set it, bits 0 to 62. Raises ValueError on an empty phrase."""
    children: list[dict[int, int]] = [{}]
    bits = [0]
    for bit, phrases in groups.items():
        for phrase in phrases:
            if not phrase:
                raise ValueError("an empty phrase would be found everywhere")
            state = 0
            for byte in phrase.lower().encode():
                if byte not in children[state]:
                    children[state][byte] = len(children)
                    children.append({})
                    bits.append(0)
                state = children[state][byte]
            bits[state] |= 1 << bit
    return _complete(children, bits)


def _complete(children: list[dict[int, int]], bits: list[int]) -> Automaton:
    """Fill every move: a state falls back to that of its longest proper suffix."""
    moves, fallback = np.zeros((len(children), 256), np.int32), [0] * len(children)
    waiting: deque[int] = deque([0])
    while waiting:
        state = waiting.popleft()
        bits[state] |= bits[fallback[state]]
        if state:
            moves[state] = moves[fallback[state]]
        for byte, child in children[state].items():
            fallback[child] = int(moves[fallback[state], byte]) if state else 0
            moves[state, byte] = child
            waiting.append(child)
    for upper in range(ord("A"), ord("Z") + 1):
        moves[:, upper] = moves[:, upper + 32]
    return Automaton(moves, np.array(bits, np.int64))
