"""Texts, tables and an index for the tests of decontamination."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pretrainer.config import DecontaminationConfig
from pretrainer.data.decontamination.index import (
    Index,
    Reference,
    build_index,
    load_index,
)
from pretrainer.data.decontamination.stage import (
    overlaps,
)

CONFIG = DecontaminationConfig()
QUESTION = (
    "A farmer sells forty crates of apples at the market on Monday, and half as many crates of pears on Tuesday. "
    "If every crate weighs eleven kilograms, how many kilograms of fruit did the farmer's family carry to market?"
)


def array(texts: Sequence[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def documents(*texts: str) -> pa.Table:
    return pa.table({"id": array([f"d{i}" for i in range(len(texts))]), "text": array(texts)})


def loaded(
    *references: Reference | str, background: Sequence[str] = (), config: DecontaminationConfig = CONFIG
) -> Index:
    named = [r if isinstance(r, Reference) else Reference("bench", str(i), r) for i, r in enumerate(references, 1)]
    return load_index(build_index(named, config, array(background)), config)


def overlap(index: Index, text: str, measure: str = "decontamination_overlap") -> float:
    return float(overlaps(array([text]), index, 0.5)[measure][0])


def words(count: int, seed: int = 0) -> list[str]:
    """Different words; no two seeds have any in common."""
    return [f"w{seed}x{i}" for i in range(count)]


def filler(count: int) -> str:
    return " ".join(words(count, 999))


def with_changes(text: str, *places: int) -> str:
    changed = text.split()
    for place in places:
        changed[place] = f"other{place}"
    return " ".join(changed)


LICENCE = " ".join(words(80, 5))
