"""Speed of filters, normalisation and exact hashes on one core, on the installed Python's standard library.

    python tests/benchmarks/bench_filters.py

For the side-by-side with datatrove install its filters too (pip install "datatrove[processing]==0.10.1").
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from functools import partial
from typing import Any

from pretrainer.data.filters.filters import annotate, judge
from pretrainer.data.filters.normalise import exact_hashes, normalise_texts
from pretrainer.data.filters.rules import GROUPS, PRESETS
from tests.benchmarks.library import library_texts, megabytes_per_s


def plain_python_tokens(text: str) -> int:
    """What the token kernel replaces, in a comprehension: about the least that Python can do per word."""
    return sum(len(token.strip(".,;:!?()'\"")) for token in text.split())


def datatrove(texts: list[str]) -> None:
    """FineWeb's four filters as datatrove runs them; a later one sees what the earlier ones keep."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    chain: list[Any] = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter()]
    chain += [filters.C4QualityFilter(filter_no_terminal_punct=False), filters.FineWebQualityFilter()]
    for i, text in enumerate(texts):
        document = Document(text=text, id=str(i))
        all(step.filter(document) is True for step in chain)


def main() -> None:
    texts = library_texts()
    documents, megabytes = texts.to_pylist(), texts.nbytes / 1e6
    print(f"{len(documents)} documents, {megabytes:.1f} MB")
    start = time.process_time()
    for preset in PRESETS:
        annotate(texts[5:9], preset)
    print(f"compiling all rules        {time.process_time() - start:8.2f} s")
    print(f"normalise_texts            {megabytes_per_s(lambda: normalise_texts(texts), megabytes):8.1f} MB/s")
    print(f"exact_hashes               {megabytes_per_s(lambda: exact_hashes(texts), megabytes):8.1f} MB/s")
    for preset in PRESETS:
        reasons = Counter(judge(texts, preset).reasons)
        rate = megabytes_per_s(partial(judge, texts, preset), megabytes)
        every = megabytes_per_s(partial(annotate, texts, preset), megabytes)
        print(f"preset {preset:<19} {rate:8.1f} MB/s, every measure {every:.1f}, kept {reasons[None]} of {len(texts)}")
    plain = megabytes_per_s(lambda: [plain_python_tokens(text) for text in documents], megabytes)
    for name, group in GROUPS.items():
        rate = megabytes_per_s(partial(group.measure, texts, group.line_limits), megabytes)
        print(f"{name:<26} {rate:8.1f} MB/s, {rate / plain:6.1f} x plain Python's word loop")
    if importlib.util.find_spec("datatrove"):
        part = documents[:100]
        peer = megabytes_per_s(partial(datatrove, part), sum(len(text.encode()) for text in part) / 1e6)
        ours = megabytes_per_s(partial(annotate, texts[:100], "fineweb"), texts[:100].nbytes / 1e6)
        print(f"fineweb on {len(part)} documents: datatrove {peer:.2f} MB/s, ours {ours:.1f}: {ours / peer:.0f} x")


if __name__ == "__main__":
    main()
