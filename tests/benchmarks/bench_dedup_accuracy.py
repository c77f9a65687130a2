"""Near-dup decisions against exact Jaccard similarity of word shingles, on edited documents.

python tests/benchmarks/bench_dedup_accuracy.py [originals] [copies]

A drop is right when a document kept earlier has J >= threshold; recall is over the documents that have such a one.
Exact Jaccard is computed in plain Python from the definition (sets of 5-word shingles), over every pair that shares
one.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.dedup import Decisions, DedupIndex, signatures
from tests.benchmarks.near_duplicates import library_documents, near_duplicate_stream


def shingle_set(text: str, n: int) -> frozenset[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def best_earlier(texts: Sequence[str], kept: np.ndarray, n: int = 5) -> tuple[np.ndarray, list[frozenset[str]]]:
    """([N] highest exact J of each text with the kept ones before it, shingle sets)."""
    sets = [shingle_set(text, n) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)
    best = np.zeros(len(texts))
    for i, shingles in enumerate(sets):
        common = Counter(j for shingle in shingles for j in holders[shingle][:2000])
        for j, count in common.most_common(40):
            best[i] = max(best[i], count / (len(shingles) + len(sets[j]) - count))
        if kept[i]:
            for shingle in shingles:
                holders[shingle].append(i)
    return best, sets


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    common = len(left & right)
    return common / max(1, len(left) + len(right) - common)


def accuracy(texts: Sequence[str], decisions: Decisions, threshold: float, n: int = 5) -> dict[str, float]:
    """Recall, precision at the threshold and at 0.7, mean error of the estimate."""
    best, sets = best_earlier(texts, decisions.kept, n)
    dropped = np.flatnonzero(~decisions.kept)
    own = np.array([jaccard(sets[i], sets[int(decisions.duplicate_of[i])]) for i in dropped])
    return {
        "documents": len(texts), "dropped": len(dropped), "with a duplicate": int(np.sum(best >= threshold)),
        "within 0.02 of the threshold": int(np.sum(np.abs(best - threshold) < 0.02)),
        "recall": float(np.mean(~decisions.kept[best >= threshold])),
        "precision": float(np.mean(best[dropped] >= threshold)),
        "precision at J >= 0.7": float(np.mean(best[dropped] >= 0.7)),
        "error of similarity (rms)": float(np.sqrt(np.mean((own - decisions.similarity[dropped]) ** 2))),
    }


def main() -> None:
    count, copies = (int(value) for value in (sys.argv[1:] + ["400", "4"])[:2])
    texts = near_duplicate_stream(library_documents(count), copies)
    random.Random(1).shuffle(texts)
    config = DedupConfig()
    decisions = DedupIndex(config).decide(np.arange(len(texts)), signatures(pa.array(texts, pa.large_string()), config))
    for name, value in accuracy(texts, decisions, config.threshold, config.shingle_size).items():
        print(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value:,}")


if __name__ == "__main__":
    main()
