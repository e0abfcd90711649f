"""A small archive of real files, a tiny model, and index runs in processes of their own (as a user starts them)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from echoprune.models.tiny import write_tiny_checkpoint
from tests.clips import Clip, cut, even, uneven, write

REPOSITORY = Path(__file__).parents[2]
RUN_LIMIT_S = 240


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine files: whole ones of several kinds, one that breaks off, two that are no videos."""
    folder = tmp_path_factory.mktemp("archive")
    write(Clip("plain.mp4", even(200, step_ms=40)), folder)
    write(Clip("b frames.mp4", even(120, step_ms=40), options={"bf": "2"}), folder)
    write(Clip("vfr.mp4", uneven(60)), folder)
    write(Clip("tall.mp4", even(50), width=96, height=160), folder)
    write(Clip("ümläut ☃.mkv", even(75)), folder)
    (folder / "below").mkdir()
    write(Clip("hevc.mp4", even(80), codec="libx265", pix_fmt="yuv420p"), folder / "below")
    long = write(Clip("whole.mp4", even(250), muxer={"movflags": "faststart"}), folder)
    cut(long, folder / "cut.mp4", keep=0.6)
    long.unlink()
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """`python -m jobs.cli ARGUMENTS` under way, in its own process group."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or REPOSITORY,
        env=environment,
        start_new_session=True,
    )


def run(*arguments: str | Path, expect: int = 0, cwd: Path | None = None) -> str:
    """Standard output of a finished command, whose exit code must be `expect`."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out


def tables(store: Path) -> dict[str, str]:
    """sha256 of every table file that must not differ between two runs of the same input."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("videos", "cells", "tokens", "plan")
        for path in sorted((store / table).rglob("*.parquet"))
    }


def report(store: Path) -> dict:
    return json.loads((store / "run_report.json").read_text())
