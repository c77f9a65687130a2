"""Speed of signatures and of the dedup index on one core, on the installed Python's standard library.

python tests/benchmarks/bench_minhash.py [permutations]
"""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import datasketch
import numpy as np
import pyarrow as pa

from pretrainer.config import DedupConfig
from pretrainer.data.dedup import dedup, minhash


def library_texts() -> pa.LargeStringArray:
    """All readable .py files of the standard library, site-packages left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return pa.array([path.read_bytes().decode("utf-8", "replace") for path in paths], pa.large_string())


def datasketch_signature(text: str, permutations: int) -> np.ndarray:
    words = text.lower().split()
    sketch = datasketch.MinHash(permutations, seed=1)
    sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
    return sketch.hashvalues


def cpu_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of some calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def synthetic(count: int, config: DedupConfig) -> dedup.Sketches:
    generator = np.random.default_rng(0)
    return dedup.Sketches(
        generator.integers(0, 2**63, (count, 2)).astype(np.uint64),
        generator.integers(0, 2**32, (count, config.permutations)).astype(np.uint32),
        np.full(count, 100, np.int32),
        dedup.scheme_of(config),
    )


def decide_all(sketches: dedup.Sketches, config: DedupConfig, chunk: int = 2000) -> dedup.DedupIndex:
    index = dedup.DedupIndex(config)
    for i in range(0, len(sketches), chunk):
        part = sketches.select(slice(i, i + chunk))
        index.decide(np.arange(i, i + len(part)), part)
    return index


def main() -> None:
    config = DedupConfig(permutations=int(sys.argv[1]) if len(sys.argv) > 1 else 256)
    texts = library_texts()
    megabytes = texts.nbytes / 1e6
    start = time.process_time()
    minhash.signatures(texts[:1], config.shingle_words, config.permutations)
    print(f"compiling signatures        {time.process_time() - start:8.2f} s")
    ours = cpu_seconds(lambda: minhash.signatures(texts, config.shingle_words, config.permutations))
    sample = texts.to_pylist()[::40]
    theirs = cpu_seconds(lambda: [datasketch_signature(text, config.permutations) for text in sample], 1)
    their_rate = sum(len(text.encode()) for text in sample) / 1e6 / theirs
    print(f"signatures                  {megabytes / ours:8.1f} MB/s on {megabytes:.1f} MB, P = {config.permutations}")
    print(f"datasketch                  {their_rate:8.1f} MB/s, ratio {megabytes / ours / their_rate:.0f}")
    sketches = synthetic(50_000, config)
    start = time.process_time()
    decide_all(sketches.select(slice(0, 1)), config)
    print(f"compiling the index         {time.process_time() - start:8.2f} s")
    seconds = cpu_seconds(lambda: decide_all(sketches, config), 1)
    index = decide_all(sketches, config)
    print(f"index, all different        {seconds / len(index) * 1e6:8.1f} us per document")
    print(f"index memory                {index.memory_bytes() / len(index):8.0f} bytes per document")


if __name__ == "__main__":
    main()
