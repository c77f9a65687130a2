"""Speed of signatures on one core against datasketch, on the installed Python's standard library; see bench_dedup.

python tests/benchmarks/bench_minhash.py [permutations]
"""

from __future__ import annotations

import sys
import time

import datasketch
import numpy as np

from pretrainer.data.dedup import minhash
from tests.benchmarks.library import cpu_seconds, library_texts


def datasketch_signature(text: str, permutations: int) -> np.ndarray:
    words = text.lower().split()
    sketch = datasketch.MinHash(permutations, seed=1)
    sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
    return sketch.hashvalues


def main() -> None:
    permutations = int(sys.argv[1]) if len(sys.argv) > 1 else 108
    texts = library_texts()
    megabytes = texts.nbytes / 1e6
    start = time.process_time()
    minhash.signatures(texts[:1], 5, permutations)
    print(f"compiling signatures        {time.process_time() - start:8.2f} s")
    ours = cpu_seconds(lambda: minhash.signatures(texts, 5, permutations))
    sample = texts.to_pylist()[::40]
    theirs = cpu_seconds(lambda: [datasketch_signature(text, permutations) for text in sample], 1)
    their_rate = sum(len(text.encode()) for text in sample) / 1e6 / theirs
    print(f"signatures                  {megabytes / ours:8.1f} MB/s on {megabytes:.1f} MB, P = {permutations}")
    print(f"datasketch                  {their_rate:8.1f} MB/s, ratio {megabytes / ours / their_rate:.0f}")


if __name__ == "__main__":
    main()
