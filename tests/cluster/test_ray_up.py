"""cluster/aws and cluster/gcp: valid to Ray's own schema, closed, and consistent.

python -m pytest -q tests/cluster/test_ray_up.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray
from botocore.validate import ParamValidator
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import validate_config

from pipelines.driver.session import STOP_PATIENCE_S
from pretrainer import subcluster
from pretrainer.config_load import load_config
from tests.cluster.manifests import CLUSTER, RAY_UP, every, kuberay, pods, ray_up

SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
NOTICE_S = {"aws": 120, "gcp": 30}  # between the cloud's notice and the end of a spot machine


def options(target: str) -> dict[str, str]:
    """Variables that containers start with."""
    words = " ".join(ray_up(target)["docker"]["run_options"])
    return dict(re.findall(r"--env (\w+)=(\S+)", words))


def types(target: str) -> dict[str, Any]:
    return dict(ray_up(target)["available_node_types"])


def commands(target: str) -> list[str]:
    return [one for key in ("head_start_ray_commands", "worker_start_ray_commands") for one in ray_up(target)[key]]


@pytest.mark.parametrize("target", RAY_UP)
def test_rays_own_schema_takes_it(target: str) -> None:
    jsonschema.validate(ray_up(target), SCHEMA)
    validate_config(ray_up(target))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ray_up(target), "max_worker": 3}, SCHEMA)


@pytest.mark.parametrize("target", RAY_UP)
def test_labels_are_labels_and_say_the_role(target: str) -> None:
    for name, one in types(target).items():
        validate_node_label_syntax(one["labels"])
        role = name.partition("-")[0]
        assert one["labels"]["pretrainer/role"] == role
        assert (one["resources"].get("GPU", 0) > 0) is (role == "trainer")
        own = load_config(str(CLUSTER / "run.yaml"), []).cluster.data_subcluster
        assert one["labels"].get(subcluster.LABEL) == (own if role == "data" else None)


@pytest.mark.parametrize("target", RAY_UP)
def test_roles_and_groups_are_those_of_every_target(target: str) -> None:
    spec = kuberay("RayCluster")["spec"]
    labels = {group["groupName"]: group["labels"] for group in spec["workerGroupSpecs"]}
    labels["head"] = spec["headGroupSpec"]["labels"]
    assert {name: one["labels"] for name, one in types(target).items()} == labels
    assert set(pods(spec)) == set(types(target))


@pytest.mark.parametrize("target", RAY_UP)
def test_the_token_is_asked_for_and_every_node_has_it(target: str) -> None:
    assert options(target)["RAY_AUTH_MODE"] == "token"
    assert ray_up(target)["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [one for one in commands(target) if "ray start" in one or "preemptible_node" in one]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in one for one in starts)


@pytest.mark.parametrize("target", RAY_UP)
def test_the_dashboard_is_reached_through_a_tunnel_alone(target: str) -> None:
    assert "--dashboard-host=127.0.0.1" in " ".join(commands(target)) and "0.0.0.0" not in json.dumps(ray_up(target))


def test_ray_opens_no_port_of_its_own_on_aws() -> None:
    """Where a node names no group and no profile, Ray makes them: port 22 from everywhere, all of EC2 and S3."""
    for one in types("aws").values():
        assert one["node_config"]["SecurityGroupIds"] and one["node_config"]["IamInstanceProfile"]
        assert one["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_ec2_knows_every_parameter_of_a_node() -> None:
    """Asked of boto3's own description of RunInstances, offline."""
    service = botocore.session.get_session().get_service_model("ec2")
    known, count = service.operation_model("RunInstances").input_shape, {"MinCount": 1, "MaxCount": 1}
    for one in types("aws").values():
        found = ParamValidator().validate({**one["node_config"], **count}, known)
        assert not found.has_errors(), found.generate_report()
    assert ParamValidator().validate({"InstanceTypes": "m6i.large", **count}, known).has_errors()


@pytest.mark.parametrize("target", RAY_UP)
def test_a_node_drains_within_its_notice(target: str) -> None:
    drain_s = float(options(target)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 0 < drain_s < NOTICE_S[target]
    assert float(options(target)["RAY_JOB_STOP_WAIT_TIME_S"]) > STOP_PATIENCE_S
    assert any(f"preemptible_node {target} --address=$RAY_HEAD_IP:6379" in one for one in commands(target))


@pytest.mark.parametrize("target", RAY_UP)
def test_spot_comes_first_and_on_demand_takes_its_place(target: str) -> None:
    spot, fallback = types(target)["trainer-spot"], types(target)["trainer-on-demand"]
    assert spot["priority"] > fallback["priority"]
    assert (spot["resources"], spot["max_workers"]) == (fallback["resources"], fallback["max_workers"])
    market = {"aws": "InstanceMarketOptions", "gcp": "provisioningModel"}[target]
    assert list(every(spot, market)) and not list(every(fallback, market))


@pytest.mark.parametrize("target", RAY_UP)
def test_everything_scales_to_zero_and_the_run_fits(target: str) -> None:
    config = load_config(str(CLUSTER / "run.yaml"), [])
    workers = {name: one for name, one in types(target).items() if name != "head"}
    assert all(one["min_workers"] == 0 for one in workers.values())
    assert ray_up(target)["max_workers"] >= sum(one["max_workers"] for one in workers.values())
    assert types(target)["head"]["resources"]["CPU"] == 0 and "--num-cpus=0" in " ".join(commands(target))
    for name in ("trainer-spot", "trainer-on-demand"):
        has = workers[name]["resources"]
        assert workers[name]["max_workers"] * has["GPU"] >= config.train.worker_range[1]
        assert has["CPU"] >= config.train.cpus_per_worker * has["GPU"]


def statements(name: str) -> list[dict[str, Any]]:
    policy = json.loads((CLUSTER / "aws" / "policies" / name).read_text(encoding="utf-8"))
    assert policy["Version"] == "2012-10-17"
    return list(policy["Statement"])


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_nodes_read_the_input_and_write_the_runs_and_nothing_else() -> None:
    rights = {
        (action, resource)
        for one in statements("storage.json")
        if one["Effect"] == "Allow"
        for action in listed(one["Action"])
        for resource in listed(one["Resource"])
    }
    bucket = "arn:aws:s3:::YOUR-BUCKET"
    writes = {action for action, resource in rights if resource != f"{bucket}/runs/*"}
    assert writes == {"s3:ListBucket", "s3:GetObject"} and "*" not in "".join(action for action, _resource in rights)
    assert ("s3:PutObject", f"{bucket}/runs/*") in rights
    [lists] = [one for one in statements("storage.json") if one["Action"] == "s3:ListBucket"]
    # With StringLike a HEAD, which has no prefix, may not list, and S3 then hides a missing object behind 403.
    assert list(lists["Condition"]) == ["StringLikeIfExists"]
    config = load_config(str(CLUSTER / "run.yaml"), [])
    for source in config.data.sources:
        folder = source.uris[0].removeprefix("s3://YOUR-BUCKET/").partition("/")[0]
        assert ("s3:GetObject", f"{bucket}/{folder}/*") in rights
    assert config.run.storage == "s3://YOUR-BUCKET/runs"


def test_the_head_ends_only_machines_of_its_cluster() -> None:
    for one in statements("autoscaler.json"):
        actions = listed(one["Action"])
        if any(action.startswith(("ec2:Terminate", "ec2:Stop")) for action in actions):
            assert one["Condition"]["StringEquals"]["aws:ResourceTag/ray-cluster-name"] == ray_up("aws")["cluster_name"]
        assert one["Resource"] != "*" or all(action.startswith("ec2:Describe") for action in actions)
    [passes] = [one for one in statements("autoscaler.json") if one["Action"] == "iam:PassRole"]
    profile = types("aws")["trainer-spot"]["node_config"]["IamInstanceProfile"]["Name"]
    assert passes["Resource"].endswith(f"role/{profile}")
