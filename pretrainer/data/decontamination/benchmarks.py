"""Benchmark files: JSON lines whose texts must not be trained on.

Every string of a line (or of its `fields`, with what is inside lists and objects) is a text of its own, so that a
question is found without its choices and a passage without its questions. Strings of fewer than MIN_WORDS words, such
as choices and labels, are joined in their order: alone they are no evidence of anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pretrainer.config import DecontaminationConfig, SourceConfig
from pretrainer.data.decontamination.index import MIN_WORDS, Reference, count_words
from pretrainer.data.readers.decompress import CorruptStreamError, decompressed
from pretrainer.data.readers.source import Shard, list_shards
from pretrainer.data.readers.units import shard_format
from pretrainer.errors import ConfigError, SourceError
from pretrainer.storage import Store, redact

_FILES, _FIELDS = "data.decontamination.benchmarks", "data.decontamination.fields"


class Benchmarks(NamedTuple):
    references: list[Reference]
    files: dict[str, str]  # URI -> SHA-256, 32 hex digits


def read_benchmarks(config: DecontaminationConfig) -> Benchmarks:
    """The texts of all benchmark files in their order.

    ConfigError for a file that is missing or empty, a bad line, and a file without a text that can be looked for.
    """
    references, files = list[Reference](), dict[str, str]()
    for shard in _shards(config):
        uri, content = redact(Store(shard.root).child(shard.path).uri), Store(shard.root).read(shard.path)
        files[uri] = hashlib.sha256(content).hexdigest()[:32]
        references += _texts_of_file(uri, _decompressed(uri, shard, content), config.fields)
    return Benchmarks(references, files)


def _shards(config: DecontaminationConfig) -> list[Shard]:
    if not config.benchmarks:
        return []
    try:
        return list_shards(SourceConfig(name="benchmarks", uris=config.benchmarks, format="jsonl"))
    except SourceError as error:
        raise ConfigError(f"{_FILES}: {error}") from None


def _decompressed(uri: str, shard: Shard, content: bytes) -> bytes:
    try:
        return b"".join(decompressed(iter([content]), shard_format(shard.path, "jsonl")[1]))
    except CorruptStreamError as error:
        raise ConfigError(f"{_FILES}: {uri} cannot be decompressed ({error}): restore it") from None


def _texts_of_file(uri: str, content: bytes, fields: Sequence[str]) -> list[Reference]:
    texts, seen = list[Reference](), 0
    for number, line in enumerate(content.split(b"\n"), 1):
        if line and not line.isspace():
            seen += 1
            strings = list(_strings(_picked(_parsed(uri, number, line), uri, number, fields)))
            texts += [Reference(uri, str(number), text) for text in _joined(strings)]
    if not seen:
        raise ConfigError(f"{_FILES}: {uri} is empty: give a file of JSON lines, or leave it out")
    if not any(count_words([text.text for text in texts]) >= MIN_WORDS):
        raise ConfigError(
            f"{_FIELDS}={list(fields)!r}: none of the {seen:,} lines of {uri} has a text of {MIN_WORDS} words, and "
            "shorter ones would be found everywhere: name the keys that hold the long texts, or leave the file out"
        )
    return texts


def _parsed(uri: str, number: int, line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{_FILES}: {uri} line {number:,} is no JSON ({error}): mend the line") from None


def _picked(value: object, uri: str, number: int, fields: Sequence[str]) -> object:
    """What `fields` name of a line, or all of it; a line needs at least one of them."""
    if not fields:
        return value
    there = value if isinstance(value, dict) else {}
    if not any(field in there for field in fields):
        shown = ", ".join(map(ascii, sorted(there)[:8])) or f"a JSON {type(value).__name__}"
        raise ConfigError(
            f"{_FIELDS}={list(fields)!r}: {uri} line {number:,} has none of them, but {shown}: name keys that it has"
        )
    return [there[field] for field in fields if field in there]


def _strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, in order; keys are none."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value.encode("utf-8", "replace").decode()  # a lone surrogate is no Unicode
        elif isinstance(value, dict | list):
            waiting += reversed(list(value.values()) if isinstance(value, dict) else value)


def _joined(strings: Sequence[str]) -> list[str]:
    """The long strings, and the short ones as one text behind them."""
    long = count_words(strings) >= MIN_WORDS
    short = [text for text, is_long in zip(strings, long, strict=True) if not is_long]
    texts = [text for text, is_long in zip(strings, long, strict=True) if is_long]
    return [*texts, "\n".join(short)] if short else texts
