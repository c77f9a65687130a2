"""Near-dup decisions against exact Jaccard similarity of word shingles, on edited documents.

python tests/benchmarks/bench_dedup_accuracy.py [originals] [copies]
python tests/benchmarks/bench_dedup_accuracy.py presets [originals] [copies]

A drop is right when a document kept earlier has J >= threshold; recall is over the documents that have such a one.
Exact Jaccard is computed in plain Python from the definition (sets of 5-word shingles, or a preset's own words or
characters), over every pair that shares one. The second form prints a line per preset; about 100 documents of 300 have
a duplicate there, so recall is good to about 0.02, and near the threshold verification decides as well as the bands.
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
from pretrainer.config.dedup import DEDUP_PRESETS
from pretrainer.data.dedup.dedup import Decisions, DedupIndex, signatures
from tests.benchmarks.near_duplicates import library_documents, near_duplicate_stream


def shingle_set(text: str, n: int, unit: str = "words") -> frozenset[str]:
    if unit == "characters":
        return frozenset(text[i : i + n] for i in range(len(text) - n + 1))
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def best_earlier(
    texts: Sequence[str], kept: np.ndarray, n: int = 5, unit: str = "words"
) -> tuple[np.ndarray, list[frozenset[str]]]:
    """([N] highest exact J of each text with the kept ones before it, shingle sets)."""
    sets = [shingle_set(text, n, unit) for text in texts]
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


def accuracy(texts: Sequence[str], config: DedupConfig) -> dict[str, float]:
    """Recall, precision at the threshold and at 0.7, mean error of the estimate."""
    decisions, threshold = decide(texts, config), config.threshold
    best, sets = best_earlier(texts, decisions.kept, config.shingle_size, config.shingle_unit)
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


def decide(texts: Sequence[str], config: DedupConfig) -> Decisions:
    return DedupIndex(config).decide(np.arange(len(texts)), signatures(pa.array(texts, pa.large_string()), config))


def documents(count: int, copies: int, mean_bytes: int = 7600) -> list[str]:
    texts = near_duplicate_stream(library_documents(count, mean_bytes), copies)
    random.Random(1).shuffle(texts)
    return texts


def bench_presets(count: int, copies: int) -> None:
    texts = documents(count, copies, 4000)
    print(f"{'preset':14}{'shingles':>15}{'bands':>9}{'J >=':>6}{'recall':>8}{'precision':>11}{'dropped':>9}")
    for name, preset in DEDUP_PRESETS.items():
        found = accuracy(texts, DedupConfig(preset=name))  # type: ignore[arg-type]
        shingles, bands = f"{preset.shingle_size} {preset.shingle_unit}", f"{preset.bands}x{preset.rows_per_band}"
        shares = f"{found['recall']:8.3f}{found['precision']:11.3f}{found['dropped']:>9,}"
        print(f"{name:14}{shingles:>15}{bands:>9}{preset.threshold:6.2f}{shares}")


def main() -> None:
    if sys.argv[1:2] == ["presets"]:
        bench_presets(*(int(value) for value in (sys.argv[2:] + ["60", "4"])[:2]))
        return
    count, copies = (int(value) for value in (sys.argv[1:] + ["400", "4"])[:2])
    for name, value in accuracy(documents(count, copies), DedupConfig()).items():
        print(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value:,}")


if __name__ == "__main__":
    main()
