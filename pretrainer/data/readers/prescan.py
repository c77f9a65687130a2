"""How large and how deep an HTML page is, without a parser: what decides whether a parser may see it.

One pass of compiled code over the bytes, with a stack of open elements that is as deep as a page may be. It knows the
elements that HTML closes by itself (an unclosed <li> does not nest in the <li> before it), comments, quoted attributes
and raw text (a script is one node, whatever it holds), and ends early where a limit is passed. It is an estimate: a
browser also moves misnested elements around.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel

MAX_NAME = 8
"""Names of elements are compared by so many characters, packed into one integer."""


class Shape(NamedTuple):
    """Elements and comments of a page, and how deep they nest; counting ends where either limit is passed."""

    nodes: int
    depth: int


def measure_page(html: bytes, max_nodes: int, max_depth: int) -> Shape:
    """The shape of a page; a value above its limit is only known to be above."""
    if not html:
        return Shape(0, 0)
    return Shape(*map(int, _scan(np.frombuffer(html, np.uint8), max_nodes, max_depth)))


def _pack(name: str) -> int:
    """What `_name` gives for a name."""
    packed = 0
    for byte in name.encode()[:MAX_NAME]:
        packed = (packed << 8) | byte
    return packed


OTHER, FLAT, RAW, FOREIGN = 0, 1, 2, 3
"""Kinds of elements: FLAT ones hold nothing, or never one of their own kind."""
TABLE, LIST, TERMS, SELECT = 4, 5, 6, 7
INSIDE = 4
"""Kind TABLE + INSIDE closes what is open below the innermost TABLE, and so for lists and the others."""
_KINDS = {
    FLAT: "area base br col embed hr img input link meta param source track wbr html head body p",
    RAW: "script style textarea title xmp iframe noembed noframes",
    FOREIGN: "svg math",
    TABLE: "table",
    TABLE + INSIDE: "td th tr tbody thead tfoot caption colgroup",
    LIST: "ul ol menu",
    LIST + INSIDE: "li",
    TERMS: "dl",
    TERMS + INSIDE: "dt dd",
    SELECT: "select",
    SELECT + INSIDE: "option optgroup",
}
_KIND_OF = {_pack(name): kind for kind, names in _KINDS.items() for name in names.split()}
_NAMES = np.array(list(_KIND_OF), np.int64)
_KIND_OF_NAME = np.array(list(_KIND_OF.values()), np.int64)


@kernel()
def _scan(data: np.ndarray, max_nodes: int, max_depth: int) -> tuple[int, int]:
    """(nodes, depth)."""
    names, kinds = np.zeros(max_depth + 2, np.int64), np.zeros(max_depth + 2, np.int64)
    nodes = depth = deepest = foreign = position = 0
    while position < len(data) and nodes <= max_nodes and deepest <= max_depth:
        if data[position] != 60:  # <
            position += 1
            continue
        is_end = position + 1 < len(data) and data[position + 1] == 47  # /
        begin = position + 2 if is_end else position + 1
        if begin >= len(data) or not 97 <= (data[begin] | 32) <= 122:
            behind = _behind_markup(data, position)
            nodes += behind > position + 1
            position = behind
            continue
        name, position = _name(data, begin)
        position, is_empty = _behind_tag(data, position)
        kept = depth
        if is_end:
            kept = _find(names, depth, name)
            kept = depth if kept < 0 else kept
        else:
            nodes += 1
            kind = _kind(name)
            if kind == RAW and foreign == 0:
                position = _behind_raw_text(data, position, name)
                continue
            if kind == FLAT or (is_empty and foreign > 0):
                continue
            if kind > INSIDE + FOREIGN:
                kept = _find(kinds, depth, kind - INSIDE) + 1
                if kept == 0:  # none of its parents is open: it closes one of its own name
                    kept = _find(names, depth, name)
                    kept = depth if kept < 0 else kept
        while depth > kept:
            depth -= 1
            foreign -= kinds[depth] == FOREIGN
        if not is_end:
            names[depth], kinds[depth] = name, kind
            foreign += kind == FOREIGN
            depth += 1
            deepest = max(deepest, depth)
    return nodes, deepest


@kernel()
def _kind(name: int) -> int:
    for i in range(len(_NAMES)):
        if _NAMES[i] == name:
            return _KIND_OF_NAME[i]
    return OTHER


@kernel()
def _name(data: np.ndarray, begin: int) -> tuple[int, int]:
    """(the name packed in lower case, position behind it)."""
    packed, position = 0, begin
    while position < len(data) and data[position] > 32 and data[position] != 47 and data[position] != 62:
        byte = int(data[position])
        if position - begin < MAX_NAME:
            packed = (packed << 8) | (byte | 32 if 65 <= byte <= 90 else byte)
        position += 1
    return packed, position


@kernel()
def _behind_tag(data: np.ndarray, position: int) -> tuple[int, bool]:
    """(position behind the > of a tag, whether it is />); quotes count only as the beginning of a value."""
    before = 32  # the last byte that is no blank
    while position < len(data):
        byte = data[position]
        if byte == 62:
            return position + 1, before == 47
        if before == 61 and (byte == 34 or byte == 39):  # =" or ='
            position += 1
            while position < len(data) and data[position] != byte:
                position += 1
        if byte > 32:
            before = byte
        position += 1
    return position, False


@kernel()
def _behind_markup(data: np.ndarray, position: int) -> int:
    """Behind a comment, or anything else in <! or <? or </; a < in front of other characters is text."""
    after = data[position + 1] if position + 1 < len(data) else 32
    if after != 33 and after != 47 and after != 63:
        return position + 1
    is_comment = after == 33 and position + 3 < len(data) and data[position + 2] == data[position + 3] == 45
    position += 4 if is_comment else 2
    while position < len(data):
        if data[position] == 62 and (not is_comment or (data[position - 1] == 45 and data[position - 2] == 45)):
            return position + 1
        position += 1
    return position


@kernel()
def _behind_raw_text(data: np.ndarray, position: int, name: int) -> int:
    """In front of the end tag of that name, or the end of the page."""
    while position + 1 < len(data):
        if data[position] == 60 and data[position + 1] == 47 and _name(data, position + 2)[0] == name:
            return position
        position += 1
    return len(data)


@kernel()
def _find(stack: np.ndarray, depth: int, wanted: int) -> int:
    """Place of the innermost open element of that name or kind, -1 where there is none."""
    for at in range(depth - 1, -1, -1):
        if stack[at] == wanted:
            return at
    return -1
