"""Pages per second and F1 of HTML extractors on one core, and what the process around them costs.

    python -m tests.benchmarks.bench_html [PAGES]

The pages are made up (see pages.py), so the figures compare extractors and do not predict F1 on a crawl. Precision,
recall and F1 are over the words of a page as a multiset, averaged over pages.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import trafilatura
from resiliparse.extract.html2text import extract_plain_text

from pretrainer.config import ExtractConfig
from pretrainer.data.readers.extract import BATCH_PAGES, Extractor
from pretrainer.data.readers.extract_worker import by_both, by_resiliparse, by_trafilatura
from pretrainer.data.readers.prescan import measure_page
from tests.benchmarks.pages import LAYOUTS, Page, page, paragraphs

WORD = re.compile(r"\w+")
METHODS: dict[str, Callable[[str], str | None]] = {
    "trafilatura, its defaults": partial(trafilatura.extract, include_comments=False),
    "trafilatura (ours, as FineWeb)": by_trafilatura,
    "trafilatura fast": partial(by_trafilatura, fast=True),
    "resiliparse, its defaults": partial(extract_plain_text, main_content=True),
    "resiliparse (ours)": by_resiliparse,
    "auto": by_both,
}


def agreement(found: str, wanted: str) -> tuple[float, float, float]:
    """(precision, recall, F1) of words."""
    mine, true = Counter(WORD.findall(found)), Counter(WORD.findall(wanted))
    common = (mine & true).total()
    precision, recall = common / max(1, mine.total()), common / max(1, true.total())
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def compare(pages: Sequence[Page]) -> None:
    rates: dict[str, float] = {}
    print(f"{'':<31} pages/s  precision  recall     F1   F1 of each layout")
    for name, method in METHODS.items():
        method(pages[0].html)
        start = time.process_time()
        texts = [method(p.html) or "" for p in pages]
        rates[name] = len(pages) / (time.process_time() - start)
        scores = [agreement(text, p.text) for text, p in zip(texts, pages, strict=True)]
        means = [sum(column) / len(pages) for column in zip(*scores, strict=True)]
        layouts = [[f1 for _, _, f1 in scores[i :: len(LAYOUTS)]] for i in range(len(LAYOUTS))]
        each = " ".join(f"{sum(f1s) / len(f1s):.2f}" for f1s in layouts)
        print(f"{name:<31} {rates[name]:7.0f}  {means[0]:9.3f}  {means[1]:6.3f}  {means[2]:5.3f}   {each}")
    slow = rates["trafilatura (ours, as FineWeb)"]
    clean = sum(by_both(p.html) == by_resiliparse(p.html) for p in pages) / len(pages)
    print(f"auto: {rates['auto'] / slow:.1f} x trafilatura, {1 - clean:.0%} of the pages went to trafilatura")


def sandbox(pages: Sequence[Page]) -> None:
    """Wall time in batches through the process, against the same calls without it; one after the other, one core."""
    html = [p.html.encode() for p in pages]
    extractor = Extractor(ExtractConfig())
    extractor.extract(html[:1])
    for size in (1, BATCH_PAGES):
        start = time.perf_counter()
        for i in range(0, len(html), size):
            extractor.extract(html[i : i + size])
        inside = time.perf_counter() - start
        start = time.perf_counter()
        for p in pages:
            by_both(p.html)
        print(f"process, batches of {size:>2}: {len(pages) / inside:6.0f} pages/s, "
              f"{inside / (time.perf_counter() - start):.2f} x the time without it")
    extractor.close()
    measure_page(html[0], 10, 10)
    megabytes = sum(map(len, html)) / 1e6
    begin = time.process_time()
    for data in html:
        measure_page(data, 10**6, 512)
    print(f"counted limits: {megabytes / (time.process_time() - begin):.0f} MB/s")


def main() -> None:
    logging.disable(logging.CRITICAL)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 350
    prose = paragraphs()
    pages = [page(i, prose) for i in range(count)]
    sizes = sum(len(p.html) for p in pages) / count, sum(len(p.text) for p in pages) / count
    print(f"{count} made-up pages of {sizes[0]:,.0f} bytes with {sizes[1]:,.0f} of text, {len(LAYOUTS)} layouts")
    compare(pages)
    sandbox(pages)


if __name__ == "__main__":
    main()
