"""The process that turns HTML into text: `extract.Extractor` starts it, sends it pages and may have to kill it.

    python -m pretrainer.data.readers.extract_worker METHOD TIMEOUT_S MEMORY_BYTES

Extractors loop for ever on huge tables, ask for gigabytes, crash and leak, so they get a process of their own that has
nothing to lose: it has a limit on its address space, dies first when the node runs out of memory, and the kernel ends
it where a page takes more CPU time than it may (the clock on the wall would blame a page for a busy node).

A message to it is a batch: uint32 size of what follows, then per page uint32 size and UTF-8 HTML. It reads the whole
batch and then writes one answer per page as soon as it has it: uint8 status, uint32 size, UTF-8 text. So the first page
without an answer is the one it died of. The first answer of all says whether it could start. Nothing here imports more
of this package than this file.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

TEXT, EMPTY, FAILED, OUT_OF_MEMORY = range(4)
SIZE, ANSWER = struct.Struct("<I"), struct.Struct("<BI")
MAX_LINK_SHARE = 0.05
"""Main text with more of its characters in links than this is taken to have boilerplate left."""
SHORT_CHARACTERS, MISSED_TIMES = 250, 4
"""Main text so short, on a page with so many times as much text outside links, is taken to be the wrong part of it."""

Method = Callable[[str], str]


def by_resiliparse(html: str) -> str:
    """Main content by rules on names and structure: several times faster than trafilatura, and it keeps more."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(html, main_content=True, alt_texts=False, comments=False, post_meta=False)


def by_trafilatura(html: str, fast: bool = False) -> str:
    """As FineWeb calls it (precision, no comments, deduplicated), with one departure.

    `deduplicate=True` drops what earlier pages of the process held, so the text of a page would depend on its
    neighbours; an LRUCache of its own drops only repeats in the page.
    """
    import trafilatura
    from trafilatura.deduplication import LRUCache

    found = trafilatura.extract(
        html, fast=fast, favor_precision=True, include_comments=False, deduplicate=LRUCache(maxsize=4096)
    )
    return found or ""


def by_both(html: str) -> str:
    """resiliparse where it leaves no boilerplate and misses nothing, else trafilatura, first without its fallbacks.

    The signal is the share of the main text that stands in links, which is one more walk over the parsed page.
    On the pages of tests/benchmarks/bench_html.py it sends three in ten to trafilatura and gives its F1.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(html)
    text = extract_plain_text(tree, main_content=True, alt_texts=False, comments=False, post_meta=False)
    outside_links = extract_plain_text(
        tree, main_content=True, alt_texts=False, comments=False, post_meta=False, skip_elements=["a"]
    )
    missed = is_missed(text, tree)
    if is_clean(text, outside_links) and not missed:
        return text
    return by_trafilatura(html, fast=True) or text or (by_trafilatura(html) if missed else "")


def is_clean(text: str, outside_links: str) -> bool:
    """Whether at most MAX_LINK_SHARE of the characters, blanks aside, stand in links."""
    total = len("".join(text.split()))
    return total - len("".join(outside_links.split())) <= MAX_LINK_SHARE * total


def is_missed(text: str, tree: object) -> bool:
    from resiliparse.extract.html2text import extract_plain_text

    if len(text) >= SHORT_CHARACTERS:
        return False
    whole = extract_plain_text(tree, main_content=False, alt_texts=False, skip_elements=["a"])  # type: ignore[arg-type]
    return len(whole) > MISSED_TIMES * len(text)


METHODS: dict[str, Method] = {"auto": by_both, "resiliparse": by_resiliparse, "trafilatura": by_trafilatura}
"""The words that `ExtractConfig.method` knows."""
WARM_UP = "<html><body><article><p>One sentence <a href='/'>with a link in it</a>.</p></article></body></html>"
"""A page that auto gives to both."""


def main() -> None:
    method, timeout_s, memory_bytes = METHODS[sys.argv[1]], float(sys.argv[2]), int(sys.argv[3])
    pages, answers = _own_pipes()
    try:
        _limit(memory_bytes)
        method(WARM_UP)  # imports and tables are not charged to the first page
    except (ImportError, MemoryError, OSError, ValueError) as error:
        _answer(answers, FAILED, f"{type(error).__name__}: {error}")
        return
    _answer(answers, TEXT, "")
    while batch := read_frame(pages):
        for html in split(batch):
            status, text = judge(method, html, timeout_s)
            _answer(answers, status, text)
            if status == OUT_OF_MEMORY:
                return  # what is left of the heap is not to be trusted


def judge(method: Method, html: bytes, timeout_s: float) -> tuple[int, str]:
    """(status, text or what went wrong) of one page; ends the process where the page takes too long."""
    try:
        signal.setitimer(signal.ITIMER_PROF, timeout_s)  # SIGPROF is not handled, so it ends native code as well
        text = method(html.decode("utf-8", "replace"))
        signal.setitimer(signal.ITIMER_PROF, 0)
    except MemoryError as error:
        return OUT_OF_MEMORY, str(error)
    except Exception as error:  # whatever a parser may raise at what a stranger wrote is a verdict on the page
        return FAILED, f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return (TEXT, text) if text and not text.isspace() else (EMPTY, "")


def split(batch: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(batch):
        (size,) = SIZE.unpack_from(batch, position)
        position += SIZE.size + size
        yield batch[position - size : position]


def read_frame(stream: BinaryIO) -> bytes:
    """What stands behind its size; b"" at the end of the stream."""
    head = stream.read(SIZE.size)
    return stream.read(SIZE.unpack(head)[0]) if len(head) == SIZE.size else b""


def _answer(stream: BinaryIO, status: int, text: str) -> None:
    data = text.encode("utf-8", "replace")
    stream.write(ANSWER.pack(status, len(data)) + data)
    stream.flush()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """(pages, answers) as descriptors that nothing else knows: what a library prints is no answer."""
    pages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return pages, answers


def _limit(memory_bytes: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with contextlib.suppress(FileNotFoundError):  # only Linux has it
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")


if __name__ == "__main__":
    main()
