"""Speed of filters, normalisation and exact hashes on one core, on the installed Python's standard library.

python tests/benchmarks/bench_filters.py
"""

from __future__ import annotations

import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa

from pretrainer.data.filters.filters import FILTERS, PRESETS, apply_preset
from pretrainer.data.filters.normalise import exact_hashes, normalise_texts


def library_texts() -> pa.LargeStringArray:
    """All readable .py files of the standard library, site-packages left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return pa.array([path.read_bytes().decode("utf-8", "replace") for path in paths], pa.large_string())


def plain_python_tokens(text: str) -> int:
    """What the token kernel replaces, in a comprehension: about the least that Python can do per word."""
    return sum(len(token.strip(".,;:!?()'\"")) for token in text.split())


def megabytes_per_s(call: Callable[[], object], megabytes: float) -> float:
    start = time.process_time()
    call()
    return megabytes / (time.process_time() - start)


def main() -> None:
    texts = library_texts()
    documents, megabytes = texts.to_pylist(), texts.nbytes / 1e6
    print(f"{len(documents)} documents, {megabytes:.1f} MB")
    start = time.process_time()
    apply_preset("prose", texts[5:9])
    FILTERS["gopher_repetition"]("a b c d e f g")
    print(f"compiling the prose rules  {time.process_time() - start:8.2f} s")
    print(f"normalise_texts            {megabytes_per_s(lambda: normalise_texts(texts), megabytes):8.1f} MB/s")
    print(f"exact_hashes               {megabytes_per_s(lambda: exact_hashes(texts), megabytes):8.1f} MB/s")
    for preset in PRESETS:
        reasons = Counter(apply_preset(preset, texts))
        rate = megabytes_per_s(partial(apply_preset, preset, texts), megabytes)
        print(f"preset {preset:<19} {rate:8.1f} MB/s, kept {reasons[None]}, dropped {len(documents) - reasons[None]}")
    plain = megabytes_per_s(lambda: [plain_python_tokens(text) for text in documents], megabytes)
    for name, rule in FILTERS.items():
        rate = megabytes_per_s(partial(list, map(rule, documents)), megabytes)
        print(f"{name:<26} {rate:8.1f} MB/s, {rate / plain:6.1f} x plain Python's word loop")


if __name__ == "__main__":
    main()
