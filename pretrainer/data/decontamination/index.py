"""The index of reference texts: which ones can be looked for, and what of each is evidence.

    content = build_index(references, config, background)     bytes, the same for the same arguments
    index = load_index(content, config)

A file holds the texts and one bit per word, so it is about as large as the texts (6.2 bytes per word of English); a
loaded index takes about 35 bytes per word.

**Common phrases.** Licence headers, idioms and phrases of a language would make half of a corpus look contaminated. A
seed that too many documents of the background have is no seed (COMMON_HELD_OUT, COMMON_BENCHMARK), and a word without
a seed is no evidence. GPT-3 (Brown et al. 2020, appendix C) ignored 13-grams that occur more than 10 times for the same
reason. The background is a sample of the run's own documents, before dedup. allenai/decon weighs n-grams by their
frequency among the references instead, which does not tell what is common in the corpus.

**Short texts.** A text with fewer than MIN_WORDS words that are evidence is left out and counted, because ordinary
sentences would hit it; so is a question of a benchmark that fits any passage (COMMON_LINES).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from pretrainer.config import DecontaminationConfig
from pretrainer.data.decontamination.seeds import NONE, SEED_WORDS, Tables, count_texts, insert_seeds, spread_counts
from pretrainer.data.decontamination.words import folding, read_words
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.schema import from_ipc, to_ipc

log = logging.getLogger(__name__)

MIN_WORDS = 8
COMMON_HELD_OUT = (3, 0.002)
"""A phrase of a held-out text is common in more than so many documents of the background, and this share of them."""
COMMON_BENCHMARK = (10, 0.01)
"""The same for benchmarks; higher, because a crawl may hold several copies of a whole benchmark."""
COMMON_LINES = 10
"""A text shorter than a passage that more lines of the benchmarks have is a question that fits any passage."""
_FILTER_BITS = 16  # per seed: 1 of 16 words that are no seed passes the filter

INDEX = pa.schema(
    [
        ("name", pa.large_string()),  # benchmark file or source
        ("line", pa.large_string()),  # line number or document id
        ("held_out", pa.bool_()),
        ("text", pa.large_string()),
        ("seeds", pa.large_binary()),  # one bit per word, lowest first: a seed of the index begins here
    ]
)


class Reference(NamedTuple):
    """A text that must not be trained on, and where it is from."""

    name: str
    line: str
    text: str
    held_out: bool = False


@dataclass(frozen=True)
class Index:
    """A loaded index of R references."""

    tables: Tables
    references: pa.Table  # INDEX
    held_out: np.ndarray  # [R] uint8
    overlap: int  # words that two blocks of a document share
    left_out: Mapping[str, int]  # why texts are not in the index -> how many

    def reference(self, number: int) -> Reference:
        row = {name: self.references.column(name)[number].as_py() for name in Reference._fields}
        return Reference(**row)


def build_index(
    references: Sequence[Reference],
    config: DecontaminationConfig,
    background: pa.Array | None = None,
    files: Mapping[str, str] | None = None,
) -> bytes:
    """The index as bytes; the same arguments give the same bytes. `files` (URI -> digest) is kept in it.

    `background` [N] are texts of the corpus that say which phrases are common.
    """
    left_out: Counter[str] = Counter()
    kept = _distinct(references, config, left_out)
    words, starts = _words_of([reference.text for reference in kept])
    tables, seeds = _insert(words, starts, np.ones(words.size, bool), config)
    if background is not None and len(background):
        seeds &= ~_common(tables, np.array([reference.held_out for reference in kept], bool), background)
    evidence = _evidence(_counted(seeds), starts)
    left_out["too_common"] = int(np.count_nonzero(evidence < MIN_WORDS))
    rows = [_row(kept[i], seeds[starts[i] : starts[i + 1]]) for i in np.flatnonzero(evidence >= MIN_WORDS)]
    for reason, count in left_out.items():
        log.info("decontamination: %d of %d texts are not looked for: %s", count, len(references), reason)
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), INDEX, strict=False)]
    table = pa.table(columns, schema=INDEX) if rows else INDEX.empty_table()
    facts = {"left_out": {k: v for k, v in sorted(left_out.items()) if v}, "files": dict(files or {})}
    return to_ipc(table.replace_schema_metadata({"decontamination": json.dumps(facts, sort_keys=True)}))


def load_index(content: bytes, config: DecontaminationConfig) -> Index:
    """Inverse of `build_index`; hashes the texts anew (about 100 MB/s)."""
    references = from_ipc(content)
    words, starts = _words_of(references.column("text"))
    seeds = np.zeros(words.size, bool)
    for i, packed in enumerate(references.column("seeds").to_pylist()):
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        seeds[starts[i] : starts[i + 1]] = bits[: starts[i + 1] - starts[i]]
    tables, _seeds = _insert(words, starts, seeds, config)
    held_out = references.column("held_out").to_numpy().astype(np.uint8)
    overlap = int(tables.windows.max(initial=SEED_WORDS))
    return Index(tables, references, held_out, overlap, _facts(references)["left_out"])


def benchmark_digests(content: bytes) -> dict[str, str]:
    """URI -> digest of the benchmark files that an index was built from."""
    return dict(_facts(from_ipc(content))["files"])


def _facts(references: pa.Table) -> dict[str, dict]:
    facts: dict[str, dict] = json.loads(references.schema.metadata[b"decontamination"])
    return facts


def _distinct(
    references: Sequence[Reference], config: DecontaminationConfig, left_out: Counter[str]
) -> list[Reference]:
    """Each text once, by its words, without the ones that are too short or fit any passage; the first place counts."""
    words, starts = _words_of([reference.text for reference in references])
    lengths, keys = np.diff(starts), [xxhash.xxh3_128_digest(part) for part in _parts(words, starts)]
    lines = Counter(keys)
    first: dict[bytes, Reference] = {}
    for key, length, reference in zip(keys, lengths, references, strict=True):
        if length < MIN_WORDS:
            left_out["too_short"] += 1
        elif length < config.passage_words and lines[key] > COMMON_LINES and not reference.held_out:
            left_out["fits_any_passage"] += 1
        else:
            first.setdefault(key, reference)
    left_out["repeated"] = len(references) - len(first) - sum(left_out.values())
    return list(first.values())


def _parts(words: np.ndarray, starts: np.ndarray) -> Iterator[bytes]:
    return (words[a:b].tobytes() for a, b in zip(starts, starts[1:], strict=False))


def count_words(texts: Sequence[str]) -> np.ndarray:
    """Words of each text, [N] int64."""
    return np.diff(_words_of(list(texts))[1])


def _words_of(texts: Sequence[str] | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(hashes [W] uint64, first word of each text [N + 1]) of all texts."""
    data, offsets = utf8_buffers(pa.chunked_array([texts], pa.large_string()) if isinstance(texts, list) else texts)
    longest = int(np.diff(offsets).max(initial=0))
    room, starts = np.empty(longest // 2 + 1, np.uint64), np.empty(longest // 2 + 2, np.int64)
    parts, counts = [np.zeros(0, np.uint64)], [0]
    for first, end in zip(offsets, offsets[1:], strict=False):
        count, _end = read_words(data[first:end], 0, folding(), room, starts, 0)
        parts.append(room[:count].copy())
        counts.append(count)
    return np.concatenate(parts), np.cumsum(counts, dtype=np.int64)


def _insert(
    words: np.ndarray, starts: np.ndarray, seeds: np.ndarray, config: DecontaminationConfig
) -> tuple[Tables, np.ndarray]:
    """(tables, the seeds that found a place [W] bool)."""
    seeds = seeds.copy()
    count = int(np.count_nonzero(seeds))
    slots = np.full(1 << max(4, (2 * count).bit_length()), NONE, np.int32)
    bits = np.zeros(1 << max(1, (_FILTER_BITS * count // 64).bit_length()), np.uint64)
    empty = np.zeros(0, np.int32)
    tables = Tables(words, starts, seeds, empty, empty, empty, np.full(words.size, NONE, np.int32), slots, bits)
    insert_seeds(tables, seeds)
    counted = _counted(seeds)
    evidence = _evidence(counted, starts)
    whole = np.minimum(evidence, config.passage_words).astype(np.int32)
    windows = np.minimum(np.diff(starts), config.passage_words) * 3 // 2 + SEED_WORDS
    needed = np.minimum(evidence, config.ngram_words).astype(np.int32)
    return tables._replace(counted=counted, needed=needed, whole=whole, windows=windows.astype(np.int32)), seeds


def _counted(seeds: np.ndarray) -> np.ndarray:
    """[W] bool: the words that a seed covers."""
    counted = seeds.copy()
    for shift in range(1, SEED_WORDS):
        counted[shift:] |= seeds[:-shift]
    return counted


def _evidence(counted: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[R] int64: counted words of each reference."""
    sums = np.concatenate([[0], np.cumsum(counted)])
    return sums[starts[1:]] - sums[starts[:-1]]


def _common(tables: Tables, held_out: np.ndarray, background: pa.Array) -> np.ndarray:
    """[W] bool: seeds that too many texts of the background have; held_out [R] bool."""
    data, offsets = utf8_buffers(background)
    counts, seen = np.zeros(tables.words.size, np.int32), np.full(tables.words.size, NONE, np.int32)
    count_texts(data, offsets, folding(), tables, counts, seen)
    spread_counts(tables, counts)
    of_kind = [max(number, share * len(background)) for number, share in (COMMON_BENCHMARK, COMMON_HELD_OUT)]
    return counts > np.repeat(np.where(held_out, of_kind[1], of_kind[0]), np.diff(tables.starts))


def _row(reference: Reference, seeds: np.ndarray) -> tuple:
    """Of INDEX."""
    packed = np.packbits(seeds, bitorder="little").tobytes()
    return reference.name, reference.line, reference.held_out, reference.text, packed
