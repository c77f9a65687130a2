"""Work counted instead of timed, for tests that something takes time linear in its input.

A stop-watch says something else on every machine; these count what is done: the characters that a regular expression
looks at (`CountedPattern`), the bytes that a compiled kernel reads when it is interpreted (`CountedBytes`), and the
lines of a module that Python runs (`lines_run`). The counts are equal in every run, so that four times the input can
be asked to cost hardly more than four times the work, where quadratic work costs sixteen times.
"""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest

_parser: Any = importlib.import_module("re._parser")
_WORD = re.compile(r"\w")
_WORD_BYTE = re.compile(rb"\w")


class Work:
    """A counter that the helpers of one test share."""

    def __init__(self) -> None:
        self.done = 0

    def of(self, call: Callable[[], object]) -> int:
        """What one call adds."""
        before = self.done
        call()
        return self.done - before


# ---------------------------------------------------------------------------------------------------- compiled kernels


class CountedBytes:
    """What a kernel does with an array of bytes, each read counted."""

    def __init__(self, data: bytes, work: Work) -> None:
        self.data, self.work, self.size = data, work, len(data)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return CountedBytes(self.data[key], self.work)
        if not 0 <= key < self.size:
            raise IndexError(key)  # compiled code would read whatever stands there
        self.work.done += 1
        return self.data[key]


class CountedSlices(bytes):
    """Bytes of which every slice counts as long as it is."""

    work: Work

    @classmethod
    def of(cls, data: bytes, work: Work) -> CountedSlices:
        counted = cls(data)
        counted.work = work
        return counted

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.work.done += len(found) if isinstance(found, bytes) else 1
        return found


def interpret_kernels(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Until the test ends the kernels of this module run as the Python that they are written in."""
    for name, value in vars(module).items():
        if hasattr(value, "py_func"):
            monkeypatch.setattr(module, name, value.py_func)


# ------------------------------------------------------------------------------------------------------ lines of Python


def lines_run(module: ModuleType, call: Callable[[], object]) -> int:
    """How many lines of this module's own code a call runs."""
    lines = 0

    def in_module(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return in_module

    def on_call(frame: FrameType, _event: str, _argument: object) -> Any:
        return in_module if frame.f_code.co_filename == module.__file__ else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


# -------------------------------------------------------------------------------------------------- regular expressions


Items = list[tuple[str, Any]]
_ONE_CHARACTER = ("LITERAL", "NOT_LITERAL", "ANY", "IN")


def _plain(items: Any) -> Items:
    """Python's parse of a pattern as pairs of a name and what belongs to it."""
    return [(str(op), _plain_value(str(op), value)) for op, value in items]


def _plain_value(name: str, value: Any) -> Any:
    if name == "BRANCH":
        return [_plain(branch) for branch in value[1]]
    if name == "SUBPATTERN":
        return value[0], _plain(value[3])
    if name in ("MAX_REPEAT", "POSSESSIVE_REPEAT"):
        return int(value[0]), int(value[1]), _plain(value[2])
    if name in ("ASSERT", "ASSERT_NOT"):
        return 0 if value[0] > 0 else value[1].getwidth()[0], _plain(value[1])
    if name == "IN":
        return [(str(op), str(one) if str(op) == "CATEGORY" else one) for op, one in value]
    return str(value) if name == "AT" else value


def _uncounted(text: Any) -> Any:
    """The text of which only what the matcher looks at is counted."""
    return bytes(text) if isinstance(text, CountedSlices) else text


class CountedPattern:
    """A compiled pattern that also counts the characters which a backtracking matcher looks at to find its matches.

    The matcher goes through Python's own parse of the pattern in the order of the documentation, and must find the
    spans that `re` finds. `re` itself skips some of that work (it looks for a literal beginning, say), never the order
    of its growth.
    """

    def __init__(self, pattern: re.Pattern[Any], work: Work) -> None:
        self.pattern, self.work = pattern, work
        self.flags = pattern.flags
        self.items = _plain(_parser.parse(pattern.pattern, pattern.flags))
        self.known: dict[tuple[int, Any], bool] = {}  # by item and character
        self.text: Any = ""
        self.groups: dict[int, tuple[int, int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pattern, name)

    def match(self, text: Any, start: int = 0) -> Any:
        found = self.pattern.match(text, start)
        assert self._end(text, start) == (found.end() if found else None)
        return found

    def fullmatch(self, text: Any) -> Any:
        self.text, self.groups = _uncounted(text), {}
        found = self.pattern.fullmatch(text)
        assert any(end == len(text) for end in self._ends(self.items, 0)) == (found is not None)
        return found

    def search(self, text: Any, start: int = 0) -> Any:
        found = self.pattern.search(text, start)
        assert self._span(text, start) == (found.span() if found else None)
        return found

    def finditer(self, text: Any) -> Iterator[Any]:
        at = 0
        while (found := self.search(text, at)) is not None:
            yield found
            assert found.end() > found.start(), "a pattern that matches nothing"
            at = found.end()

    def sub(self, replacement: Any, text: Any) -> Any:
        list(self.finditer(text))
        return self.pattern.sub(replacement, text)

    def _span(self, text: Any, start: int) -> tuple[int, int] | None:
        for at in range(start, len(text) + 1):
            end = self._end(text, at)
            if end is not None:
                return at, end
        return None

    def _end(self, text: Any, at: int) -> int | None:
        self.text, self.groups = _uncounted(text), {}
        return next(self._ends(self.items, at), None)

    def _ends(self, items: Items, at: int, first: int = 0) -> Iterator[int]:
        """The places where items[first:] can end, the preferred one first."""
        while first < len(items) and items[first][0] in _ONE_CHARACTER:
            if not self._fits(items[first], at):
                return
            at, first = at + 1, first + 1
        if first == len(items):
            yield at
            return
        for end in self._one(*items[first], at):
            yield from self._ends(items, end, first + 1)

    def _one(self, name: str, value: Any, at: int) -> Iterator[int]:
        if name == "BRANCH":
            for branch in value:
                yield from self._ends(branch, at)
        elif name == "SUBPATTERN":
            for end in self._ends(value[1], at):
                self.groups[value[0]] = (at, end)
                yield end
        elif name in ("MAX_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, items = value
            yield from itertools.islice(self._repeats(least, most, items, at), 1 if name[0] == "P" else None)
        elif name in ("ASSERT", "ASSERT_NOT"):
            begin = at - value[0]
            if (begin >= 0 and any(True for _ in self._ends(value[1], begin))) == (name == "ASSERT"):
                yield at
        elif name == "GROUPREF":
            first, end = self.groups[value]
            self.work.done += end - first
            if self.text[at : at + end - first] == self.text[first:end]:
                yield at + end - first
        else:
            assert name == "AT", f"{name} is not known here"
            if self._is_at(value, at):
                yield at

    def _repeats(self, least: int, most: int, items: Items, at: int) -> Iterator[int]:
        if len(items) == 1 and items[0][0] in _ONE_CHARACTER:
            end, last = at, at + most
            while end < last and self._fits(items[0], end):
                end += 1
            yield from range(end, at + least - 1, -1)
            return
        if most > 0:
            for end in self._ends(items, at):
                if end > at:
                    yield from self._repeats(max(0, least - 1), most - 1, items, end)
        if least == 0:
            yield at

    def _fits(self, item: tuple[str, Any], at: int) -> bool:
        """Looks at the character at this place."""
        if at >= len(self.text):
            return False
        self.work.done += 1
        key = (id(item), self.text[at])
        known = self.known.get(key)
        if known is None:
            known = self.known[key] = self._allows(*item, self.text[at])
        return known

    def _allows(self, name: str, value: Any, character: Any) -> bool:
        code = character if isinstance(character, int) else ord(character)
        codes = {code}
        if self.flags & re.IGNORECASE:
            codes |= {ord(changed) for changed in (chr(code).lower(), chr(code).upper()) if len(changed) == 1}
        if name == "ANY":
            return code != 10
        if name == "IN":
            return self._is_in(value, codes)
        return (value in codes) == (name == "LITERAL")

    def _is_in(self, members: list[tuple[str, Any]], codes: set[int]) -> bool:
        wanted = True
        for name, value in members:
            if name == "NEGATE":
                wanted = False
            elif name == "LITERAL" and value in codes:
                return wanted
            elif name == "RANGE" and any(value[0] <= code <= value[1] for code in codes):
                return wanted
            elif name == "CATEGORY" and any(self._is_of(value, code) for code in codes):
                return wanted
        return not wanted

    def _is_of(self, category: str, code: int) -> bool:
        letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[category.rsplit("_", 1)[1]]
        letter = letter.upper() if "NOT_" in category else letter
        if isinstance(self.text, bytes):
            return re.match(rb"\%c" % letter.encode(), bytes([code])) is not None
        return re.match("\\" + letter, chr(code)) is not None

    def _is_at(self, place: str, at: int) -> bool:
        word = _WORD_BYTE if isinstance(self.text, bytes) else _WORD
        newline = 10 if isinstance(self.text, bytes) else "\n"
        border = (at > 0 and word.match(self.text, at - 1) is not None) != (word.match(self.text, at) is not None)
        last = len(self.text)
        if place == "AT_BEGINNING":
            return at == 0 or bool(self.flags & re.MULTILINE and self.text[at - 1] == newline)
        if place == "AT_END":
            return at == last or (at == last - 1 and self.text[at] == newline)
        assert place in ("AT_BOUNDARY", "AT_NON_BOUNDARY"), f"{place} is not known here"
        return border == (place == "AT_BOUNDARY")


class CountedRe:
    """The functions of `re` for a module that compiles its patterns where it uses them."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __getattr__(self, name: str) -> Any:
        if name not in ("match", "fullmatch", "search", "sub"):
            return getattr(re, name)
        return lambda pattern, *arguments: getattr(CountedPattern(re.compile(pattern), self.work), name)(*arguments)


def count_patterns(monkeypatch: pytest.MonkeyPatch, module: ModuleType, work: Work) -> None:
    """Until the test ends the patterns of this module count: its own, those in its lists and dicts, and inline ones."""
    for name, value in vars(module).items():
        if isinstance(value, re.Pattern):
            monkeypatch.setattr(module, name, CountedPattern(value, work))
        elif isinstance(value, dict) and any(isinstance(one, re.Pattern) for one in value.values()):
            monkeypatch.setattr(module, name, {key: CountedPattern(one, work) for key, one in value.items()})
        elif isinstance(value, list) and any(isinstance(one, re.Pattern) for one in value):
            monkeypatch.setattr(module, name, [CountedPattern(one, work) for one in value])
    monkeypatch.setattr(module, "re", CountedRe(work))
