"""Ray's simulated nodes, as cluster/local/start.py has them; loaded by the process of Ray's autoscaler."""

from __future__ import annotations

from typing import Any

from ray._private.node import Node
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SimulatedNodes(FakeMultiNodeProvider):
    """Without a log monitor for each: on one machine all nodes write into one folder, which the head's reads anyway.

    A second one would send every line again, and takes a tenth of a core when the folder has hundreds of files.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        Node.start_log_monitor = lambda node: None  # type: ignore[method-assign]  # its caller makes the parameters
