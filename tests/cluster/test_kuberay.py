"""cluster/kuberay/: valid, closed, and patient enough for a checkpoint.

python -m pytest -q tests/cluster/test_kuberay.py
KUBERAY_CRDS=folder python -m pytest -q tests/cluster/test_kuberay.py     asks KubeRay's own CRDs too

The folder has ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of ray-project/kuberay (ray-operator/config/crd/bases).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from pipelines.driver.session import STOP_PATIENCE_S
from pretrainer.config_load import load_config
from tests.cluster.kuberay_schema import SCHEMAS
from tests.cluster.manifests import CLUSTER, cluster_specs, env_of, every, kuberay, load, pods

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
CRDS = os.environ.get("KUBERAY_CRDS", "")
SPECS = cluster_specs()
GROUPS = [(kind, group) for kind, spec in SPECS.items() for group in pods(spec)]


def problems(schema: dict[str, Any], value: Any) -> list[str]:
    found = jsonschema.Draft7Validator(schema).iter_errors(value)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses unknown fields, which the API server drops without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    is_open = "additionalProperties" in out or out.get("x-kubernetes-preserve-unknown-fields")
    return {**out, "additionalProperties": False} if isinstance(out.get("properties"), dict) and not is_open else out


def crd_schema(kind: str) -> dict[str, Any]:
    crd = yaml.safe_load(Path(CRDS, f"ray.io_{KINDS[kind]}.yaml").read_text(encoding="utf-8"))
    version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_have_the_fields_that_we_mean(kind: str) -> None:
    assert problems(SCHEMAS[kind], kuberay(kind)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOptions", "mode"), "disabled"),
        (("spec", "headGroupSpec", "serviceType"), "LoadBalancer"),
        (("spec", "enableIntreeAutoscaling"), True),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), "0"),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "securityContext", "runAsNonRoot"), False),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "resources", "limits", "gpu"), "1"),
    ],
)
def test_the_small_schema_finds_mistakes(path: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(kuberay("RayCluster"))
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert problems(SCHEMAS["RayCluster"], broken)


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs")
@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_valid_to_kuberays_own_crds(kind: str) -> None:
    schema = crd_schema(kind)
    assert problems(schema, kuberay(kind)) == []
    assert problems(schema, {**kuberay(kind), "spec": {**kuberay(kind)["spec"], "mispelt": 1}})


def test_one_job_and_a_standing_cluster_are_the_same_cluster() -> None:
    """But for Redis: every try of a job has a cluster of its own, so nothing outlives its head."""
    standing = dict(SPECS["RayCluster"])
    redis = standing.pop("gcsFaultToleranceOptions")
    assert standing == SPECS["RayJob"]
    service = kuberay("Service", "pretrainer-redis")
    assert redis["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


@pytest.mark.parametrize("kind", KINDS)
def test_all_containers_run_one_image(kind: str) -> None:
    assert len(set(every(kuberay(kind)["spec"], "image"))) == 1


def test_the_version_is_that_of_the_package() -> None:
    assert {spec["rayVersion"].rsplit(".", 1)[0] for spec in SPECS.values()} == {ray.__version__.rsplit(".", 1)[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_autoscaler_is_rays_own_and_of_the_second_version(kind: str) -> None:
    assert SPECS[kind]["enableInTreeAutoscaling"] and SPECS[kind]["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_the_token_is_asked_for_everywhere(kind: str, group: str) -> None:
    for container in pods(SPECS[kind])[group]["spec"]["containers"]:
        assert env_of(container)["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in env_of(container)  # the operator brings it from the Secret


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_a_pod_lives_longer_than_its_drain(kind: str, group: str) -> None:
    """KubeRay sets no grace period, and 30 s of Kubernetes would cut the drain that the trainers save in."""
    pod = pods(SPECS[kind])[group]["spec"]
    env = env_of(pod["containers"][0])
    assert pod["terminationGracePeriodSeconds"] > float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert float(env["RAY_JOB_STOP_WAIT_TIME_S"]) > STOP_PATIENCE_S
    if group == "head":
        assert pod["terminationGracePeriodSeconds"] > float(env["RAY_JOB_STOP_WAIT_TIME_S"])


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_pods_ask_for_what_they_may_use(kind: str, group: str) -> None:
    """Memory and disk that are asked for in full: nothing is evicted because a neighbour grew."""
    for container in pods(SPECS[kind])[group]["spec"]["containers"]:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests == limits and {"cpu", "memory", "ephemeral-storage"} <= set(limits)


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_spilled_objects_fit_below_the_limit_of_the_disk(kind: str, group: str) -> None:
    pod = pods(SPECS[kind])[group]["spec"]
    [tmp] = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "tmp"]
    assert int(tmp.removesuffix("Gi")) < int(pod["containers"][0]["resources"]["limits"]["ephemeral-storage"][:-2])


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_mounts_have_their_volumes(kind: str, group: str) -> None:
    pod = pods(SPECS[kind])[group]["spec"]
    mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    if group == "head":
        mounts |= {mount["name"] for mount in SPECS[kind]["autoscalerOptions"]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_only_the_autoscaler_has_a_token_of_kubernetes(kind: str, group: str) -> None:
    pod = pods(SPECS[kind])[group]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert kuberay("ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert not [m for m in container["volumeMounts"] if "serviceaccount" in m["mountPath"]]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_runs_on_the_head(kind: str) -> None:
    assert SPECS[kind]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("kind", KINDS)
def test_spot_comes_first_and_on_demand_takes_its_place(kind: str) -> None:
    groups = {group["groupName"]: group for group in SPECS[kind]["workerGroupSpecs"]}
    spot, fallback = groups["trainer-spot"], groups["trainer-on-demand"]
    assert spot["priority"] > fallback["priority"]
    assert spot["maxReplicas"] == fallback["maxReplicas"]
    assert spot["template"]["spec"]["containers"] == fallback["template"]["spec"]["containers"]
    assert "affinity" in spot["template"]["spec"] and "affinity" not in fallback["template"]["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_scales_to_zero(kind: str) -> None:
    for group in SPECS[kind]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_ray_and_of_kubernetes_say_the_same_role(kind: str) -> None:
    groups = {"head": SPECS[kind]["headGroupSpec"], **{g["groupName"]: g for g in SPECS[kind]["workerGroupSpecs"]}}
    for name, group in groups.items():
        role = name.partition("-")[0]
        assert group["labels"]["pretrainer/role"] == role
        assert group["template"]["metadata"]["labels"]["pretrainer/role"] == role
        gpus = [c["resources"]["limits"].get("nvidia.com/gpu", "0") for c in group["template"]["spec"]["containers"]]
        assert (gpus != ["0"]) is (role == "trainer")


def test_policies_and_budgets_select_pods_that_there_are() -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(SPECS["RayJob"]).values()]
    labels += [kuberay("RayJob")["spec"]["submitterPodTemplate"]["metadata"]["labels"]]
    labels += [kuberay("StatefulSet")["spec"]["template"]["metadata"]["labels"]]
    for path in ("access.yaml", "redis.yaml", "podmonitor.yaml"):
        for one in load(f"kuberay/{path}"):
            spec = one.get("spec", {})
            for key in ("podSelector", "selector"):
                selector = spec.get(key, {}).get("matchLabels", {})
                assert any(selector.items() <= of_pod.items() for of_pod in labels), (one["kind"], selector)


def test_nothing_is_open_but_what_is_needed() -> None:
    """No rule lets everybody in, and the ports that rules name are those that containers have."""
    policy = kuberay("NetworkPolicy", "pretrainer")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule.get("from") and all(rule["from"]) for rule in policy["ingress"])
    named = {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])}
    containers = [container for pod in pods(SPECS["RayJob"]).values() for container in pod["spec"]["containers"]]
    exposed = {port["containerPort"] for container in containers for port in container["ports"]}
    assert named <= exposed and named == {8265, 8080}
    assert kuberay("Service", "pretrainer-redis")["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_budgets_are_of_the_kind_that_pods_of_a_custom_resource_know() -> None:
    for one in load("kuberay/access.yaml"):
        if one["kind"] == "PodDisruptionBudget":
            assert "maxUnavailable" not in one["spec"] and isinstance(one["spec"]["minAvailable"], int)


def test_the_job_reads_the_config_that_is_mounted() -> None:
    words = kuberay("RayJob")["spec"]["entrypoint"].split()
    path = Path(words[words.index("--config") + 1])
    pod = pods(SPECS["RayJob"])["head"]["spec"]
    [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == str(path.parent)]
    [volume] = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert volume["configMap"]["name"] == "pretrainer-run" and (CLUSTER / path.name).is_file()


def test_the_run_fits_into_the_largest_cluster() -> None:
    config = load_config(str(CLUSTER / "run.yaml"), [])
    for spec in SPECS.values():
        for group in spec["workerGroupSpecs"]:
            if group["groupName"].startswith("trainer"):
                limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
                assert group["maxReplicas"] * int(limits["nvidia.com/gpu"]) >= config.train.worker_range[1]
                assert int(limits["cpu"]) >= config.train.cpus_per_worker


def test_secrets_are_named_and_not_written() -> None:
    for path in sorted((CLUSTER / "kuberay").glob("*.yaml")):
        assert all(one["kind"] != "Secret" for one in load(f"kuberay/{path.name}"))
