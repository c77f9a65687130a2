"""Near-dup from text to decision on one core, side by side with rensa, datasketch and datatrove's signatures.

python tests/benchmarks/bench_dedup.py [documents]

The same documents for all (library text cut and edited into near-duplicates, 7.6 kB mean), CPU seconds of one process.
Ours: exact hashes, shingles, signatures, sketches, look-ups, verification, decisions. rensa and datasketch: 5-word
shingles in Python, 112 values, LSH 14 x 8, candidates verified by signature. datatrove: signatures of its first stage
alone (three more follow).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import datasketch
import numpy as np
import pyarrow as pa
import rensa

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.dedup import DedupIndex, signatures
from pretrainer.data.dedup.keys import exact_hashes
from pretrainer.data.dedup.memory import bytes_per_document
from tests.benchmarks.library import cpu_seconds
from tests.benchmarks.near_duplicates import library_documents, near_duplicate_stream

PERMUTATIONS, BANDS, THRESHOLD = 112, 14, 0.8


def shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def with_rensa(texts: Sequence[str]) -> int:
    index, kept = rensa.RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS), {}
    for i, text in enumerate(texts):
        sketch = rensa.RMinHash(num_perm=PERMUTATIONS, seed=42)
        sketch.update(shingles(text))
        if not any(kept[j].jaccard(sketch) >= THRESHOLD for j in index.query(sketch) if j in kept):
            index.insert(i, sketch)
            kept[i] = sketch
    return len(kept)


def with_datasketch(texts: Sequence[str]) -> int:
    index, kept = datasketch.MinHashLSH(params=(BANDS, 8), num_perm=PERMUTATIONS), {}
    for i, text in enumerate(texts):
        sketch = datasketch.MinHash(PERMUTATIONS, seed=1)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        if not any(kept[j].jaccard(sketch) >= THRESHOLD for j in index.query(sketch)):
            index.insert(i, sketch)
            kept[i] = sketch
    return len(kept)


def with_datatrove(texts: Sequence[str]) -> int:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(n_grams=5, hash_config=HashConfig(hash_fc="sha1"))
    stage = MinhashDedupSignature(output_folder="/unused", config=config)
    for text in texts:
        stage.get_signature(stage.get_shingles(text))
    return 0


def ours(texts: pa.LargeStringArray, config: DedupConfig, chunk: int = 1000) -> DedupIndex:
    index = DedupIndex(config)
    for i in range(0, len(texts), chunk):
        part = signatures(texts[i : i + chunk], config)
        index.decide(np.arange(i, i + len(part)), part)
    return index


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6000
    documents, config = near_duplicate_stream(library_documents(count // 2), 1), DedupConfig()
    texts = pa.array(documents, pa.large_string())
    megabytes = texts.nbytes / 1e6
    print(f"{len(texts):,} documents, {megabytes:.1f} MB, {1e6 * megabytes / len(texts):,.0f} bytes each")
    ours(texts[:20], config)  # compiles
    seconds = cpu_seconds(lambda: ours(texts, config), 3)
    rate = megabytes / seconds
    index, sketches = ours(texts, config), signatures(texts, config)
    print(f"ours, text to decision      {rate:8.1f} MB/s, {len(index):,} kept, "
          f"{index.comparisons / len(texts):.2f} comparisons per document")
    print(f"  exact hashes alone        {megabytes / cpu_seconds(lambda: exact_hashes(texts), 3):8.1f} MB/s")
    print(f"  all sketches alone        {megabytes / cpu_seconds(lambda: signatures(texts, config), 3):8.1f} MB/s")
    decide = cpu_seconds(lambda: DedupIndex(config).decide(np.arange(len(texts)), sketches), 3)
    # A Bloom filter in front of the look-ups could save at best a part of this.
    per_document = 1e6 * decide / len(texts)
    print(f"  look-ups and decisions    {per_document:8.1f} us per document, {decide / seconds:.1%} of all")
    print(f"  index memory              {index.memory_bytes() / len(index):8.0f} bytes per kept document, planned "
          f"{bytes_per_document(config, int(sketches.shingle_count.mean())):.0f}")
    sample = documents[:: max(1, count // 1500)]
    for name, call in (("rensa", with_rensa), ("datasketch", with_datasketch), ("datatrove", with_datatrove)):
        some = sample if name != "datatrove" else sample[::10]
        some_mb = sum(len(text.encode()) for text in some) / 1e6
        theirs = some_mb / cpu_seconds(lambda call=call, some=some: call(some), 1)
        print(f"{name:27} {theirs:8.1f} MB/s, ratio {rate / theirs:.1f}")


if __name__ == "__main__":
    main()
