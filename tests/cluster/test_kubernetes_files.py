"""Kubernetes manifests: valid by the schemas of Kubernetes and KubeRay, and consistent. No cluster is started."""

from typing import Any

import cluster_files as files
import kuberay_fields
import kubernetes_validate
import pytest

DEFINITION = files.definition()
IMAGES = DEFINITION["images"]
KUBERNETES = DEFINITION["versions"]["kubernetes"]
KUBERNETES_KINDS = [
    pytest.param(document, id=f"{name}: {document['kind']}")
    for name in files.MANIFESTS
    for document in files.documents(name)
    if document["kind"] not in (*kuberay_fields.SPECS, "Kustomization")
]
RAY_KINDS = [*files.objects("RayCluster"), *files.objects("RayJob")]


def validate_pod(template: dict[str, Any]) -> None:
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


def environment(group: dict[str, Any]) -> dict[str, str]:
    return files.values_of(files.container_of(group))


@pytest.mark.parametrize("manifest", KUBERNETES_KINDS)
def test_kubernetes_kinds_are_valid(manifest: dict[str, Any]) -> None:
    assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES


@pytest.mark.parametrize("manifest", RAY_KINDS, ids=lambda manifest: manifest["kind"])
def test_fields_of_kuberay_kinds_are_valid(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    shape = kuberay_fields.SPECS[manifest["kind"]]
    assert kuberay_fields.offences(manifest["spec"], shape, manifest["kind"]) == []


@pytest.mark.parametrize("manifest", RAY_KINDS, ids=lambda manifest: manifest["kind"])
def test_pods_in_kuberay_kinds_are_valid(manifest: dict[str, Any]) -> None:
    parts = kuberay_fields.core_parts(manifest["spec"], kuberay_fields.SPECS[manifest["kind"]])
    assert parts
    for part in parts:
        validate_pod(part)


def test_invalid_fields_of_kuberay_are_detected() -> None:
    cluster = {
        "rayVersion": 2.6,
        "authOptions": {"mode": "maybe"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": 0}},
        "workerGroupSpecs": [{"groupname": "x", "minReplicas": 0, "maxReplicas": 1, "template": {}}],
    }
    assert kuberay_fields.offences(cluster, kuberay_fields.RAY_CLUSTER, "RayCluster") == [
        "RayCluster.rayVersion: 2.6 is not of type str",
        "RayCluster.authOptions.mode: 'maybe' is none of ['disabled', 'token']",
        "RayCluster.headGroupSpec.template: missing",
        "RayCluster.headGroupSpec.rayStartParams: not a mapping of texts to texts",
        "RayCluster.workerGroupSpecs.groupName: missing",
        "RayCluster.workerGroupSpecs.groupname: no such field",
    ]


def test_an_invalid_field_of_a_pod_is_detected() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
        validate_pod({"spec": {"containers": [{"name": "x", "imagee": "y"}]}})


def test_kustomize_applies_every_manifest_except_jobs() -> None:
    (kustomization,) = files.documents("kustomization.yaml")
    applied = {name for name in files.MANIFESTS if not name.startswith(("kustomization", "rayjob-"))}
    assert set(kustomization["resources"]) == applied


def test_versions_match_the_definition() -> None:
    text = (files.CLUSTER / "kuberay" / "kustomization.yaml").read_text()
    assert f"--version {DEFINITION['versions']['kuberay']}\n" in text
    assert files.ray_cluster()["rayVersion"] == DEFINITION["versions"]["ray"]


def test_images_match_the_definition() -> None:
    head, gpu, data = (files.container_of(group)["image"] for group in files.ray_groups())
    assert [head, gpu, data] == [IMAGES["cpu"], IMAGES["cuda"], IMAGES["cpu"]]
    assert {container["image"] for container in files.containers()} == set(IMAGES.values())


def test_ray_start_parameters_match_the_definition() -> None:
    head, *workers = (group["rayStartParams"] for group in files.ray_groups())
    assert head == DEFINITION["kuberay_start"]["head"]
    assert workers == [DEFINITION["kuberay_start"]["worker"]] * 2
    folders = {files.container_of(group)["workingDir"] for group in files.ray_groups()}
    assert folders == {DEFINITION["project_folder"]}


def test_environment_variables_match_the_definition() -> None:
    head, *workers = files.ray_groups()
    actual, expected = environment(head), DEFINITION["environment"]["head"]
    store = {"AWS_ENDPOINT_URL": actual["AWS_ENDPOINT_URL"]}
    assert actual.keys() == expected.keys() | store.keys()
    same = {name: value for name, value in expected.items() if value != "differs by platform"}
    assert actual.items() >= same.items()
    for worker in workers:
        assert environment(worker) == DEFINITION["environment"]["kuberay_worker"] | store
    assert (
        files.ray_cluster()["authOptions"]["mode"] == DEFINITION["environment"]["every_node"]["RAY_AUTH_MODE"]
    )


def test_addresses_match_the_services() -> None:
    ports = {
        service["metadata"]["name"]: service["spec"]["ports"][0]["port"]
        for service in files.objects("Service")
    }
    expected = {
        name.replace("_", "-"): DEFINITION["ports"][name] for name in ("mlflow", "postgres", "object_store")
    }
    assert ports == expected
    (server,) = (
        files.values_of(container) for container in files.containers() if container["name"] == "mlflow"
    )
    head = environment(files.ray_groups()[0])
    assert head["PERCEIVER_TRACKING__URI"] == f"http://mlflow:{ports['mlflow']}"
    assert head["AWS_ENDPOINT_URL"] == server["MLFLOW_S3_ENDPOINT_URL"]
    assert head["AWS_ENDPOINT_URL"] == f"http://object-store:{ports['object-store']}"
    assert server["MLFLOW_BACKEND_STORE_URI"].endswith(f"@postgres:{ports['postgres']}/mlflow")
    assert server["MLFLOW_PORT"] == str(ports["mlflow"])


def test_jobs_run_the_documented_commands_on_this_cluster() -> None:
    entrypoints = {job["spec"]["entrypoint"] for job in files.objects("RayJob")}
    assert entrypoints == {"python jobs/train_multimodal.py", "python jobs/tune_perceiver.py"}
    (cluster,) = files.objects("RayCluster")
    for job in files.objects("RayJob"):
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_grace_periods_leave_time_to_save() -> None:
    for group in files.ray_groups():
        assert (
            group["template"]["spec"]["terminationGracePeriodSeconds"] == DEFINITION["grace_seconds"]["pod"]
        )
    command = files.container_of(files.ray_groups()[0])["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["python", "cluster/stop_jobs.py"]
    assert (files.ROOT / command[1]).exists()


def test_workers_scale_from_zero_and_idle_ones_are_terminated() -> None:
    cluster = files.ray_cluster()
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * DEFINITION["idle_minutes"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]


def test_only_the_gpu_group_requests_gpus() -> None:
    for group in files.ray_groups():
        resources = files.container_of(group)["resources"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (group.get("groupName") == "gpu-workers")
    for group in files.ray_groups()[1:]:
        resources = files.container_of(group)["resources"]
        assert resources["requests"] == resources["limits"]


def test_no_container_runs_as_root_or_without_limits() -> None:
    for template in files.pod_templates():
        for container in template["spec"]["containers"]:
            security = {**template["spec"].get("securityContext", {}), **container["securityContext"]}
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_passwords_come_from_secrets_with_documented_commands() -> None:
    text = (files.CLUSTER / "kuberay" / "kustomization.yaml").read_text()
    secrets = {
        source["secretRef"]["name"]
        for container in files.containers()
        for source in container.get("envFrom", [])
    } | {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for container in files.containers()
        for entry in container.get("env", [])
        if "valueFrom" in entry
    }
    assert secrets == {"postgres", "object-store"}
    for name in secrets:
        assert f"kubectl create secret generic {name} " in text
    assert files.objects("Secret") == []


def test_only_the_head_has_access_to_the_kubernetes_api() -> None:
    accounts = {account["metadata"]["name"]: account for account in files.objects("ServiceAccount")}
    head, *workers = (group["template"]["spec"] for group in files.ray_groups())
    assert head["serviceAccountName"] in accounts
    for worker in workers:
        assert accounts[worker["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert worker["serviceAccountName"] != head["serviceAccountName"]
