"""Speed of PII replacement and toxicity on one core: text with few finds, text full of them, and text made to be slow.

    python -m tests.benchmarks.bench_pii

The texts are the installed Python's standard library (it has the addresses of its authors) and the labelled corpus of
tests/data. Beside ours stand datatrove's PIIFormatter (e-mail and IP only; where it is installed) and the package of
the toxicity classifier. Ends with precision and recall per kind, which are no matter of speed.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import profanity_check
import pyarrow as pa

from pretrainer.config.curation import PII_KINDS
from pretrainer.data.filters.pii import _machinery, find_pii, replace_pii
from pretrainer.data.filters.pii_scan import find_triggers
from pretrainer.data.filters.toxic_scores import score_texts
from pretrainer.data.filters.toxic_words import listed_share, word_list
from pretrainer.data.filters.word_lists import WORD_LISTS
from tests.benchmarks.library import library_texts, megabytes_per_s
from tests.data.pii_corpus import corpus


def rate(name: str, call: Callable[[], object], texts: pa.Array) -> float:
    """MB/s, printed; the second of two runs."""
    call()
    found = megabytes_per_s(call, texts.nbytes / 1e6)
    print(f"{name:<44} {found:9.2f} MB/s")
    return found


def pii(name: str, texts: pa.Array) -> None:
    finds = sum(map(len, find_pii(texts, PII_KINDS).values()))
    print(
        f"{name}: {len(texts)} documents, {texts.nbytes / 1e6:.1f} MB, {finds / (texts.nbytes / 1e6):.1f} finds per MB"
    )
    rate("  scan for triggers alone", partial(find_triggers, texts, _machinery(PII_KINDS)[0]), texts)
    rate("  find and replace, all kinds", partial(replace_pii, texts, PII_KINDS), texts)
    ours = rate("  find and replace, email and ip", partial(replace_pii, texts, ("email", "ip")), texts)
    if importlib.util.find_spec("datatrove"):
        from datatrove.pipeline.formatters import PIIFormatter

        formatter, documents = PIIFormatter(), texts.to_pylist()
        theirs = rate("  datatrove's PIIFormatter (email and ip)", lambda: [*map(formatter.format, documents)], texts)
        print(f"  {ours / theirs:.1f} x datatrove")


def toxicity(texts: pa.Array) -> None:
    everyone, words = np.ones(len(texts), bool), word_list(WORD_LISTS["en"])
    rate("toxicity, word list", partial(listed_share, texts, everyone, words), texts)
    ours = rate("toxicity, documents and lines", partial(score_texts, texts, everyone), texts)
    documents = texts.to_pylist()
    theirs = rate("alt-profanity-check, documents alone", lambda: profanity_check.predict_prob(documents), texts)
    print(f"{ours / theirs:.1f} x alt-profanity-check")
    difference = np.abs(score_texts(texts, everyone).document - profanity_check.predict_prob(documents)).max()
    print(f"largest difference of two scores {difference:.1e}")


def slow_lines() -> None:
    for unit in ("a@a.aa ", "1.1.1.1 ", "+49 30 901820 1", "token=", "4111 ", "93.184.216.34 ", "212-867-5309 "):
        texts = pa.array([unit * (10_000_000 // len(unit))], pa.large_string())
        start = time.process_time()
        replace_pii(texts, PII_KINDS)
        print(f"one line of 10 MB of {unit!r:<20} {time.process_time() - start:8.2f} s")


def accuracy() -> None:
    labelled = [one for seed in range(1, 6) for one in corpus(seed, 400, PII_KINDS)]
    found = find_pii(pa.array([one.text for one in labelled], pa.large_string()), PII_KINDS)
    right: Counter[str] = Counter()
    for i, one in enumerate(labelled):
        right += Counter(kind for *_span, kind in {tuple(find) for find in found.get(i, [])} & set(one.labels))
    given = Counter(find.kind for finds in found.values() for find in finds)
    wanted = Counter(kind for one in labelled for *_span, kind in one.labels)
    for kind in PII_KINDS:
        both = f"precision {right[kind] / given[kind]:.4f} recall {right[kind] / wanted[kind]:.4f}"
        print(f"{kind:<12} {both} of {wanted[kind]} labelled")


def main() -> None:
    texts = library_texts()
    prose = replace_pii(texts, PII_KINDS)[0]
    pii("library text, finds replaced", prose)
    pii("library text", texts)
    pii("labelled corpus", pa.array([one.text for one in corpus(1, 3000, PII_KINDS)], pa.large_string()))
    slow_lines()
    toxicity(texts)
    accuracy()


if __name__ == "__main__":
    main()
