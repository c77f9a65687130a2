"""numba with a cache on disk that cannot be stale: a Ray worker process starts in tenths of a second, not in seconds.

numba's own cache does not notice a change of a function in another module, so the folder carries the hash of every
kernel's source file. What one process compiles, others of this machine wait for. Where no folder can be written each
process compiles for itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

LOCK_PATIENCE_S, LOCK_POLL_S = 300.0, 0.02

KERNEL_FILES = (
    "compiled.py",
    "hashing.py",
    "decontamination/matching.py",
    "decontamination/seeds.py",
    "decontamination/words.py",
    "dedup/keys.py",
    "dedup/lines.py",
    "dedup/lsh.py",
    "dedup/minhash.py",
    "dedup/oddsketch.py",
    "dedup/removal.py",
    "dedup/substring.py",
    "filters/c4.py",
    "filters/characters.py",
    "filters/code.py",
    "filters/fineweb.py",
    "filters/gopher.py",
    "filters/language.py",
    "filters/licences.py",
    "filters/lines.py",
    "filters/pii_scan.py",
    "filters/refinedweb.py",
    "filters/repetition.py",
    "filters/toxic_scores.py",
    "filters/toxic_words.py",
    "filters/urls.py",
    "packing/placement.py",
    "quality/features.py",
    "quality/kneser_ney.py",
    "readers/prescan.py",
)


def cache_folder() -> Path | None:
    """Folder for compiled kernels of exactly this code; None where neither home nor tmp is writable."""
    sources = hashlib.sha256(numba.__version__.encode())
    for name in KERNEL_FILES:
        sources.update((Path(__file__).parent / name).read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for base in (Path(home), Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"):
        folder = base / "pretrainer" / f"kernels-{sources.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


_FOLDER = cache_folder()
if _FOLDER is not None:
    setattr(numba.config, "CACHE_DIR", str(_FOLDER))  # noqa: B010  (set by name at run time, unknown to type checkers)


def kernel(**options: Any) -> Callable[..., Any]:
    """`numba.njit` as the kernels of this package use it: without the GIL, cached. `@kernel()`, `kernel(option=…)`."""

    def decorate(function: Callable[..., Any]) -> Any:
        made = numba.njit(nogil=True, cache=_FOLDER is not None, **options)(function)
        if _FOLDER is not None:
            made.compile = _by_one_process(made.compile, _FOLDER / f"{function.__module__}.{function.__name__}.lock")
        return made

    return decorate


_held: set[Path] = set()


def _by_one_process(compile_for: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """numba's compile, which first looks into the cache, in one process of this machine at a time for each kernel.

    At a first start all tokenizers need the same kernels at once; each would compile them all, a minute of its core.
    """

    def alone(signature: Any) -> Any:
        with global_compiler_lock:  # taken before any file's, so that no two processes wait for each other
            if path in _held:  # a kernel that calls itself
                return compile_for(signature)
            lock = _taken(path)
            _held.add(path)
            try:
                return compile_for(signature)
            finally:
                _held.discard(path)
                if lock is not None:
                    os.close(lock)

    return alone


def _taken(path: Path) -> int | None:
    """The descriptor that holds the file's lock; None where it cannot be had, and then who comes compiles."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    deadline_s = time.monotonic() + LOCK_PATIENCE_S
    while time.monotonic() < deadline_s:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(LOCK_POLL_S)
        except OSError:
            break
    os.close(lock)
    return None
