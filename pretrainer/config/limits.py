"""Limits written as text: similarity>=0.28, for documents of one language similarity[zh]>=0.26."""

from __future__ import annotations

import re
from typing import NamedTuple

from pretrainer.errors import ConfigError

_LIMIT = re.compile(r"([\w.-]+)(?:\[([\w-]+)\])?\s*(>=|<=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)")


class Limit(NamedTuple):
    """A value passes that is at least (or at most) `limit`; `language` None stands for every other language."""

    name: str
    language: str | None
    is_least: bool
    limit: float


def parse_limit(text: str, field: str) -> Limit:
    """ConfigError about a field where the text is no limit."""
    found = _LIMIT.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        return Limit(found[1], found[2], found[3] == ">=", float(found[4]))
    except ValueError:
        raise ConfigError(
            f"{field}={text!r} is not possible: write a name, >= or <=, and a number, for example similarity>=0.28 or, "
            "for one language, similarity[zh]>=0.26"
        ) from None
