"""The cluster files against the schema of the installed Ray, and against this repository."""

from __future__ import annotations

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

from pipelines.config import IndexConfig
from pipelines.metrics import METRICS
from pipelines.places import DECODE, Place
from tests.command_lines import ours, parse

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"


def load(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def load_json(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def schema() -> dict[str, Any]:
    path = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return load(ROOT / "ray_cluster.yaml")


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
    assert nodes.keys() == {"gpu", "decode"}
    assert nodes["gpu"]["resources"]["GPU"] >= 1
    for worker in nodes.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert 0 <= worker["min_workers"] <= worker["max_workers"] <= cluster["max_workers"]


def test_decode_nodes_are_those_that_a_run_asks_for(cluster: dict[str, Any]) -> None:
    rayjob = load(INFRA / "rayjob.yaml")
    asked = Place("", home=False).options()
    offered = cluster["available_node_types"]["decode"]
    # As many decode actors as cores, none on a machine with a GPU, which an autoscaler would otherwise start for them.
    assert asked["resources"] == {DECODE: 1} and asked["num_cpus"] == 1
    assert offered["resources"] == {"CPU": offered["resources"]["CPU"], DECODE: offered["resources"]["CPU"]}
    assert DECODE not in cluster["available_node_types"]["gpu"]["resources"]
    assert (
        sum(each.get("max_workers", 0) for each in cluster["available_node_types"].values())
        <= cluster["max_workers"]
    )
    groups = {each["groupName"]: each for each in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    (container,) = groups["decode"]["template"]["spec"]["containers"]
    # Twice quoted: the operator puts it into a shell command as it is.
    resources = json.loads(json.loads(groups["decode"]["rayStartParams"]["resources"]))
    assert resources == {DECODE: int(container["resources"]["requests"]["cpu"])}
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    # Its disk holds the videos from S3 of all its decode actors, and the image.
    room_gb = int(container["resources"]["requests"]["ephemeral-storage"].removesuffix("Gi"))
    cache_gb = IndexConfig.__dataclass_fields__["s3_cache_gb"].default
    assert room_gb >= resources[DECODE] * cache_gb + 20
    disk = offered["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
    assert disk >= offered["resources"][DECODE] * cache_gb + 20


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


@pytest.mark.parametrize("file", ["rayjob.yaml", "rayjob-answer.yaml"])
def test_rayjobs_use_the_pinned_ray_and_the_one_image(file: str, cluster: dict[str, Any]) -> None:
    ray_cluster = load(INFRA / file)["spec"]["rayClusterSpec"]
    assert ray_cluster["rayVersion"] == pinned("ray")
    groups = [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]
    images = {item["image"] for group in groups for item in group["template"]["spec"]["containers"]}
    assert images == {cluster["docker"]["image"]}


def test_commands_in_the_comments_of_files_are_right() -> None:
    found = []
    for path in (ROOT / "ray_cluster.yaml", INFRA / "runtime_env.yaml"):
        text = re.sub(r"\\\n\s*#?\s*", "", path.read_text(encoding="utf-8"))
        for line in re.findall(r"^#\s+(ray .+|python -m .+)$", text, re.MULTILINE):
            found += [parse(words) for words in ours(re.split(r"\s{3,}", line)[0])]
    assert {"ray up", "ray dashboard", "ray down", "ray job submit: python -m jobs.index"} <= set(found)


def test_image_has_the_pinned_ray_and_this_version(cluster: dict[str, Any]) -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG RAY_VERSION=(\S+)", text, re.MULTILINE) == [pinned("ray")]
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', pyproject, re.MULTILINE)
    assert version
    assert cluster["docker"]["image"].endswith(f":{version.group(1)}")


def test_image_is_pinned_has_no_root_and_keeps_no_cache() -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    installs = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    assert len(installs) == 2 and all("--no-cache-dir" in rest for rest in installs)
    assert "-c constraints.txt" in installs[0] and "--no-deps" in installs[1]
    # A number: Kubernetes cannot tell of a name that it is not root.
    assert [rest for step, rest in steps if step == "USER"][-1] == "1000"
    assert not {step for step, _ in steps} & {"ADD", "ENTRYPOINT", "CMD"}
    # Triton compiles with it, and leaves no list of packages behind.
    (packages,) = [rest for step, rest in steps if step == "RUN" and "apt-get" in rest]
    assert " gcc libc6-dev " in packages and packages.endswith("rm -rf /var/lib/apt/lists/*")
    # Without these a container of `ray up` sees no GPU: Ray's launcher names the runtime alone.
    assert dict(rest.split("=") for step, rest in steps if step == "ENV") == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility,video",
    }
    assert "torch.version.cuda" in installs[0]


def test_image_makes_constraints_that_pip_takes_of_the_pinned_versions(tmp_path: Path) -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"sed -E '.+' requirements.txt > constraints.txt", text)
    (tmp_path / "requirements.txt").write_bytes((ROOT / "requirements.txt").read_bytes())
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    lines = [line for line in (tmp_path / "constraints.txt").read_text().splitlines() if line]
    assert len(lines) > 100 and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    (command,) = re.findall(r'python -c "(import tomllib;.+)" > needed.txt', text)
    listed = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    named = {re.split(r"[\[><=]", each)[0].lower() for each in listed}
    assert {"torch", "ray", "transformers", "s3fs"} <= named
    assert named <= {line.split("==")[0].lower() for line in lines}


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


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    dashboard = load_json(INFRA / "grafana.json")
    panels = dashboard["panels"]
    drawn = set()
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["targets"]
        for target in panel["targets"]:
            for name, selected in re.findall(r"ray_(echoprune_\w+)\{([^}]*)\}", target["expr"]):
                metric = METRICS[name]
                labels = set(re.findall(r"(\w+)=~", selected)) | set(
                    re.findall(r"by \((\w+)\)", target["expr"])
                )
                assert labels <= {"command", metric.label}, target["expr"]
                drawn.add(name)
            assert "echoprune" in target["expr"] and target["expr"].count("(") == target["expr"].count(")")
    assert drawn == set(METRICS)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) == len({panel["id"] for panel in panels})
