"""What the dataclasses of `pretrainer.config` say about themselves: names, types, defaults, sentences.

    describe_fields()      one FieldInfo per section and field
    format_help()          the same as text for --help
    locate(["data", "sources", "0", "weight"])      the type that stands at a dotted name
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pretrainer import config as config_module
from pretrainer.config import Config

TYPE_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}


class FieldInfo(NamedTuple):
    """One field or section as `--help` shows it; an element of a list has N in its name."""

    name: str
    type: str
    default: str
    sentence: str


def describe_fields() -> list[FieldInfo]:
    """Every section and field in the order of `pretrainer.config`, each section before its fields."""
    return _describe(Config, "")


def format_help(width: int = 120) -> str:
    """The fields as aligned text of at most `width` columns (a longer word stands alone on its line)."""
    rows = describe_fields()
    indent = max(len(row.name) for row in rows) + 4
    lines = []
    for row in rows:
        if row.type == "section":
            lines += ["", f"{row.name}: {row.sentence}"]
            continue
        text = f"{row.sentence} [{row.type}; {'required' if row.default == 'required' else 'default ' + row.default}]"
        first = f"  {row.name}".ljust(indent)
        lines += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * indent)
    return "\n".join(lines[1:])


def hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def locate(path: Sequence[str]) -> tuple[list[str], Any]:
    """The longest beginning of path that names a field (or an element of a list field), and its type."""
    hint: Any = Config
    for depth, part in enumerate(path):
        if dataclasses.is_dataclass(hint) and part in hints(hint):
            hint = hints(hint)[part]
        elif get_origin(hint) is tuple and part.isdecimal():
            hint = get_args(hint)[0]
        else:
            return list(path[:depth]), hint
    return list(path), hint


def type_words(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, args))}"
    if isinstance(hint, UnionType):
        return " or ".join(map(type_words, args))
    if get_origin(hint) is tuple and args[-1] is Ellipsis:
        return f"a list, each {type_words(args[0])}"
    if get_origin(hint) is tuple:
        return f"[{', '.join(map(type_words, args))}]"
    return TYPE_WORDS.get(hint) or f"a section with fields such as {', '.join(list(hints(hint))[:3])}"


def show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


@cache
def _sentences() -> dict[tuple[str, str], str]:
    """(class, field) -> the string that stands under the field in the source of `pretrainer.config`."""
    found = {}
    files = {cls.__module__ for cls in vars(config_module).values() if dataclasses.is_dataclass(cls)}
    trees = [ast.parse(inspect.getsource(sys.modules[name])) for name in sorted(files)]
    for cls in (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, below in pairwise(cls.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[cls.name, field.target.id] = str(ast.literal_eval(below.value))
    return found


def _describe(cls: Any, prefix: str) -> list[FieldInfo]:
    rows: list[FieldInfo] = []
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints(cls)[field.name]
        sentence = _sentences().get((cls.__name__, field.name), "")
        element = get_args(hint)[0] if get_origin(hint) is tuple else None
        if dataclasses.is_dataclass(hint):
            rows += [FieldInfo(name, "section", "", sentence), *_describe(hint, f"{name}.")]
            continue
        words = "a list of sections" if dataclasses.is_dataclass(element) else type_words(hint)
        default = "required" if field.default is dataclasses.MISSING else _plain(field.default)
        rows.append(FieldInfo(name, words, default, sentence))
        if dataclasses.is_dataclass(element):
            rows += _describe(element, f"{name}.N.")
    return rows


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value.strip() == value else show(value)
