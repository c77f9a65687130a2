"""Which documents a source keeps: rules by name, and the ordered list of rules that each preset applies.

To add a rule write a function `text -> reason or None`, add its line to FILTERS and its name to a preset. A reason is
a stable snake_case name, one per rule, because reports count by it and people compare runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from pretrainer.data.filters.code import code_alphanumeric, code_encoded_data, code_generated, code_lines
from pretrainer.data.filters.normalise import as_large_string
from pretrainer.data.filters.prose import gopher_quality, gopher_repetition
from pretrainer.errors import ConfigError

Filter = Callable[[str], str | None]


def not_empty(text: str) -> str | None:
    """Nothing but whitespace."""
    return "empty" if not text or text.isspace() else None


FILTERS: dict[str, Filter] = {
    "not_empty": not_empty,
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "code_lines": code_lines,
    "code_alphanumeric": code_alphanumeric,
    "code_generated": code_generated,
    "code_encoded_data": code_encoded_data,
}

# Cheap rules stand first: a document pays for no rule after the one that drops it.
PRESETS: dict[str, tuple[str, ...]] = {
    "web": ("not_empty", "gopher_quality", "gopher_repetition"),
    "prose": ("not_empty", "gopher_quality", "gopher_repetition"),
    "code": ("not_empty", "code_lines", "code_generated", "code_alphanumeric", "code_encoded_data"),
    "none": (),
}


def preset_filters(preset: str) -> tuple[Filter, ...]:
    """The functions of a preset in order; raises ConfigError with the known names."""
    if preset not in PRESETS:
        raise ConfigError(f"data.sources[].preset={preset!r} is not possible: use one of {', '.join(PRESETS)}")
    return tuple(FILTERS[name] for name in PRESETS[preset])


def first_reason(filters: Sequence[Filter], text: str) -> str | None:
    """Reason of the first filter that drops the text, or None when all keep it."""
    for keep_or_reason in filters:
        if reason := keep_or_reason(text):
            return reason
    return None


def apply_preset(preset: str, texts: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """For each of N texts the reason of the first rule of the preset that it fails, None if it is kept."""
    filters = preset_filters(preset)
    if not filters:
        return [None] * len(texts)
    return [first_reason(filters, text) for text in as_large_string(texts).to_pylist()]
