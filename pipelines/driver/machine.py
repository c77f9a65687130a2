"""What a run ran on and with: cluster, versions of packages and code."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

from pipelines.driver.cli import Cluster

SOFTWARE = (
    "pretrainer", "ray", "torch", "pyarrow", "numpy", "numba", "xxhash", "datasketch", "sentencepiece", "tokenizers",
    "safetensors", "mlflow", "fastwarc", "resiliparse", "trafilatura", "fasttext-predict", "scikit-learn", "pydantic",
)  # fmt: skip
"""Packages whose versions the card names."""


def driver_event(cluster: Cluster, number: int, started_s: float) -> dict[str, Any]:
    """The recorder's event for the start of a driver; `number` is that of its lease."""
    memory = cluster.node_memory_bytes
    there = {
        "nodes": cluster.nodes,
        "cpus": cluster.cpus,
        "gpus": cluster.gpus,
        "accelerators": list(cluster.accelerators),
        "node_memory_bytes": memory if math.isfinite(memory) else None,
    }
    about = {"software": software(), "git_commit": git_commit(), "git_changes": git_changes()}
    return {"kind": "driver", "number": number, "started_s": started_s, "cluster": there, **about}


def software() -> dict[str, str]:
    """Versions, Python's and the operating system's included."""
    found = {}
    for name in SOFTWARE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "system": platform.platform(), **found}


def git_commit() -> str:
    """Commit of the checkout that this code belongs to, or "unknown" where it is installed."""
    is_ours = _git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie in another checkout
    return (_git("rev-parse", "HEAD") if is_ours else "") or "unknown"


def git_changes() -> bool | None:
    """Whether that checkout has changes that are not committed; None outside of one."""
    return None if git_commit() == "unknown" else bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*words: str) -> str:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return found.stdout.strip()
