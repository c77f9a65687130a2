"""How the config says where a line has its question and its answers: {key}, {key.key}, {key.0} inside text.

Braces around anything else are text, so that code needs no escapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLACE = re.compile(r"\{([\w-]+(?:\.[\w-]+)*)\}")


class LineError(Exception):
    """What a line lacks, to be said behind "FILE line N"; never leaves this package."""


def value_at(template: str, line: Mapping[str, Any]) -> Any:
    """The value that "{key}" names, of any JSON type; other text is filled in."""
    place = _PLACE.fullmatch(template)
    return fill(template, line) if place is None else _look_up(place[1], line)


def fill(template: str, line: Mapping[str, Any]) -> str:
    """The template with texts and numbers of the line in it; what is put in is not looked at again."""
    return _PLACE.sub(lambda place: _as_text(place[1], _look_up(place[1], line)), template)


def expand(templates: Sequence[str], line: Mapping[str, Any]) -> list[str]:
    """One text per template, and all elements of a list that one names."""
    return [text for template in templates for text in texts(template, line)]


def texts(template: str, line: Mapping[str, Any]) -> tuple[str, ...]:
    """One text, or those of the list that the template names."""
    value = value_at(template, line)
    if isinstance(value, list):
        return tuple(_as_text(template, element) for element in value)
    return (_as_text(template, value),)


def _look_up(path: str, line: Mapping[str, Any]) -> Any:
    here: Any = line
    for part in path.split("."):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            here = here[int(part)]
        else:
            has = ", ".join(map(repr, list(here)[:8])) if isinstance(here, Mapping) else f"a {type(here).__name__}"
            raise LineError(f"has no {path!r}: at {part!r} there is {has}")
    return here


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise LineError(f"has {str(value)[:80]!r} at {name!r}, which is no text")
    return str(value)
