"""Storage and nodes other than one machine's: S3, S3 that fails, two raylets. The same batches everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pretrainer.storage import Store
from tests import faulty_s3, s3
from tests.e2e.audit import audit
from tests.e2e.head import PATIENT, Head, Result, pipeline


@pytest.fixture
def two_raylets() -> Iterator[Cluster]:
    head = {"num_cpus": 2, "object_store_memory": 200_000_000, "_system_config": PATIENT}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, object_store_memory=200_000_000, labels={"ray-subcluster": "data"})
    yield cluster
    cluster.shutdown()


def test_one_worker_on_s3_trains_the_same_batches(
    head: Head, config: Path, reference: Result, s3_uri: str, tmp_path: Path
) -> None:
    """Input and run folder on S3 over HTTP: the endpoint is in the URI, credentials in the environment of the node."""
    train_on_s3(head.env, config, reference, s3_uri, tmp_path)


@pytest.mark.slow
def test_two_raylets_on_s3_with_data_on_one_of_them_train_the_same_batches(
    s3_uri: str, two_raylets: Cluster, config: Path, reference: Result, tmp_path: Path
) -> None:
    """The bucket's fixture comes before the nodes', which have its credentials in their environment."""
    env = {"RAY_ADDRESS": two_raylets.address, "RAY_AUTH_MODE": "disabled"}
    refused = pipeline("pretrain", "--config", str(config), "run.name=raylets", env=env)
    assert refused.code == 2 and "2 nodes" in refused.err and "object store" in refused.err
    train_on_s3(
        {**env, **s3.credentials()}, config, reference, s3_uri, tmp_path, "cluster.data_subcluster=data"
    )
    where = nodes_of_actors(env)
    data = [f"MapWorker(MapBatches({stage}))" for stage in ("MeteredInOrderDedup", "PackWindows")]
    assert [where[name] for name in data] == [{"data"}, {"data"}]
    assert where["RayTrainWorker"] == {None}


def nodes_of_actors(env: dict[str, str]) -> dict[str, set[str | None]]:
    """Class of every actor that there was -> the label ray-subcluster of the nodes where it was."""
    code = """
import json, ray
from ray._private.state import actors
ray.init(logging_level=40)
label = {node["NodeID"]: node["Labels"].get("ray-subcluster") for node in ray.nodes()}
print(json.dumps([[a["ActorClassName"], label.get(a["Address"]["NodeID"])] for a in actors().values()]))
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True,
                          check=True)  # fmt: skip
    where: dict[str, set[str | None]] = {}
    for name, label in json.loads(done.stdout.splitlines()[-1]):
        where.setdefault(name, set()).add(label)
    return where


@pytest.mark.slow
def test_two_raylets_with_a_shared_folder_train_the_same_batches(
    two_raylets: Cluster, config: Path, reference: Result
) -> None:
    env = {"RAY_ADDRESS": two_raylets.address, "RAY_AUTH_MODE": "disabled"}
    result = pipeline("pretrain", "--config", str(config), "run.name=raylets", "cluster.shared_storage=true", env=env)
    assert result.code == 0, result.out + result.err
    assert result.summary["order_digest"] == reference.summary["order_digest"]


@pytest.mark.slow
def test_s3_with_errors_trains_the_same_batches(
    head: Head, config: Path, reference: Result, s3_endpoint: str, s3_uri: str, tmp_path: Path
) -> None:
    """Of every 11 requests one is answered 503, reset, cut off in the middle or held back for 3 s."""
    with faulty_s3.faulty(s3_endpoint) as (endpoint, faults):
        train_on_s3(head.env, config, reference, s3_uri.replace(s3_endpoint, endpoint), tmp_path)
    assert all(faults[kind] >= 3 for kind in faulty_s3.Proxy.faults), faults


def train_on_s3(
    env: dict[str, str], config: Path, reference: Result, s3_uri: str, tmp_path: Path, *fields: str
) -> None:
    store = Store(s3_uri)
    for part in sorted((config.parent / "corpus").iterdir()):
        store.write(f"corpus/{part.name}", part.read_bytes())
    base, _question, query = s3_uri.partition("?")
    uris = {
        name: [f"{base}/corpus/part-{n:03d}.jsonl?{query}" for n in numbers]
        for name, numbers in {"early": (0, 40), "late": (80, 120)}.items()
    }
    result = pipeline(
        "pretrain", "--config", str(config), "run.name=on-s3", "train.num_workers=1",
        f"run.storage={base}/runs?{query}", *fields,
        f"data.sources.0.uris={json.dumps(uris['early'])}", f"data.sources.1.uris={json.dumps(uris['late'])}",
        env={**env, "HOME": str(tmp_path)},  # for runs on S3 the default tracker is in the home folder
    )
    assert result.code == 0, result.out + result.err
    summary = json.loads(Store(result.out.strip().splitlines()[-1]).read())
    assert summary["world_sizes"] == [1] and reference.summary["world_sizes"] == [2]
    assert summary["order_digest"] == reference.summary["order_digest"]
    audits = Store(f"{base}/runs/on-s3/audit?{query}")
    objects = [path for path, *_ in audits.list() if path.endswith(".jsonl")]
    lines = [json.loads(line) for path in objects for line in audits.read(path).decode().splitlines()]
    assert [a["digest"] for a in lines] == [a["digest"] for a in audit(config, "reference")]
    assert summary["val_loss"] == pytest.approx(reference.summary["val_loss"], rel=1e-3)
    assert Store(summary["export"]).exists("model.safetensors")
