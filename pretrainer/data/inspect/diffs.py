"""What an edit changed, and how two near-copies differ, as pieces that a page can colour.

A diff is a list of [kind, text]: "=" in both, "-" only in the first, "+" only in the second, "…" says what is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

Diff = list[list[str]]
MAX_PARTS = 1500
"""Lines or words that are compared on each side: the time of a diff grows with their product."""
CONTEXT_LINES, CONTEXT_WORDS = 2, 40
"""Words count with the blanks between them."""
MAX_BLOCK_CHARS = 4000
"""Changed lines are compared word by word up to this length, and shown as old and new above it."""


def line_diff(before: str, after: str) -> Diff:
    """Line by line, and word by word within changed lines."""
    out: Diff = []
    for kind, old, new in _opcodes(before.splitlines(True), after.splitlines(True)):
        if kind == "equal":
            out += _shortened(old, CONTEXT_LINES, "lines")
        elif kind == "replace" and len("".join(old)) + len("".join(new)) <= MAX_BLOCK_CHARS:
            out += _words("".join(old), "".join(new))
        else:
            out += [["-", "".join(old)], ["+", "".join(new)]]
    return _joined(out)


def word_diff(before: str, after: str) -> Diff:
    """Word by word, with the words around each change."""
    out: Diff = []
    for kind, old, new in _opcodes(_split(before), _split(after)):
        if kind == "equal":
            out += _shortened(old, CONTEXT_WORDS, "words")
        else:
            out += [["-", "".join(old)], ["+", "".join(new)]]
    return _joined(out)


def _words(before: str, after: str) -> Diff:
    pieces: Diff = []
    for kind, old, new in _opcodes(_split(before), _split(after)):
        pieces += [["=", "".join(old)]] if kind == "equal" else [["-", "".join(old)], ["+", "".join(new)]]
    return pieces


def _split(text: str) -> list[str]:
    """Words and what is between them."""
    return re.findall(r"\S+|\s+", text)


def _opcodes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, Sequence[str], Sequence[str]]]:
    """difflib's, over at most MAX_PARTS behind what is equal at the start."""
    start = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    a, b = old[start : start + MAX_PARTS], new[start : start + MAX_PARTS]
    found = [("equal", old[:start], new[:start])] if start else []
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    found += [(kind, a[i1:i2], b[j1:j2]) for kind, i1, i2, j1, j2 in matcher.get_opcodes()]
    if len(old) > start + MAX_PARTS or len(new) > start + MAX_PARTS:
        found.append(("left out", [], []))
    return found


def _shortened(parts: Sequence[str], context: int, unit: str) -> Diff:
    if len(parts) <= 2 * context + 1:
        return [["=", "".join(parts)]]
    left_out = [part for part in parts[context:-context] if unit == "lines" or part.strip()]
    between = f"{len(left_out):,} {unit} the same"
    return [["=", "".join(parts[:context])], ["…", between], ["=", "".join(parts[-context:])]]


def _joined(pieces: Diff) -> Diff:
    """Neighbours of one kind as one, nothing empty."""
    out: Diff = []
    for kind, text in pieces:
        if out and out[-1][0] == kind and kind != "…":
            out[-1][1] += text
        elif text:
            out.append([kind, text])
    return out
