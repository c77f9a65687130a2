"""What of KubeRay's resources we use, as a small JSON schema: a field that is misspelt, or has another type, is found.

Written from the documentation of KubeRay 1.6; with KUBERAY_CRDS=folder its CRDs themselves are asked too.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[A-Za-z0-9._-]{1,63}$"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}
ANYTHING: Schema = {}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


AMOUNTS: Schema = {
    "type": "object",
    "propertyNames": {"enum": ["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"]},
    "additionalProperties": QUANTITY,
}
RESOURCES = fields(("requests", "limits"), requests=AMOUNTS, limits=AMOUNTS)
SECURITY_OF_CONTAINER = fields(
    ("allowPrivilegeEscalation", "capabilities"),
    allowPrivilegeEscalation={"const": False},
    readOnlyRootFilesystem=BOOLEAN,
    capabilities=fields(("drop",), drop={"const": ["ALL"]}),
)
SECURITY_OF_POD = fields(
    ("runAsNonRoot", "seccompProfile"),
    runAsNonRoot={"const": True},
    runAsUser=COUNT,
    runAsGroup=COUNT,
    fsGroup=COUNT,
    seccompProfile=fields(("type",), type={"const": "RuntimeDefault"}),
)
MOUNT = fields(("name", "mountPath"), name=STRING, mountPath={"type": "string", "pattern": "^/"}, readOnly=BOOLEAN)
CONTAINER = fields(
    ("name", "image", "resources", "securityContext"),
    name=STRING,
    image=STRING,
    imagePullPolicy={"enum": ["IfNotPresent", "Always"]},
    ports=listed(fields(("name", "containerPort"), name=STRING, containerPort=COUNT)),
    env=listed(fields(("name", "value"), name=STRING, value={"type": "string"})),
    envFrom=listed(fields(("secretRef",), secretRef=fields(("name",), name=STRING, optional=BOOLEAN))),
    resources=RESOURCES,
    securityContext=SECURITY_OF_CONTAINER,
    volumeMounts=listed(MOUNT),
)
VOLUME = fields(
    ("name",),
    name=STRING,
    emptyDir=fields(("sizeLimit",), sizeLimit=QUANTITY),
    configMap=fields(("name",), name=STRING),
    projected=fields(("sources",), sources=listed({"type": "object", "maxProperties": 1})),
)
TOLERATION = fields(("key", "operator", "effect"), key=STRING, operator=STRING, value=STRING, effect=STRING)
POD = fields(
    ("metadata", "spec"),
    metadata=fields(("labels",), labels=LABELS),
    spec=fields(
        ("serviceAccountName", "automountServiceAccountToken", "securityContext", "containers"),
        serviceAccountName=STRING,
        automountServiceAccountToken=BOOLEAN,
        priorityClassName=STRING,
        restartPolicy={"const": "Never"},
        terminationGracePeriodSeconds=COUNT,
        securityContext=SECURITY_OF_POD,
        affinity=fields(("nodeAffinity",), nodeAffinity=ANYTHING),
        tolerations=listed(TOLERATION),
        containers=listed(CONTAINER),
        volumes=listed(VOLUME),
    ),
)
START_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
WORKER_GROUP = fields(
    ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName={"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    priority=COUNT,
    idleTimeoutSeconds=COUNT,
    labels=LABELS,
    rayStartParams=START_PARAMETERS,
    template=POD,
)
SECRET_KEY = fields(("secretKeyRef",), secretKeyRef=fields(("name", "key"), name=STRING, key=STRING))
RAY_CLUSTER_SPEC = fields(
    ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=fields(("mode", "secretName"), mode={"const": "token"}, secretName=STRING),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=fields(
        ("version",),
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
        securityContext=SECURITY_OF_CONTAINER,
        volumeMounts=listed(MOUNT),
    ),
    gcsFaultToleranceOptions=fields(
        ("redisAddress", "redisPassword"),
        redisAddress={"type": "string", "pattern": r"^[a-z0-9.-]+:\d+$"},
        redisPassword=fields(("valueFrom",), valueFrom=SECRET_KEY),
    ),
    headGroupSpec=fields(
        ("rayStartParams", "template"),
        rayStartParams=START_PARAMETERS,
        labels=LABELS,
        serviceType={"const": "ClusterIP"},
        template=POD,
    ),
    workerGroupSpecs=listed(WORKER_GROUP),
)
RAY_JOB_SPEC = fields(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds=COUNT,
    submitterPodTemplate=POD,
    rayClusterSpec=RAY_CLUSTER_SPEC,
)


def resource(kind: str, spec: Schema) -> Schema:
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields(("name",), name=STRING, labels=LABELS),
        spec=spec,
    )


SCHEMAS = {"RayCluster": resource("RayCluster", RAY_CLUSTER_SPEC), "RayJob": resource("RayJob", RAY_JOB_SPEC)}
