"""Whole index runs on real files, with real Ray: those that are disturbed in processes of their own, the others share one.

Where only the numbers in the store matter there is no Ray (in_process.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import echoprune
from pipelines.config import IndexConfig
from tests import oracle
from tests.pipelines import in_process
from tests.pipelines.conftest import RUN_LIMIT_S, actors, call, processes, report, run, start, tables

pytestmark = pytest.mark.usefixtures("shared_ray")

SHARED = Path(__file__).parents[3] / "shared" / "videos"
# Small shards, so that a run has several commits; small segments, so that a clip has several.
SMALL = ("--shard-videos", "1", "--segment-cells", "2")


@pytest.fixture(scope="module")
def clean(archive: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store from one undisturbed run, with failed videos in it (exit code 3)."""
    store = tmp_path_factory.mktemp("clean") / "store"
    call("index", archive, "--store", store, "--model", tiny, *SMALL, expect=3)
    return store


@pytest.fixture(scope="module")
def lossless(archive: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of all tokens."""
    store = tmp_path_factory.mktemp("lossless") / "store"
    in_process.index(shown(archive, store, tiny, keep="all", segment_cells=4))
    return store


def shown(archive: Path, store: Path, tiny: Path, **options: Any) -> IndexConfig:
    """A run over the clips that are shown to everybody, where they are there."""
    paths = (str(SHARED if SHARED.is_dir() else archive),)
    return IndexConfig(paths=paths, store=str(store), model=str(tiny), **options)


def test_every_file_ends_as_one_row(clean: Path, archive: Path) -> None:
    rows = {Path(row["uri"]).name: row for row in echoprune.open_store(clean).videos().to_pylist()}
    status = {name: row["status"] for name, row in rows.items()}
    assert status == {
        "plain.mp4": "ok",
        "b frames.mp4": "ok",
        "vfr.mp4": "ok",
        "tall.mp4": "ok",
        "ümläut ☃.mkv": "ok",
        "hevc.mp4": "ok",
        "cut.mp4": "partial",
        "text.mp4": "failed",
        "empty.mp4": "failed",
    }
    assert rows["text.mp4"]["error_class"] == "not_a_video"
    assert rows["empty.mp4"]["error_class"] == "empty"
    assert rows["plain.mp4"]["decoder"] == "decord"
    assert rows["hevc.mp4"]["decoder"] == "pyav"
    assert 4 < rows["cut.mp4"]["covered_s"] < 7  # of 10 s, 60 % of the bytes
    assert rows["plain.mp4"]["cells"] == 8
    assert rows["tall.mp4"]["grid_h"] > rows["tall.mp4"]["grid_w"]


def test_failures_say_stage_class_and_host(clean: Path) -> None:
    failures = echoprune.open_store(clean).failures().to_pylist()
    assert {(Path(row["uri"]).name, row["stage"], row["class"]) for row in failures} == {
        ("text.mp4", "probe", "not_a_video"),
        ("empty.mp4", "probe", "empty"),
        ("cut.mp4", "probe", "truncated"),
    }
    assert all(row["host"] and row["time"] and "\n" not in row["message"] for row in failures)


def test_status_counts_and_exit_code(clean: Path) -> None:
    found = json.loads(call("status", clean, "--json", expect=3))
    assert found["videos"] == {"ok": 6, "partial": 1, "failed": 2, "missing": 0}
    text = call("status", clean, expect=3)
    assert "6 ok, 1 partial, 2 failed, 0 to do" in text and "not_a_video" in text


def test_report_adds_up(clean: Path) -> None:
    found = report(clean)
    assert found["run"]["videos"] == {"done": 9, "of": 9, "before": 0, "ok": 6, "partial": 1, "failed": 2}
    assert found["store"] == {"ok": 6, "partial": 1, "failed": 2, "missing": 0}
    videos = echoprune.open_store(clean).videos()
    assert found["run"]["tokens_kept"] == sum(videos["kept"].to_pylist())
    assert found["config"]["segment_cells"] == 2 and found["config"]["fps"] == "2"


def test_a_second_run_gives_equal_bytes(clean: Path, archive: Path, tiny: Path, tmp_path: Path) -> None:
    """One whose encoder decodes by itself, too, with no Ray around it."""
    command = ("index", archive, "--store", tmp_path / "again", "--model", tiny, *SMALL)
    in_process.index(
        IndexConfig(
            paths=(str(archive),),
            store=str(tmp_path / "again"),
            model=str(tiny),
            shard_videos=1,
            segment_cells=2,
        )
    )
    assert tables(tmp_path / "again") == tables(clean)
    assert len(tables(clean)) > 10
    # Nothing is left to do, and the failed videos stand.
    assert "2 failed" in call(*command, "--failed-ok")
    call("retry", tmp_path / "again", "--class", "no_such", expect=3)
    call("retry", tmp_path / "again", "--class", "no_such", "--failed-ok")


@pytest.mark.long  # a cluster of its own; test_decode_nodes.py compares the same tables, tests/faults joins a cluster
def test_decode_actors_do_not_change_bytes(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path, head: tuple[str, dict[str, str]]
) -> None:
    """On a cluster that is joined: three actors with two segments each in flight, which cut videos at keyframes."""
    command = ("index", archive, "--store", tmp_path / "store", "--model", tiny, *SMALL)
    address, environment = head
    crew = ("--address", address, "--decoders-per-gpu", "3", "--in-flight-mb", "1")
    run(*command, *crew, expect=3, more=environment)
    assert tables(tmp_path / "store") == tables(clean)


def test_rerun_does_nothing_and_new_files_alone(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path
) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    shutil.copy(archive / "plain.mp4", videos / "a.mp4")
    command = ("index", f"{videos}/*.mp4", "--store", store, "--model", tiny, "--decoders-per-gpu", "0")
    in_process.index(IndexConfig(paths=(f"{videos}/*.mp4",), store=str(store), model=str(tiny)))
    before = tables(store)
    assert "nothing to do" in call(*command)
    assert tables(store) == before
    shutil.copy(archive / "vfr.mp4", videos / "b.mp4")
    call(*command)
    after = tables(store)
    assert before.items() < after.items()
    assert [Path(row).name for row in echoprune.open_store(store).videos()["uri"].to_pylist()] == [
        "a.mp4",
        "b.mp4",
    ]
    assert report(store)["run"]["videos"]["of"] == 1


@pytest.mark.parametrize("receipts_before_kill", [pytest.param(0, marks=pytest.mark.long), 2])
def test_sigkill_of_the_driver_loses_nothing(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path, receipts_before_kill: int
) -> None:
    store = tmp_path / "store"
    command = ("index", archive, "--store", store, "--model", tiny, *SMALL)
    process = start(*command)
    deadline = time.monotonic() + RUN_LIMIT_S
    while (
        len(list((store / "receipts").glob("*.json"))) < receipts_before_kill or not (store / "plan").exists()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if not receipts_before_kill:
        time.sleep(4)  # Ray is starting, or the first video is being encoded
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list((store / "receipts").glob("*.json")))
    assert done < 9, "killed too late to show anything"
    call(*command, "--decoders-per-gpu", "0", expect=3)
    assert tables(store) == tables(clean)
    assert not list((store / ".tmp").glob("*"))


def test_a_second_driver_and_actors_killed_from_outside_cost_nothing(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path
) -> None:
    """The encoder is killed as soon as it is there, and the first decode actor of the next one too."""
    store = tmp_path / "store"
    command = ("index", archive, "--store", store, "--model", tiny, *SMALL)
    first = start(*command)
    while not list((store / "lease").glob("*")):
        assert first.poll() is None
        time.sleep(0.02)
    err = call(*command, expect=1, streams=True)
    assert f"pid {first.pid}" in err and len(err.strip().splitlines()) == 1
    killed = [_kill_first(first.pid, name) for name in ("IndexWorker", "DecodeActor")]
    _, err = first.communicate(timeout=RUN_LIMIT_S)
    assert all(killed) and first.returncode == 3, err
    assert tables(store) == tables(clean)


def _kill_first(driver: int, name: str) -> bool:
    """Kills the first actor of that class that a command brings up, as soon as it is there."""
    deadline = time.monotonic() + RUN_LIMIT_S
    while time.monotonic() < deadline:
        for process in actors(driver, name):
            os.kill(process, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.long),
        (signal.SIGTERM, 143, "terminated"),
    ],
)
def test_signals_leave_cleanly(
    archive: Path, tiny: Path, tmp_path: Path, sent: signal.Signals, code: int, word: str
) -> None:
    store = tmp_path / "store"
    command = ("index", archive, "--store", store, "--model", tiny, *SMALL, "--fps", "25")
    process = start(*command)
    deadline = time.monotonic() + RUN_LIMIT_S
    while not list((store / "receipts").glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"echoprune: {word}") and "Traceback" not in err
    assert json.loads(next((store / "lease").iterdir()).read_text())["released"] is True


@pytest.mark.parametrize(
    ("sent", "program", "code", "word"),
    [
        (signal.SIGINT, "gcs_server", 130, "interrupted"),
        pytest.param(signal.SIGTERM, "raylet", 143, "terminated", marks=pytest.mark.long),
    ],
)
def test_signals_while_ray_starts(
    archive: Path, tiny: Path, tmp_path: Path, sent: signal.Signals, program: str, code: int, word: str
) -> None:
    process = start("index", archive, "--store", tmp_path / "store", "--model", tiny, *SMALL)
    deadline = time.monotonic() + RUN_LIMIT_S
    while not processes(process.pid, program):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"echoprune: {word}") and "Traceback" not in err
    assert not (tmp_path / "store").exists()
    while left := processes(process.pid, "/ray/"):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    "option",
    [("--keep", "0.5"), ("--fps", "1"), ("--dtype", "bf16"), ("--window", "3"), ("--rank-by", "novelty")],
)
def test_other_settings_are_refused(clean: Path, archive: Path, tiny: Path, option: tuple[str, str]) -> None:
    err = call("index", archive, "--store", clean, "--model", tiny, *SMALL, *option, expect=2, streams=True)
    assert (
        option[0].removeprefix("--") in err
        and "another --store" in err
        and len(err.strip().splitlines()) == 1
    )


def test_a_lossless_store_holds_the_oracles_scores(lossless: Path) -> None:
    _require_oracles_scores(lossless)


def test_so_does_one_of_another_type_and_window(archive: Path, tiny: Path, tmp_path: Path) -> None:
    in_process.index(shown(archive, tmp_path, tiny, keep="all", segment_cells=4, dtype="bf16", window="3"))
    _require_oracles_scores(tmp_path)


def _require_oracles_scores(store: Path) -> None:
    opened = echoprune.open_store(store)
    readable = [row for row in opened.videos().to_pylist() if row["status"] != "failed"]
    assert len(readable) >= 6
    for row in readable:
        kept = opened.tokens(row["video_id"])
        cells, height, width = kept.grid_thw
        assert len(kept) == row["tokens"] == cells * height * width
        grid = kept.tokens.float().reshape(cells, height * width, -1).numpy()
        side = None if opened.settings.window is None else opened.settings.window
        correspondence, echo = oracle.echo(
            grid, grid_hw=(height, width), temperature=opened.settings.temperature, window=side
        )
        np.testing.assert_allclose(kept.correspondence.reshape(cells, -1), correspondence, atol=1e-5)
        np.testing.assert_allclose(kept.echo.reshape(cells, -1), echo, atol=1e-5)


@pytest.mark.parametrize("by", ["change", "novelty"])
def test_a_pruned_store_keeps_the_oracles_choice(
    lossless: Path, archive: Path, tiny: Path, tmp_path: Path, by: str
) -> None:
    """Keeping 0.1 with no whole cells but the first keeps exactly K of the tokens after the first cell, those the oracle keeps."""
    # Change is what it goes by if nothing is said.
    said = {} if by == "change" else {"rank_by": by}
    in_process.index(shown(archive, tmp_path, tiny, keep="0.1", anchor_every=0.0, **said))
    all_kept, pruned = echoprune.open_store(lossless), echoprune.open_store(tmp_path)
    checked = 0
    for row in pruned.videos().to_pylist():
        if row["status"] == "failed":
            continue
        every, kept = all_kept.tokens(row["video_id"]), pruned.tokens(row["video_id"])
        cells, height, width = every.grid_thw
        count = height * width
        budget = cells * count // 10
        shape = (cells, count)
        expected = oracle.keep_without_question(
            every.correspondence.double().reshape(shape).numpy(),
            every.echo.double().reshape(shape).numpy(),
            budget=budget,
            by=by,
        )
        assert kept.flat_index.tolist() == list(expected)
        assert len(kept) == min(count + budget, cells * count)
        assert torch.equal(kept.tokens, every.tokens[kept.flat_index])
        assert torch.equal(kept.echo, every.echo[kept.flat_index])
        checked += cells > 1
    assert checked >= 5
