"""What the dedup index of one source takes, before anything runs: for the plan, and to refuse what does not fit."""

from __future__ import annotations

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.oddsketch import sketch_words
from pretrainer.errors import ConfigError

SLOT_BYTES = 8 / 0.625
"""A key (4 bytes) and the entry it leads to (4), at the mean load of a table between 1/2 and 3/4."""
SPARE = 1.125
"""Arrays of entries grow by a quarter."""


def bytes_per_document(config: DedupConfig, words: int = 1200, lines: int = 40) -> float:
    """Mean bytes of memory for a kept document of so many words and (different, long enough) lines."""
    columns = 2 + config.url + (config.bands if config.near else 0)
    sketch = 8 * sketch_words(words) if config.near else 0
    entry = 8 + 16 + 16 * config.url + 4 + 8 + 4 * columns + sketch
    total = SPARE * entry + SLOT_BYTES * columns
    if config.lines.max_documents:
        total += lines * 20 / 0.625
    if config.substring_tokens:
        window = config.substring_tokens - config.substring_tokens // 2 + 1
        total += words * (4 * SPARE + 2 / (window + 1) * (12 * SPARE + 12 / 0.625))
    return total


def refuse_if_too_large(config: DedupConfig, documents: int, memory_bytes: float, words: int = 1200) -> int:
    """Bytes of an index of so many kept documents (sealed ones included); ConfigError where it does not fit."""
    needed = int(documents * bytes_per_document(config, words))
    if needed > memory_bytes:
        raise ConfigError(
            f"data.dedup: the index of {documents:,} documents needs about {needed:,} bytes of memory in one process "
            f"and there are {memory_bytes:,.0f}: use fewer data.dedup.bands, turn data.dedup.near off, read less "
            "of the source, or run on a machine with more memory"
        )
    return needed
