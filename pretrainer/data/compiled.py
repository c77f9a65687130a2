"""numba with a cache on disk that cannot be stale: a Ray worker process starts in tenths of a second, not in seconds.

numba's own cache does not notice a change of a function in another module, so the folder carries the hash of every
kernel's source file; processes may write at once (numba renames finished files into place). Where no folder can be
written each process compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba

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

kernel: Callable[..., Any] = partial(numba.njit, nogil=True, cache=_FOLDER is not None)
"""`numba.njit` as the kernels of this package use it: without the GIL, cached. `@kernel()` or `kernel(option=…)`."""
