"""The files of cluster/, as the tests look at them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ("aws", "gcp")
MARK = re.compile(r"CHANGE (\d)")


def load(path: str) -> list[dict[str, Any]]:
    """Documents of a YAML file below cluster/."""
    return list(yaml.safe_load_all((CLUSTER / path).read_text(encoding="utf-8")))


def ray_up(target: str) -> dict[str, Any]:
    return load(f"{target}/cluster.yaml")[0]


def kuberay(kind: str, name: str = "") -> dict[str, Any]:
    """The manifest of this kind (and name) in cluster/kuberay/."""
    found = [
        one
        for path in sorted((CLUSTER / "kuberay").glob("*.yaml"))
        for one in load(f"kuberay/{path.name}")
        if one["kind"] == kind and name in ("", one["metadata"]["name"])
    ]
    assert len(found) == 1, (kind, name, len(found))
    return found[0]


def cluster_specs() -> dict[str, dict[str, Any]]:
    """Kind of resource -> the RayCluster spec in it."""
    return {"RayCluster": kuberay("RayCluster")["spec"], "RayJob": kuberay("RayJob")["spec"]["rayClusterSpec"]}


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> its pod template, of a RayCluster spec."""
    workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"], **workers}


def every(value: Any, key: str) -> Iterator[Any]:
    """Everything that stands under a key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


def env_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}


def shell_files() -> list[Path]:
    return sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")])


def text_files() -> list[Path]:
    """What a person copies: every file but pages and boards."""
    return sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
