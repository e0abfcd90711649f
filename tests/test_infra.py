"""The cluster files against the schema of the installed Ray, and against this repository."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"


def load(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def schema() -> dict[str, Any]:
    path = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return load(ROOT / "ray_cluster.yaml")


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return load(INFRA / "rayjob.yaml")


def pinned(name: str) -> str:
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{name}(?:\[\w+\])?==(\S+)", lock, re.MULTILINE)
    assert found, f"requirements.txt does not pin {name}"
    return found.group(1)


def test_cluster_file_fits_rays_schema(cluster: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 1}, schema)


def test_cluster_has_a_head_on_demand_and_spot_gpu_workers(cluster: dict[str, Any]) -> None:
    nodes = cluster["available_node_types"]
    head = nodes.pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    for worker in nodes.values():
        assert worker["resources"]["GPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert 0 <= worker["min_workers"] <= worker["max_workers"] <= cluster["max_workers"]


def test_cluster_leaves_no_setup_to_rays_defaults(cluster: dict[str, Any]) -> None:
    # Ray fills in what is missing, with commands that install a development wheel and open the dashboard to all.
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"):
        assert cluster[key] == []
    assert cluster["file_mounts"] == {}
    start = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=" in start


def test_runtime_env_is_one_that_ray_accepts() -> None:
    settings = load(INFRA / "runtime_env.yaml")
    assert RuntimeEnv(**settings)["env_vars"] == settings["env_vars"]
    assert all(isinstance(value, str) for value in settings["env_vars"].values())


def entry_points() -> list[tuple[str, list[str]]]:
    """(module, options) of every `python -m ...` in the cluster files."""
    found = []
    for path in (INFRA / "rayjob.yaml", INFRA / "README.md", ROOT / "ray_cluster.yaml"):
        text = re.sub(r"\\\n\s*#?\s*", "", path.read_text(encoding="utf-8"))
        for module, rest in re.findall(r"python -m (jobs\.\w+)([^\n]*)", text):
            found.append((module, re.findall(r"--[a-z-]+", rest)))
    return found


def test_every_entry_point_exists_and_takes_its_options() -> None:
    points = entry_points()
    assert len(points) >= 3
    for module in {module for module, _ in points}:
        assert importlib.util.find_spec(module), f"{module} does not exist"
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        used = {option for name, options in points if name == module for option in options}
        assert used, f"no option of {module} found in the files"
        assert not used - set(re.findall(r"--[a-z-]+", shown))


def test_rayjob_uses_the_pinned_ray_and_one_image(rayjob: dict[str, Any], cluster: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    assert re.search(r"-m jobs\.index\b", spec["entrypoint"])
    assert spec["shutdownAfterJobFinishes"] is True
    ray_cluster = spec["rayClusterSpec"]
    assert ray_cluster["rayVersion"] == pinned("ray")
    groups = [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]
    images = {item["image"] for group in groups for item in group["template"]["spec"]["containers"]}
    assert images == {cluster["docker"]["image"]}
    for group in ray_cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_image_has_the_pinned_ray_and_this_version(cluster: dict[str, Any]) -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG RAY_VERSION=(\S+)", text, re.MULTILINE) == [pinned("ray")]
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', pyproject, re.MULTILINE)
    assert version
    assert cluster["docker"]["image"].endswith(f":{version.group(1)}")


def test_image_copies_what_exists_and_is_let_through() -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    sources = [name for line in re.findall(r"^COPY (.+)", text, re.MULTILINE) for name in line.split()[:-1]]
    assert {"requirements.txt", "pyproject.toml", "echoprune", "pipelines", "jobs"} <= set(sources)
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in sources:
        assert (ROOT / name).exists(), f"Dockerfile copies {name}, which does not exist"
        assert f"!{name}" in let_through, f".dockerignore keeps {name} out of the build"


def test_requirements_pin_everything_that_the_project_names() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = pyproject.partition("\ndependencies = [")[2].partition("[project.scripts]")[0]
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    names = re.findall(r'^\s+"([\w-]+)', block, re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"^{name}(\[\w+\])?==", lock, re.MULTILINE)] == []


def test_requirements_take_the_torch_build_that_is_offered() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("#")[0].strip() for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", pin) for pin in pins), (
        "only exact pins, no options, no hosts"
    )
    assert not [pin for pin in pins if "+" in pin]
