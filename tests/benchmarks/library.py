"""What the benchmarks of curation share: the text of the installed Python's standard library, and CPU seconds."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa


def library_texts() -> pa.LargeStringArray:
    """All readable .py files of the standard library, site-packages left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    return pa.array([path.read_bytes().decode("utf-8", "replace") for path in paths], pa.large_string())


def cpu_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of some calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def megabytes_per_s(call: Callable[[], object], megabytes: float) -> float:
    """Of one call, by its CPU time."""
    return megabytes / cpu_seconds(call, 1)
