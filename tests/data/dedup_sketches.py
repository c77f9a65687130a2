"""Sketches with chosen similarities for the tests of the dedup index."""

from __future__ import annotations

import random
import re
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.dedup import (
    MIN_SHINGLES,
    Sketches,
    scheme_of,
)
from pretrainer.data.dedup.oddsketch import sketch_words, write_sketch
from pretrainer.data.dedup.ragged import Ragged

CONFIG = DedupConfig()
SIZE = 500


def mixed(values: np.ndarray) -> np.ndarray:
    """Hashes [n] uint32 of numbers (the finalizer of MurmurHash3)."""
    h = values.astype(np.uint64) + np.uint64(1)
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> np.uint64(33)) * np.uint64(multiplier)
    return (h >> np.uint64(32)).astype(np.uint32)


def made(
    bands: np.ndarray, sets: list[np.ndarray] | None = None, config: DedupConfig = CONFIG, first_hash: int = 0,
    size: int = SIZE,
) -> Sketches:
    """Sketches with the given band keys [N, B] and shingle sets (different ones if none); exact hashes differ."""
    sets = sets or [np.random.default_rng(1000 * first_hash + i).integers(0, 2**32, size) for i in range(len(bands))]
    rows = []
    for values in sets:
        rows.append(np.zeros(sketch_words(len(values)) if len(values) >= MIN_SHINGLES else 0, np.uint64))
        if len(rows[-1]):
            write_sketch(mixed(values), rows[-1])
    hashes = np.stack([np.zeros(len(bands)), np.arange(len(bands)) + first_hash], axis=1).astype(np.uint64)
    counts = np.array([len(values) for values in sets], np.int32)
    return Sketches(hashes, bands.astype(np.uint32), counts, scheme_of(config), Ragged.of(rows, np.uint64))


def random_bands(count: int, seed: int = 0, bands: int = 18) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (count, bands)).astype(np.uint32)


def same_bands(count: int, bands: int = 18) -> np.ndarray:
    return np.repeat(random_bands(1, bands=bands), count, axis=0)


@cache
def library_documents() -> tuple[str, ...]:
    """60 modules of the standard library of 2 to 10 KB."""
    library = Path(sysconfig.get_paths()["stdlib"])
    folders = (".", "asyncio", "concurrent/futures", "email", "http", "importlib", "json", "logging", "multiprocessing")
    paths = [path for folder in folders for path in sorted((library / folder).glob("*.py"))]
    texts = [path.read_text(encoding="utf-8") for path in paths if 2_000 < path.stat().st_size < 10_000]
    return tuple(texts[:60])


def jaccard(left: frozenset, right: frozenset) -> float:
    common = len(left & right)
    return common / (len(left) + len(right) - common)


def edited(text: str, share: float, seed: int) -> str:
    """The text with that share of its words replaced by new ones."""
    generator = random.Random(seed)

    def edit(word: re.Match[str]) -> str:
        return f"new{generator.randrange(10**9)}" if generator.random() < share else word.group()

    return re.sub("[A-Za-z0-9]+", edit, text)


@cache
def edited_stream() -> tuple[str, ...]:
    """60 originals and four copies of each, with 0.2 % to 5 % of the words replaced, in random order."""
    shares = random.Random(1)
    texts = list(library_documents())
    texts += [
        edited(text, shares.uniform(0.002, 0.05), 4 * i + k)
        for i, text in enumerate(library_documents())
        for k in range(4)
    ]
    random.Random(2).shuffle(texts)
    return tuple(texts)
