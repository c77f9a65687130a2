"""Nodes for the data stages alone (`cluster.data_subcluster`), told by a label.

It is the one label by which Ray 2.60 shares a cluster out: a data set that selects it counts the CPUs of those nodes
and asks the autoscaler for more of them; Ray Train counts those of nodes without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

LABEL = "ray-subcluster"


def selector(name: str | None) -> dict[str, str]:
    """Of the nodes for data; of any node if there are none of their own."""
    return {} if name is None else {LABEL: name}


def others(name: str | None) -> dict[str, str] | None:
    """Of the nodes for trainers."""
    return None if name is None else {LABEL: f"!{name}"}


def holds(name: str | None, node: Mapping[str, Any]) -> bool:
    """Whether a node, of those that ray.nodes() gives, is for data alone."""
    return name is not None and (node.get("Labels") or {}).get(LABEL) == name


def cpus(name: str, nodes: Iterable[Mapping[str, Any]]) -> float:
    """CPUs of the nodes for data, of those that ray.nodes() gives."""
    ours = [node for node in nodes if node["Alive"] and holds(name, node)]
    return float(sum(node["Resources"].get("CPU", 0.0) for node in ours))
