"""Files in cluster/ as Python objects: the shared definition, the `ray up` clusters, the Kubernetes manifests."""

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ["aws", "gcp", "on_premise"]
MANIFESTS = sorted(file.name for file in (CLUSTER / "kuberay").glob("*.yaml"))

Tree = dict[str, Any]


def load(name: str) -> Tree:
    """Load a file with one document by its name without suffix, such as "aws"."""
    loaded: Tree = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return loaded


def definition() -> Tree:
    return load("definition")


def documents(manifest: str) -> list[Tree]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / manifest).read_text()))


def objects(kind: str) -> list[Tree]:
    """Return all Kubernetes objects of a kind."""
    return [found for name in MANIFESTS for found in documents(name) if found["kind"] == kind]


def ray_cluster() -> Tree:
    (found,) = objects("RayCluster")
    spec: Tree = found["spec"]
    return spec


def ray_groups() -> list[Tree]:
    """Return the head group, then the worker groups."""
    return [ray_cluster()["headGroupSpec"], *ray_cluster()["workerGroupSpecs"]]


def pod_templates() -> list[Tree]:
    """Return the templates of all pods that the manifests create."""
    templates = [group["template"] for group in ray_groups()]
    templates += [job["spec"]["submitterPodTemplate"] for job in objects("RayJob")]
    return templates + [
        owner["spec"]["template"] for kind in ("Deployment", "StatefulSet") for owner in objects(kind)
    ]


def containers() -> list[Tree]:
    return [container for template in pod_templates() for container in template["spec"]["containers"]]


def container_of(group: Tree) -> Tree:
    container: Tree = group["template"]["spec"]["containers"][0]
    return container


def values_of(container: Tree) -> dict[str, str]:
    """Return the environment variables with literal values."""
    return {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}


def docker_environment(options: list[str]) -> dict[str, str]:
    """Return the environment variables in `docker run` options."""
    words = shlex.split(" ".join(options))
    pairs = [value for option, value in pairwise(words) if option == "--env"]
    return dict(pair.split("=", 1) for pair in pairs)


def start_options(command: str) -> list[str]:
    """Return the arguments of `ray start` in a shell command."""
    words = shlex.split(command)
    return words[words.index("start") + 1 :]
