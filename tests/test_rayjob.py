"""The KubeRay jobs, as far as no API server is needed: keys, quantities, volumes, and the entrypoint's own options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.runtime_env import RuntimeEnv

from tests.command_lines import parse

INFRA = Path(__file__).resolve().parents[1] / "infra"
FILES = ("rayjob.yaml", "rayjob-answer.yaml")
# Of ray.io/v1, as far as these files use it.
SPEC = {
    "entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
    "submitterConfig", "rayClusterSpec",
}  # fmt: skip
CLUSTER = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
HEAD = {"rayStartParams", "template"}
WORKERS = HEAD | {"groupName", "replicas", "minReplicas", "maxReplicas"}
POD = {
    "serviceAccountName", "terminationGracePeriodSeconds", "securityContext", "nodeSelector", "tolerations",
    "containers", "volumes",
}  # fmt: skip
CONTAINER = {"name", "image", "securityContext", "resources", "volumeMounts"}
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}  # fmt: skip


def amount(quantity: str) -> float:
    """A Kubernetes quantity, which must be text: YAML would read 1e3 and 010 as it likes."""
    assert isinstance(quantity, str), quantity
    found = QUANTITY.fullmatch(quantity)
    assert found, quantity
    return float(found[1]) * UNITS[found[2] or ""]


@pytest.fixture(params=FILES)
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded = yaml.safe_load((INFRA / request.param).read_text(encoding="utf-8"))
    assert loaded.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (loaded["apiVersion"], loaded["kind"]) == ("ray.io/v1", "RayJob")
    # A name of its own for each time it is created: submitted again is created again.
    assert re.fullmatch(r"[a-z][a-z0-9-]*-", loaded["metadata"]["generateName"])
    return dict(loaded["spec"])


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups(spec)]


def test_keys_are_those_of_a_rayjob(spec: dict[str, Any]) -> None:
    assert spec.keys() == SPEC and spec["rayClusterSpec"].keys() == CLUSTER
    head, *workers = groups(spec)
    assert head.keys() == HEAD and all(each.keys() == WORKERS for each in workers)
    for group in groups(spec):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(spec):
        assert POD - {"tolerations"} <= pod.keys() <= POD
        assert [container.keys() for container in pod["containers"]] == [CONTAINER]
    names = [group["groupName"] for group in workers]
    assert len(set(names)) == len(names)


def test_the_cluster_goes_with_the_job_and_a_lost_head_is_a_new_one(spec: dict[str, Any]) -> None:
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1 and spec["submitterConfig"]["backoffLimit"] >= 1
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_entrypoint_is_a_plain_command_that_exists(spec: dict[str, Any]) -> None:
    entrypoint = spec["entrypoint"]
    # The operator puts it into a `bash -c` as it is, and Ray into a shell again.
    assert not re.search(r"[;&|<>$`'\"\\\n*?]", entrypoint)
    words = shlex.split(entrypoint)
    assert parse(words) in ("python -m jobs.index", "python -m jobs.answer")
    # Else one bad video would start the whole cluster again, `backoffLimit` times.
    assert "--failed-ok" in words and words[words.index("--device") + 1] == "cuda"
    with pytest.raises(click.UsageError):
        parse([*words, "--no-such-option"])


def test_its_environment_is_that_of_other_jobs(spec: dict[str, Any]) -> None:
    settings = yaml.safe_load(spec["runtimeEnvYAML"])
    other = yaml.safe_load((INFRA / "runtime_env.yaml").read_text(encoding="utf-8"))
    assert RuntimeEnv(**settings)["env_vars"] == other["env_vars"]


def test_resources_are_quantities_and_limits_are_requests(spec: dict[str, Any]) -> None:
    for pod in pods(spec):
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= resources["limits"].keys()
        assert all(amount(value) > 0 for value in resources["limits"].values())
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods(spec)]
    assert gpus[:2] == [None, "1"] and set(gpus[2:]) <= {None}


def test_shared_memory_holds_the_object_store_and_fits_into_the_pod(spec: dict[str, Any]) -> None:
    for group, pod in zip(groups(spec), pods(spec), strict=True):
        (volume,), (container,) = pod["volumes"], pod["containers"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        assert volume["emptyDir"]["medium"] == "Memory"
        size = amount(volume["emptyDir"]["sizeLimit"])
        assert size <= amount(container["resources"]["limits"]["memory"]) / 4
        assert int(group["rayStartParams"].get("object-store-memory", "0")) <= size


def test_workers_are_spot_the_head_is_not_and_nobody_is_root(spec: dict[str, Any]) -> None:
    head, *workers = pods(spec)
    kind = "eks.amazonaws.com/capacityType"
    assert head["nodeSelector"][kind] == "ON_DEMAND" and "tolerations" not in head
    assert groups(spec)[0]["rayStartParams"]["num-cpus"] == "0"
    for pod in workers:
        assert pod["nodeSelector"][kind] == "SPOT"
        assert {"key": "spot", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    for pod in pods(spec):
        # S3 through the role of the service account; no key in the file.
        assert pod["serviceAccountName"] == "echoprune"
        # AWS tells of the end of a spot machine 120 s ahead.
        assert 30 < pod["terminationGracePeriodSeconds"] < 120
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
        assert pod["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False}


def test_a_job_waits_for_the_gpus_that_it_will_take(spec: dict[str, Any]) -> None:
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    gpu = groups.pop("gpu")
    assert 0 < gpu["replicas"] == gpu["minReplicas"] == gpu["maxReplicas"]
    # Others are there to be asked for: nothing of them runs, or is paid, before that. Nobody would hear it without this.
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert spec["rayClusterSpec"]["autoscalerOptions"].keys() == {"idleTimeoutSeconds"}
    assert set(groups) <= {"decode"}
    assert all(
        group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values()
    )
