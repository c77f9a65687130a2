"""Many phrases in one pass: an Aho-Corasick automaton (Aho and Corasick 1975) as a dense table for kernels.

ASCII letters match in either case; other characters match byte by byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Automaton(NamedTuple):
    """Which groups of phrases occur. S states; state 0 is the start."""

    moves: np.ndarray  # [S, 256] int32: the state after a byte
    found: np.ndarray  # [S] int64: bits of the groups whose phrases end in the state


class PhraseAutomaton(NamedTuple):
    """Which phrases occur, out of many: C classes of bytes in the place of 256 bytes make it some 7 times smaller.

    The phrases that end in a state are phrase[state] and those of shorter[state] and so on, until that is 0.
    """

    classes: np.ndarray  # [256] uint8
    moves: np.ndarray  # [S, C] int32: the state after a byte of the class
    phrase: np.ndarray  # [S] int32: number of the phrase that the state spells, -1 where it spells none
    shorter: np.ndarray  # [S] int32: the longest proper suffix that spells one, 0 where there is none


def automaton(groups: Mapping[int, Sequence[str]]) -> Automaton:
    """Bit -> the phrases that set it, bits 0 to 62. Raises ValueError on an empty phrase."""
    trie, bits = _Trie(), [0]
    for bit, phrases in groups.items():
        for phrase in phrases:
            state = trie.add(phrase)
            bits += [0] * (len(trie.children) - len(bits))
            bits[state] |= 1 << bit
    classes, moves, fallback = trie.complete()
    for state in fallback:
        bits[state] |= bits[fallback[state]]
    return Automaton(np.ascontiguousarray(moves[:, classes]), np.array(bits, np.int64))


def phrase_automaton(phrases: Iterable[str]) -> PhraseAutomaton:
    """Phrases by their numbers; one that comes again has the number of the first. ValueError on an empty one."""
    trie = _Trie()
    numbers: dict[int, int] = {}  # node -> phrase
    for number, phrase in enumerate(phrases):
        numbers.setdefault(trie.add(phrase), number)
    classes, moves, fallback = trie.complete()
    spelt, shorter = np.full(len(moves), -1, np.int32), np.zeros(len(moves), np.int32)
    spelt[list(numbers)] = list(numbers.values())
    for state, suffix in fallback.items():
        shorter[state] = suffix if spelt[suffix] >= 0 else shorter[suffix]
    return PhraseAutomaton(classes, moves, spelt, shorter)


class _Trie:
    """Phrases letter by letter; node 0 is the root."""

    def __init__(self) -> None:
        self.children: list[dict[int, int]] = [{}]

    def add(self, phrase: str) -> int:
        """The node that spells the phrase."""
        if not phrase:
            raise ValueError("an empty phrase would be found everywhere")
        node = 0
        for byte in phrase.lower().encode():
            if byte not in self.children[node]:
                self.children[node][byte] = len(self.children)
                self.children.append({})
            node = self.children[node][byte]
        return node

    def complete(self) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
        """(classes [256], moves [S, C], node -> node of its longest proper suffix, short nodes first).

        Every move is filled: a node falls back to that of its suffix. Bytes that no phrase has are class 0.
        """
        classes = np.zeros(256, np.uint8)
        used = sorted({byte for children in self.children for byte in children})
        classes[used] = np.arange(1, len(used) + 1)
        classes[ord("A") : ord("Z") + 1] = classes[ord("a") : ord("z") + 1]
        moves, fallback = np.zeros((len(self.children), len(used) + 1), np.int32), {0: 0}
        waiting: deque[int] = deque([0])
        while waiting:
            node = waiting.popleft()
            suffix = fallback[node]
            if node:
                moves[node] = moves[suffix]
            for byte, child in self.children[node].items():
                fallback[child] = int(moves[suffix, classes[byte]]) if node else 0
                moves[node, classes[byte]] = child
                waiting.append(child)
        return classes, moves, fallback
