"""`ray up` files and the image: valid, and consistent with cluster/definition.yaml. No cluster is started."""

import re
from typing import Any

import cluster_files as files
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.sdk import get_docker_host_mount_location
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

DEFINITION = files.definition()
IMAGES = DEFINITION["images"]

MACHINES = {
    "m7i.xlarge": {"CPU": 4},
    "g6.2xlarge": {"CPU": 8, "GPU": 1},
    "c7i.4xlarge": {"CPU": 16},
    "e2-standard-4": {"CPU": 4},
    "g2-standard-8": {"CPU": 8, "GPU": 1},
    "e2-standard-16": {"CPU": 16},
}
"""CPUs and GPUs of the machine types in the files, from the providers' price lists."""

SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|\bgh[pousr]_\w{20}|\b[0-9a-f]{32,}\b|"
    r"(?i:password|secret|token)\w*[\"']?\s*(?:[:=]|, value:)\s*[\"']?(?!\$|token\b)[A-Za-z0-9+/]{6,}"
)
"""Keys by their format, and literal values of names that contain password, secret or token."""


@pytest.fixture(params=files.RAY_UP)
def ray_up(request: pytest.FixtureRequest) -> dict[str, Any]:
    return files.load(str(request.param))


def constraints() -> dict[str, str]:
    text = (files.ROOT / "constraints.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def dockerfile() -> str:
    return (files.CLUSTER / "Dockerfile").read_text()


def texts() -> dict[str, str]:
    """Return the text of every hand-written file in cluster/, by its path."""
    kinds = (".yaml", ".sh", ".py", "")
    found = [file for file in sorted(files.CLUSTER.rglob("*")) if file.is_file() and file.suffix in kinds]
    return {str(file.relative_to(files.ROOT)): file.read_text() for file in found}


def machine_of(node_type: dict[str, Any]) -> str:
    config = node_type["node_config"]
    return str(config.get("InstanceType") or config["machineType"])


def test_ray_accepts_the_configuration(ray_up: dict[str, Any]) -> None:
    validate_config(prepare_config(ray_up))


def test_ray_rejects_an_unknown_field(ray_up: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config({**ray_up, "idle_timeout": 5}))


def test_start_commands_match_the_definition(ray_up: dict[str, Any]) -> None:
    head, worker = (DEFINITION["start"][part] for part in ("head", "worker"))
    if ray_up["provider"]["type"] == "local":
        head = head.replace("ray start", "RAY_enable_autoscaler_v2=0 ray start")
    assert ray_up["head_start_ray_commands"] == ["ray stop", head]
    assert ray_up["worker_start_ray_commands"] == ["ray stop", worker]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # from pydantic in Ray Serve, which Ray's CLI imports
@pytest.mark.parametrize("part", ["head", "worker"])
def test_ray_start_accepts_the_options_in_use(part: str) -> None:
    from ray.scripts.scripts import start

    kuberay = [f"--{name}={value}" for name, value in DEFINITION["kuberay_start"][part].items()]
    for options in (files.start_options(DEFINITION["start"][part]), kuberay):
        start.make_context("ray start", list(options))


@pytest.mark.parametrize("part", ["head", "worker"])
def test_start_commands_use_the_ports_and_the_folder_of_the_definition(part: str) -> None:
    command, ports = DEFINITION["start"][part], DEFINITION["ports"]
    assert command.startswith(f"cd {DEFINITION['project_folder']} && ")
    assert f":{ports['gcs']}" in command or f"--port={ports['gcs']}" in command
    assert f"--object-manager-port={ports['object_manager']}" in command
    assert f"--metrics-export-port={ports['metrics']}" in command
    assert DEFINITION["kuberay_start"][part]["metrics-export-port"] == str(ports["metrics"])


def test_the_head_offers_no_cpus_and_gpus() -> None:
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(files.start_options(DEFINITION["start"]["head"]))
    assert DEFINITION["kuberay_start"]["head"].items() >= {"num-cpus": "0", "num-gpus": "0"}.items()
    for name in ("aws", "gcp"):
        head = files.load(name)["available_node_types"]["head"]
        assert head["resources"] == {"CPU": 0, "GPU": 0}
        assert head["max_workers"] == 0


def test_the_dashboard_listens_on_loopback_only() -> None:
    assert "--dashboard-host=127.0.0.1" in files.start_options(DEFINITION["start"]["head"])


def test_environment_variables_match_the_definition(ray_up: dict[str, Any]) -> None:
    docker = ray_up["docker"]
    assert files.docker_environment(docker["run_options"]) == DEFINITION["environment"]["every_node"]
    actual, expected = files.docker_environment(docker["head_run_options"]), DEFINITION["environment"]["head"]
    assert actual.keys() == expected.keys()
    same = {name: value for name, value in expected.items() if value != "differs by platform"}
    assert actual.items() >= same.items()
    assert actual["PERCEIVER_TRACKING__URI"].endswith(f":{DEFINITION['ports']['mlflow']}")


def test_grace_periods_leave_time_to_save() -> None:
    environment, grace = DEFINITION["environment"], DEFINITION["grace_seconds"]
    assert environment["head"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(grace["checkpoint"])
    assert environment["kuberay_worker"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == str(grace["checkpoint"])
    assert grace["pod"] > grace["checkpoint"]


def test_the_users_token_is_mounted_on_all_nodes(ray_up: dict[str, Any]) -> None:
    assert ray_up["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (command,) = ray_up["initialization_commands"]
    assert command.endswith(f" {get_docker_host_mount_location(ray_up['cluster_name'])}")


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_resources_of_node_types_match_their_machines(name: str) -> None:
    node_types = files.load(name)["available_node_types"]
    assert node_types.keys() == {"head", "gpu_worker", "data_worker"}
    for kind in ("gpu_worker", "data_worker"):
        assert node_types[kind]["resources"] == MACHINES[machine_of(node_types[kind])]
    assert "GPU" not in MACHINES[machine_of(node_types["head"])]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_workers_scale_from_zero_and_idle_ones_are_terminated(name: str) -> None:
    cluster = files.load(name)
    workers = [kind for type_name, kind in cluster["available_node_types"].items() if type_name != "head"]
    assert [kind["min_workers"] for kind in workers] == [0, 0]
    assert cluster["max_workers"] == sum(kind["max_workers"] for kind in workers)
    assert cluster["idle_timeout_minutes"] == DEFINITION["idle_minutes"]
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_all_on_premise_machines_join() -> None:
    cluster = files.load("on_premise")
    machines = len(cluster["provider"]["worker_ips"])
    assert cluster["min_workers"] == cluster["max_workers"] == machines


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_only_gpu_nodes_use_the_cuda_image(name: str) -> None:
    config = AutoscalingConfig(files.load(name), skip_content_hash=True)
    images = {kind: config.get_docker_config(kind)["image"] for kind in ("head", "gpu_worker", "data_worker")}
    assert images == {"head": IMAGES["cpu"], "gpu_worker": IMAGES["cuda"], "data_worker": IMAGES["cpu"]}


def test_on_premise_machines_use_the_cuda_image() -> None:
    assert files.load("on_premise")["docker"]["image"] == IMAGES["cuda"]


def test_versions_match_the_constraints() -> None:
    versions, pinned = DEFINITION["versions"], constraints()
    assert {name: versions[name] for name in ("ray", "torch", "mlflow")}.items() <= pinned.items()
    for name in ("boto3", "google-api-python-client"):
        assert versions[name] == pinned.get(name, versions[name])
    assert f":v{versions['mlflow']}-" in IMAGES["mlflow"]


def test_the_image_is_built_with_the_versions_of_the_definition() -> None:
    versions, text = DEFINITION["versions"], dockerfile()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [f"python:{versions['python']}-slim-trixie"]
    for name in ("torch", "boto3", "google-api-python-client"):
        assert set(re.findall(rf"\b{name}==([\d.]+)", text)) == {versions[name]}
    assert "pip install --use-pep517 -c constraints.txt ." in text
    assert text.count("pip install") == text.count("-c constraints.txt") == 3


def test_the_image_contains_the_jobs_and_does_not_run_as_root() -> None:
    text = dockerfile()
    assert f"\nWORKDIR {DEFINITION['project_folder']}\n" in text
    assert "\nCOPY jobs jobs\n" in text
    assert text.rstrip().splitlines()[-1] == "USER 1000"
    for image in (IMAGES["cpu"], IMAGES["cuda"]):
        assert f"-t {image} ." in text
        assert f"VARIANT={image.rpartition('-')[2]} " in text


def test_the_build_context_contains_exactly_what_is_copied() -> None:
    ignored = (files.ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word for line in re.findall(r"^COPY (.+)", dockerfile(), re.MULTILINE) for word in line.split()[:-1]
    }
    assert "*" in ignored
    assert sent == copied


@pytest.mark.parametrize("path", texts())
def test_no_image_uses_the_tag_latest(path: str) -> None:
    assert ":latest" not in texts()[path]


@pytest.mark.parametrize("path", texts())
def test_no_file_contains_a_secret(path: str) -> None:
    assert [line for line in texts()[path].splitlines() if SECRETS.search(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "- --env AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG",
        "- {name: POSTGRES_PASSWORD, value: hunter22}",
        "password: hunter22",
        "auth_token: 0123456789abcdef0123456789abcdef",
    ],
)
def test_secrets_are_detected(line: str) -> None:
    assert SECRETS.search(line)
