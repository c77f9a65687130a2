"""HTML to text in a process that may be killed.

    extracted(reading, items)                     pages among records -> records, in batches
    Extractor(config).extract(pages) -> verdicts  one process, started when it is needed and replaced when it must be

What decides first is counted, not timed: bytes, nodes and depth (`prescan`). A page that the process dies of, or that
takes too long or too much memory, is tried once more alone in a fresh process and only then refused, so neither its
neighbours nor a leak are blamed on it. Such a verdict (BY_CLOCK) can differ on another machine, so it is written down
(`data.quarantine`) before anything is decided by it, and no retry, later epoch or replay of the unit decides again.

| reason | meaning |
|---|---|
| page_too_long, page_too_many_nodes, page_too_deep | a limit of `data.extract`; no parser saw the page |
| extraction_timeout | more CPU time than `timeout_s`, or no sign of life for WALL_TIMES as long |
| extraction_memory | more address space than `memory_bytes`, or killed by the system every time |
| extraction_crashed | the process died of it, as parsers in C do |
| extraction_failed | the extractor raised an error |
| extraction_empty | no text in the page: a counted drop and no dead letter, as there are many |
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import NamedTuple

from pretrainer.config import ExtractConfig
from pretrainer.data.readers.extract_worker import ANSWER, EMPTY, OUT_OF_MEMORY, SIZE, TEXT
from pretrainer.data.readers.prescan import measure_page
from pretrainer.data.readers.reading import Reading, Record
from pretrainer.errors import UserError

WORKER = "pretrainer.data.readers.extract_worker"
BATCH_PAGES, BATCH_BYTES = 64, 2 * 2**20
"""Pages go to the process in batches of at most so many, until one passes so many bytes."""
WALL_TIMES = 10
"""A process that has not answered for so many times `timeout_s` hangs without using CPU."""
START_WALL_S = 300
KILLED_TRIES = 3
"""The system kills a process when the node is out of memory, mostly for what others took: so often it is forgiven."""


BY_CLOCK = ("extraction_timeout", "extraction_memory", "extraction_crashed")
"""Reasons that the machine decides, and not the page alone."""


class Verdict(NamedTuple):
    """What became of a page: its text, or None and why."""

    text: str | None
    reason: str = ""
    detail: str = ""


class Page(NamedTuple):
    """A record that is still HTML: `record` has all but its text."""

    record: Record
    html: bytes  # UTF-8


class _Died(Exception):
    """The process ended or hung before it answered; never leaves this module."""

    def __init__(self, verdict: Verdict, by_system: bool = False) -> None:
        super().__init__(verdict.reason)
        self.verdict, self.by_system = verdict, by_system


def refusal(html: bytes, config: ExtractConfig) -> Verdict | None:
    """Why no parser may see the page; None where one may."""
    if len(html) > config.max_page_bytes:
        return Verdict(None, "page_too_long", f"{len(html):,} bytes, at most {config.max_page_bytes:,}")
    nodes, depth = measure_page(html, config.max_nodes, config.max_depth)
    if nodes > config.max_nodes:
        return Verdict(None, "page_too_many_nodes", f"more than {config.max_nodes:,} elements")
    if depth > config.max_depth:
        return Verdict(None, "page_too_deep", f"elements nest deeper than {config.max_depth:,}")
    return None


def extracted(reading: Reading, items: Generator[Record | Page, None, int]) -> Generator[Record, None, int]:
    """The same in the same order with pages as documents; returns what `items` returns.

    So far ahead of the last record given are at most BATCH_PAGES pages and the records between them. A page that is
    left out in any case is not extracted.
    """
    waiting: list[Record | Page] = []
    pages = size = 0
    while True:
        try:
            item = next(items)
        except StopIteration as stop:
            yield from _settled(reading, waiting)
            return int(stop.value)
        if isinstance(item, Page) and item.record.row in reading.left_out:
            item = item.record
        if not waiting:
            reading.starts.before((item.record if isinstance(item, Page) else item).start - reading.base)
        waiting.append(item)
        if isinstance(item, Page):
            pages, size = pages + 1, size + len(item.html)
        if pages == 0 or pages >= BATCH_PAGES or size >= BATCH_BYTES:
            yield from _settled(reading, waiting)
            waiting, pages, size = [], 0, 0


def _settled(reading: Reading, waiting: Sequence[Record | Page]) -> Generator[Record, None, None]:
    pages = [item for item in waiting if isinstance(item, Page)]
    verdicts = iter(extract_pages([page.html for page in pages], reading.extract))
    for item in waiting:
        yield item if isinstance(item, Record) else _record(reading, item.record, next(verdicts))


def _record(reading: Reading, record: Record, verdict: Verdict) -> Record:
    if verdict.text is not None:
        return record._replace(text=verdict.text)
    is_dropped = verdict.reason == "extraction_empty"
    return record._replace(id=None, reason=verdict.reason, detail=verdict.detail, is_dropped=is_dropped)


def extract_pages(pages: Sequence[bytes], config: ExtractConfig) -> list[Verdict]:
    """Verdicts of pages (UTF-8 HTML), by the one extractor of this process and config."""
    refusals = [refusal(page, config) for page in pages]
    fine = [page for page, refused in zip(pages, refusals, strict=True) if refused is None]
    found = iter(_extractor(config, os.getpid()).extract(fine) if fine else ())
    return [refused or next(found) for refused in refusals]


@lru_cache(maxsize=2)
def _extractor(config: ExtractConfig, process: int) -> Extractor:
    """A forked child has another process number and so an extractor of its own."""
    return Extractor(config)


class Extractor:
    """Sends batches of pages to a process of `extract_worker` and watches it."""

    def __init__(self, config: ExtractConfig, worker: str = WORKER) -> None:
        self.config, self.worker = config, worker
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pages = 0  # that the process has seen
        self._lock = threading.Lock()

    def extract(self, pages: Sequence[bytes]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        with self._lock:
            while len(verdicts) < len(pages):
                try:
                    self._ask(pages[len(verdicts) :][: self.config.recycle_pages], verdicts)
                except _Died:
                    verdicts.append(self._alone(pages[len(verdicts)]))
        return verdicts

    def close(self) -> None:
        """End the process; the next page starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
            process.wait()

    def _alone(self, page: bytes) -> Verdict:
        """The verdict of a page that may be guilty, from a fresh process that sees nothing else."""
        for _ in range(KILLED_TRIES):
            self.close()
            try:
                verdicts: list[Verdict] = []
                self._ask([page], verdicts)
                return verdicts[0]
            except _Died as died:
                last = died.verdict
                if not died.by_system:
                    break
        return last

    def _ask(self, pages: Sequence[bytes], verdicts: list[Verdict]) -> None:
        """Append the verdicts of the pages; _Died at the first page without one."""
        if self._pages + len(pages) > self.config.recycle_pages:
            self.close()
        if self._process is None:
            self._start()
        self._send(b"".join(SIZE.pack(len(page)) + page for page in pages))
        for _ in pages:
            status, text = self._answer(WALL_TIMES * self.config.timeout_s)
            if status == OUT_OF_MEMORY:
                self.close()
                raise _Died(Verdict(None, "extraction_memory", self._memory_detail()))
            self._pages += 1
            verdicts.append(_verdict(status, text))

    def _start(self) -> None:
        config, places = self.config, os.pathsep.join(place or os.getcwd() for place in sys.path)
        limits = (repr(config.timeout_s), str(config.memory_bytes))
        command = [sys.executable, "-m", self.worker, config.method, *limits]
        # Sets of strings have one order in every process; threads and arenas would only take address space.
        environment = {**os.environ, "PYTHONPATH": places, "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
        self._pages, self.starts = 0, self.starts + 1
        try:
            status, text = self._answer(START_WALL_S)
        except _Died as died:
            status, text = OUT_OF_MEMORY, died.verdict.detail
        if status != TEXT:
            self.close()
            raise UserError(f"the process that extracts text from HTML does not start ({text}): install what is "
                            "missing, or raise data.extract.memory_bytes")

    def _send(self, batch: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        left = memoryview(SIZE.pack(len(batch)) + batch)
        try:
            while left:
                left = left[os.write(self._process.stdin.fileno(), left) :]
        except BrokenPipeError:
            raise self._death() from None

    def _answer(self, wall_s: float) -> tuple[int, str]:
        """(status, text) of the next page."""
        deadline = time.monotonic() + wall_s
        status, size = ANSWER.unpack(self._receive(ANSWER.size, deadline))
        return status, self._receive(size, deadline).decode("utf-8")

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        descriptor, parts = self._process.stdout.fileno(), list[bytes]()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.close()
                raise _Died(Verdict(None, "extraction_timeout", "the process hangs without using CPU"))
            part = os.read(descriptor, min(size, 2**20))
            if not part:
                raise self._death()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _death(self) -> _Died:
        """Why the process ended."""
        assert self._process is not None
        code = self._process.wait()
        self.close()
        if code == -signal.SIGPROF:
            return _Died(Verdict(None, "extraction_timeout", f"more than {self.config.timeout_s:g} s of CPU time"))
        if code == -signal.SIGKILL:
            detail = f"killed by the system {KILLED_TRIES} times"
            return _Died(Verdict(None, "extraction_memory", detail), by_system=True)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Died(Verdict(None, "extraction_crashed", f"the process ended with {name}"))

    def _memory_detail(self) -> str:
        return f"more than {self.config.memory_bytes:,} bytes of address space"


def _verdict(status: int, text: str) -> Verdict:
    if status == TEXT:
        return Verdict(text)
    return Verdict(None, "extraction_empty") if status == EMPTY else Verdict(None, "extraction_failed", text)
