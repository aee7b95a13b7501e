"""Schema of the fields of RayCluster and RayJob in KubeRay 1.7 that this project may use, and a check against it.

The schemas of Kubernetes do not include them, since they come with the operator. Deprecated fields and fields that only
KubeRay itself sets are left out. A shape is a type, a set of allowed strings, `[shape]` for a list, or a mapping of
field names to shapes.
"""

from typing import Any

POD_TEMPLATE = "a pod template"
CONTAINER_FIELDS = "fields of a container"
"""Shapes that are in the schemas of Kubernetes; `core_parts` extracts them."""

TEXT_TO_TEXT = "a mapping of texts"

GROUP = {
    "template": POD_TEMPLATE,
    "rayStartParams": TEXT_TO_TEXT,
    "resources": TEXT_TO_TEXT,
    "labels": TEXT_TO_TEXT,
}
RAY_CLUSTER = {
    "rayVersion": str,
    "suspend": bool,
    "managedBy": {"ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"},
    "upgradeStrategy": {"type": {"Recreate", "None"}},
    "authOptions": {"mode": {"disabled", "token"}, "secretName": str, "enableK8sTokenAuth": bool},
    "tlsOptions": {"enabled": bool},
    "headServiceAnnotations": TEXT_TO_TEXT,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": {"v1", "v2"},
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "idleTimeoutSeconds": int,
        **dict.fromkeys(
            ("image", "imagePullPolicy", "resources", "securityContext", "env", "envFrom", "volumeMounts"),
            CONTAINER_FIELDS,
        ),
        **dict.fromkeys(("command", "args"), CONTAINER_FIELDS),
    },
    "gcsFaultToleranceOptions": {
        "backend": {"redis", "rocksdb"},
        "redisAddress": str,
        "externalStorageNamespace": str,
        "storage": {
            "claimName": str,
            "size": str,
            "storageClassName": str,
            "accessModes": [str],
            "subPath": str,
            "deletionPolicy": {"DeleteWithCluster", "Retain"},
        },
    },
    "headGroupSpec": {
        **GROUP,
        "enableIngress": bool,
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
    },
    "workerGroupSpecs": [
        {
            **GROUP,
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "idleTimeoutSeconds": int,
            "priority": int,
            "numOfHosts": int,
        }
    ],
}
RAY_JOB = {
    "entrypoint": str,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "entrypointResources": str,
    "runtimeEnvYAML": str,
    "jobId": str,
    "metadata": TEXT_TO_TEXT,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "submitterPodTemplate": POD_TEMPLATE,
    "submitterConfig": {"backoffLimit": int},
    "clusterSelector": TEXT_TO_TEXT,
    "rayClusterSpec": RAY_CLUSTER,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "preRunningDeadlineSeconds": int,
    "backoffLimit": int,
    "suspend": bool,
    "managedBy": {"ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"},
}
SPECS = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}
REQUIRED = {
    "RayCluster": ["headGroupSpec"],
    "rayClusterSpec": ["headGroupSpec"],
    "headGroupSpec": ["template"],
    "workerGroupSpecs": ["groupName", "minReplicas", "maxReplicas", "template"],
}


def offences(value: Any, shape: Any, path: str) -> list[str]:
    """Return the differences between a value and a shape, one line each, which begins with the path."""
    if isinstance(shape, dict):
        return _offences_of_mapping(value, shape, path)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [line for item in value for line in offences(item, shape[0], path)]
    if isinstance(shape, set):
        return [] if value in shape else [f"{path}: {value!r} is none of {sorted(shape)}"]
    if shape == TEXT_TO_TEXT:
        valid = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        return [] if valid else [f"{path}: not a mapping of texts to texts"]
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{path}: {value!r} is not of type {shape.__name__}"]
    return []


def _offences_of_mapping(value: Any, shape: dict[str, Any], path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: not a mapping"]
    found = [f"{path}.{name}: missing" for name in REQUIRED.get(path.split(".")[-1], []) if name not in value]
    for name, inner in value.items():
        if name in shape:
            found += offences(inner, shape[name], f"{path}.{name}")
        else:
            found.append(f"{path}.{name}: no such field")
    return found


def core_parts(value: Any, shape: Any) -> list[dict[str, Any]]:
    """Return the parts of a value that are in the schemas of Kubernetes, each as a pod template."""
    if shape == POD_TEMPLATE:
        return [value]
    if isinstance(shape, list):
        return [part for item in value for part in core_parts(item, shape[0])]
    if not isinstance(shape, dict):
        return []
    fields = {name: inner for name, inner in value.items() if shape.get(name) == CONTAINER_FIELDS}
    parts = [{"spec": {"containers": [{"name": "autoscaler", **fields}]}}] if fields else []
    return parts + [part for name, inner in value.items() for part in core_parts(inner, shape.get(name))]
