"""The shape of the repository: who imports whom, how long files are, what is listed where."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("echoprune", "pipelines", "jobs")
LINES_GOOD, LINES_MOST = 300, 350

# Folders that exist on one machine or for one user only. Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w./~}*-])/(?:home|Users|root|work|tmp/venv|opt/(?:wheels|pypi)|mnt/c)/")
HEAVY = ("torch", "transformers", "ray")


def python_files(*folders: str) -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")
    )


def repository_files() -> list[Path]:
    """Files that are tracked, or would be with `git add .`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def run_in_order() -> list[Path]:
    """The test files by the paths that pytest is told, which are in an order of their own."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    told = settings["tool"]["pytest"]["ini_options"]["testpaths"]
    found = [path for pattern in told for path in sorted(ROOT.glob(pattern))]
    files = [
        file for path in found for file in (sorted(path.rglob("test_*.py")) if path.is_dir() else [path])
    ]
    return list(dict.fromkeys(files))


def test_every_test_file_is_run() -> None:
    run = run_in_order()
    left_out = [path for path in (ROOT / "tests").rglob("test_*.py") if path not in run]
    assert len(run) > 100 and left_out == []


def test_files_that_share_a_ray_are_run_one_after_another() -> None:
    """It ends where a file does not share it, and the next that does starts another."""
    mark = f"usefixtures({'shared_ray'!r})".replace("'", '"')
    sharing = [mark in path.read_text(encoding="utf-8") for path in run_in_order()]
    assert sum(sharing) > 10 and sum(one != other for one, other in pairwise(sharing)) == 2


def test_import_contracts_hold() -> None:
    # In a process of its own: the checker's set-up of logging turns off every logger that is there already, so that
    # later tests of the same process saw no warnings.
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", ["pipelines", "jobs"])
def test_no_file_hides_a_standard_module(folder: str) -> None:
    # `python jobs/x.py` would put the folder first on sys.path, and every later `import` would find ours.
    names = {Path(name).stem for name in python_files(folder)} - {"__init__", "__main__"}
    assert names, f"no Python file in {folder}/"
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize("name", python_files(*PACKAGES, "tests", "benchmarks"))
def test_files_are_short(name: str) -> None:
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= LINES_MOST, (
        f"{name} has {lines} lines; split it, about {LINES_GOOD} is meant to be the most"
    )


def test_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, heading, rest = readme.partition("\n## Files\n")
    assert heading, 'README.md has no section "## Files"'
    section = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    listed = re.findall(r"(?:echoprune|pipelines|jobs)/[\w/]+\.py", section)
    existing = [name for name in python_files(*PACKAGES) if not name.endswith("__init__.py")]
    missing = sorted(set(existing) - set(listed))
    gone = sorted(name for name in set(listed) if not (ROOT / name).exists())
    assert not missing, f"not in README's file map: {missing}"
    assert not gone, f"in README's file map, but not there: {gone}"


def test_tests_that_documents_name_exist() -> None:
    named = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        named += re.findall(r"((?:[\w]+/)*test_\w+\.py)::(\w+)", page.read_text(encoding="utf-8"))
    assert len(named) > 39
    for file, name in named:
        path = ROOT / "tests" / file.removeprefix("tests/")
        assert path.is_file(), file
        assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.M), f"{file}::{name}"


def test_each_known_problem_is_answered_once() -> None:
    text = (ROOT / "docs" / "what-goes-wrong.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.M)]
    assert sorted(numbers) == list(range(1, 40))


@pytest.mark.parametrize(
    "start",
    [
        "import jobs.cli",
        "import runpy, sys; sys.argv = ['echoprune', '--help']; runpy.run_module('jobs.cli', run_name='__main__')",
    ],
    ids=["import", "help"],
)
def test_help_loads_nothing_heavy(start: str) -> None:
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *[name for name in {HEAVY} if name in sys.modules]))\n{start}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_what_runs_without_s3_loads_nothing_of_it() -> None:
    script = (
        "import sys, pipelines.index, pipelines.index_worker, pipelines.answer, pipelines.answer_worker, pipelines.maintain\n"
        "print('LOADED', *{'aiobotocore', 'aiohttp', 'botocore', 's3fs'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["LOADED"]


def test_no_path_of_one_machine() -> None:
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text file
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in MACHINE_PATH.finditer(text)]
    assert not found


@pytest.mark.parametrize("folder", ["home", "Users", "root", "work", "opt/wheels"])
@pytest.mark.parametrize("before", ["x = '", "see ", '"', "path="])
def test_machine_paths_are_recognised(folder: str, before: str) -> None:
    assert MACHINE_PATH.search(f"{before}/{folder}/v.mp4")


@pytest.mark.parametrize(
    "good", ["../work/x", "s3://bucket/home/x", "~/work/x", "$HOME/root/y", "docs.org/work/z"]
)
def test_other_paths_are_left_alone(good: str) -> None:
    assert not MACHINE_PATH.search(good)
