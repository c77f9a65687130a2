"""Ray's own autoscaler under an elastic job: see cluster_demo.py.

python -m pytest -q -m "" tests/faults/test_cluster_demo.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cluster_demo import demo, local_start


def test_the_config_is_one_that_ray_s_autoscaler_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    start = local_start()
    config = prepare_config(start.autoscaling_config("127.0.0.1:1", max_nodes=3, node_cpus=2, idle_minutes=1))
    validate_config(config)
    node = config["available_node_types"]["node"]
    assert (node["min_workers"], node["max_workers"], node["resources"]["CPU"]) == (0, 3, 2)
    assert config["available_node_types"]["ray.head.default"]["resources"]["CPU"] == 0, "nothing runs on the head"


@pytest.mark.slow
def test_an_autoscaled_training_loses_nodes_and_trains_the_same_batches(tmp_path: Path) -> None:
    run = demo(tmp_path, steps=160, most=3, kinds=["kill", "drain"])
    page = (run.folder / "report/report.html").read_text()
    assert "workers" in page and "<svg" in page
