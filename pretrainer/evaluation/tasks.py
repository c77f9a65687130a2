"""Task files: read into plain values, with the solved examples that stand before each question.

Texts are put together as lm-evaluation-harness 0.4.13 does it:

    description + shots + context | delimiter + answer        a shot is context + delimiter + answer + shot_delimiter

Shots come from `shots_uri`, or from the task's own file without the line itself. "first" takes the first ones; "seeded"
draws anew for every line, in the order of the file, from one random.Random(seed): the harness does both so, and a
line's shots depend on the seed and the files alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import pyarrow as pa

from pretrainer.config import TaskConfig
from pretrainer.errors import UserError
from pretrainer.evaluation.kinds import KINDS, Example, Line, Scoring
from pretrainer.evaluation.template import LineError
from pretrainer.storage import Store, redact

COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}


@dataclass(frozen=True)
class Task:
    """A task file, read: plain values that can be sent to any process."""

    config: TaskConfig
    examples: tuple[Example, ...]
    before: tuple[str, ...]  # description and shots of each example

    @property
    def scoring(self) -> Scoring:
        return KINDS[self.config.kind].scoring


def read_task(config: TaskConfig) -> Task:
    """The task of a config; UserError with file and line for what cannot be used."""
    lines = read_lines(config.uri)
    examples = _examples(config, config.uri, lines)
    before = [config.description] * len(lines)
    if config.shots:
        own = config.shots_uri is None
        pool = lines if config.shots_uri is None else read_lines(config.shots_uri)
        shown = examples if config.shots_uri is None else _examples(config, config.shots_uri, pool)
        drawn = choose_shots(config, lines, pool, own)
        before = [config.description + "".join(shown[i].shot + config.shot_delimiter for i in shots) for shots in drawn]
    return make_task(config, examples, before)


def make_task(config: TaskConfig, examples: Sequence[Example], before: Sequence[str] | None = None) -> Task:
    """A task of examples that are there already, the first max_documents of them."""
    scored = slice(config.max_documents)
    before = [""] * len(examples) if before is None else before
    return Task(config, tuple(examples[scored]), tuple(before[scored]))


def choose_shots(config: TaskConfig, lines: Sequence[Line], pool: Sequence[Line], own: bool) -> list[list[int]]:
    """For each line the places in the pool of its shots; own: the pool is the lines, and none is its own shot."""
    wanted, random = config.shots, Random(config.seed)

    def others(line: Line) -> Iterator[int]:
        return (place for place, other in enumerate(pool) if not own or other != line)

    def draw(line: Line) -> list[int]:
        if config.sampler == "first":
            return list(islice(others(line), wanted))
        drawn = random.sample(range(len(pool)), min(wanted + own, len(pool)))
        kept = [place for place in drawn if not own or pool[place] != line][:wanted]
        # Where the file has the line more than once, several of them may have been drawn.
        left = list(others(line)) if len(kept) < wanted else []
        return random.sample(left, min(wanted, len(left))) if left else kept

    found = [draw(line) for line in lines]
    fewest = min(map(len, found))
    if fewest < wanted:
        raise UserError(
            f"task {config.name}: {redact(config.shots_uri or config.uri)} has only {fewest} examples for some line: "
            f"use fewer evaluation.tasks[].shots than {wanted}"
        )
    return found


def read_lines(uri: str) -> list[Line]:
    """The JSON objects of a file."""
    lines, shown = [], redact(uri)
    for number, text in enumerate(_content(uri).split(b"\n"), 1):
        if text.strip():
            lines.append(_parsed(text, f"{shown} line {number:,}"))
    if not lines:
        raise UserError(f"task file {shown} is empty: give a file with a JSON object per line")
    return lines


def _content(uri: str) -> bytes:
    try:
        content = Store(uri).read()
    except FileNotFoundError:
        raise UserError(f"task file {redact(uri)} does not exist: mend evaluation.tasks[].uri") from None
    kind = COMPRESSIONS.get(uri.partition("?")[0].rpartition(".")[2])
    if kind is None:
        return content
    try:
        return bytes(pa.CompressedInputStream(pa.BufferReader(content), kind).read())
    except OSError as error:
        raise UserError(f"task file {redact(uri)} cannot be decompressed ({error}): restore it") from None


def _parsed(text: bytes, where: str) -> Line:
    try:
        line = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}): mend the line") from None
    if not isinstance(line, dict):
        raise UserError(f"{where} is a JSON {type(line).__name__}: write an object per line")
    return line


def _examples(config: TaskConfig, uri: str, lines: Sequence[Line]) -> list[Example]:
    read, found = KINDS[config.kind].read, []
    for number, line in enumerate(lines, 1):
        try:
            found.append(read(line, config))
        except LineError as error:
            raise UserError(
                f"task {config.name} (kind {config.kind}): object {number:,} of {redact(uri)} {error}"
            ) from None
    return found
