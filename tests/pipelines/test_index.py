"""Whole index runs on real files, with real Ray, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import echoprune
from tests import oracle
from tests.pipelines.conftest import actors, processes, report, run, start, tables

SHARED = Path(__file__).parents[3] / "shared" / "videos"
# Small shards, so that a run has several commits; small segments, so that a clip has several.
SMALL = ("--shard-videos", "1", "--segment-cells", "2")


@pytest.fixture(scope="module")
def clean(archive: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store from one undisturbed run, with failed videos in it (exit code 3)."""
    store = tmp_path_factory.mktemp("clean") / "store"
    run("index", archive, "--store", store, "--model", tiny, *SMALL, expect=3)
    return store


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
    found = json.loads(run("status", clean, "--json", expect=3))
    assert found["videos"] == {"ok": 6, "partial": 1, "failed": 2, "missing": 0}
    text = run("status", clean, expect=3)
    assert "6 ok, 1 partial, 2 failed, 0 to do" in text and "not_a_video" in text


def test_report_adds_up(clean: Path) -> None:
    found = report(clean)
    assert found["run"]["videos"] == {"done": 9, "of": 9, "before": 0, "ok": 6, "partial": 1, "failed": 2}
    assert found["store"] == {"ok": 6, "partial": 1, "failed": 2, "missing": 0}
    videos = echoprune.open_store(clean).videos()
    assert found["run"]["tokens_kept"] == sum(videos["kept"].to_pylist())
    assert found["config"]["segment_cells"] == 2 and found["config"]["fps"] == "2"


def test_a_second_run_gives_equal_bytes(clean: Path, archive: Path, tiny: Path, tmp_path: Path) -> None:
    run("index", archive, "--store", tmp_path / "again", "--model", tiny, *SMALL, expect=3)
    assert tables(tmp_path / "again") == tables(clean)
    assert len(tables(clean)) > 10


def test_decode_actors_do_not_change_bytes(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path, head: tuple[str, dict[str, str]]
) -> None:
    """On a cluster that is joined: three actors with two segments each in flight, which cut videos at keyframes."""
    command = ("index", archive, "--store", tmp_path / "store", "--model", tiny, *SMALL)
    address, environment = head
    crew = ("--address", address, "--decoders-per-encoder", "3", "--in-flight-mb", "1")
    run(*command, *crew, expect=3, more=environment)
    assert tables(tmp_path / "store") == tables(clean)


def test_decoding_in_the_encoder_does_not_change_bytes(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path
) -> None:
    command = ("index", archive, "--store", tmp_path / "store", "--model", tiny, *SMALL)
    run(*command, "--decoders-per-encoder", "0", expect=3)
    assert tables(tmp_path / "store") == tables(clean)


def test_rerun_does_nothing_and_new_files_alone(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path
) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    shutil.copy(archive / "plain.mp4", videos / "a.mp4")
    command = ("index", f"{videos}/*.mp4", "--store", store, "--model", tiny)
    run(*command)
    before = tables(store)
    assert "nothing to do" in run(*command)
    assert tables(store) == before
    shutil.copy(archive / "vfr.mp4", videos / "b.mp4")
    run(*command)
    after = tables(store)
    assert before.items() < after.items()
    assert [Path(row).name for row in echoprune.open_store(store).videos()["uri"].to_pylist()] == [
        "a.mp4",
        "b.mp4",
    ]
    assert report(store)["run"]["videos"]["of"] == 1


@pytest.mark.parametrize("receipts_before_kill", [0, 1, 3])
def test_sigkill_of_the_driver_loses_nothing(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path, receipts_before_kill: int
) -> None:
    store = tmp_path / "store"
    command = ("index", archive, "--store", store, "--model", tiny, *SMALL)
    process = start(*command)
    deadline = time.monotonic() + 120
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
    run(*command, expect=3)
    assert tables(store) == tables(clean)
    assert not list((store / ".tmp").glob("*"))


def test_an_encoder_killed_from_outside_costs_nothing(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    process = start("index", archive, "--store", store, "--model", tiny, *SMALL)
    killed = _kill_first(process.pid, "IndexWorker")
    _, err = process.communicate(timeout=200)
    assert killed and process.returncode == 3, err
    assert tables(store) == tables(clean)


def test_a_decoder_killed_from_outside_costs_nothing(
    clean: Path, archive: Path, tiny: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    process = start("index", archive, "--store", store, "--model", tiny, *SMALL)
    killed = _kill_first(process.pid, "DecodeActor")
    _, err = process.communicate(timeout=200)
    assert killed and process.returncode == 3, err
    assert tables(store) == tables(clean)


def _kill_first(driver: int, name: str) -> bool:
    """Kills the first actor of that class that a command brings up, as soon as it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in actors(driver, name):
            os.kill(process, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_leave_cleanly(
    archive: Path, tiny: Path, tmp_path: Path, sent: signal.Signals, code: int, word: str
) -> None:
    store = tmp_path / "store"
    command = ("index", archive, "--store", store, "--model", tiny, *SMALL, "--fps", "25")
    process = start(*command)
    deadline = time.monotonic() + 120
    while not list((store / "receipts").glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"echoprune: {word}") and "Traceback" not in err
    assert json.loads(next((store / "lease").iterdir()).read_text())["released"] is True


@pytest.mark.parametrize(
    ("sent", "program", "code", "word"),
    [(signal.SIGINT, "gcs_server", 130, "interrupted"), (signal.SIGTERM, "raylet", 143, "terminated")],
)
def test_signals_while_ray_starts(
    archive: Path, tiny: Path, tmp_path: Path, sent: signal.Signals, program: str, code: int, word: str
) -> None:
    process = start("index", archive, "--store", tmp_path / "store", "--model", tiny, *SMALL)
    deadline = time.monotonic() + 60
    while not processes(process.pid, program):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"echoprune: {word}") and "Traceback" not in err
    assert not (tmp_path / "store").exists()
    while left := processes(process.pid, "/ray/"):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_two_drivers_on_one_store(archive: Path, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = ("index", archive, "--store", store, "--model", tiny, *SMALL)
    first = start(*command)
    while not list((store / "lease").glob("*")):
        assert first.poll() is None
        time.sleep(0.02)
    second = start(*command)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1 and f"pid {first.pid}" in err and len(err.strip().splitlines()) == 1
    first.communicate(timeout=200)
    assert first.returncode == 3


@pytest.mark.parametrize(
    "option", [("--keep", "0.5"), ("--fps", "1"), ("--dtype", "bf16"), ("--window", "3")]
)
def test_other_settings_are_refused(clean: Path, archive: Path, tiny: Path, option: tuple[str, str]) -> None:
    process = start("index", archive, "--store", clean, "--model", tiny, *SMALL, *option)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        option[0].removeprefix("--") in err
        and "another --store" in err
        and len(err.strip().splitlines()) == 1
    )


def _shown_clips(archive: Path) -> Path:
    return SHARED if SHARED.is_dir() else archive


@pytest.mark.parametrize(("dtype", "window"), [("auto", "family"), ("bf16", "3")])
def test_a_lossless_store_holds_the_oracles_scores(
    archive: Path, tiny: Path, tmp_path: Path, dtype: str, window: str
) -> None:
    videos, store = _shown_clips(archive), tmp_path / "store"
    options = ("--keep", "all", "--dtype", dtype, "--window", window, "--segment-cells", "4")
    process = start("index", videos, "--store", store, "--model", tiny, *options)
    process.communicate(timeout=200)
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


def test_a_pruned_store_keeps_the_oracles_choice(archive: Path, tiny: Path, tmp_path: Path) -> None:
    """--keep 0.1 --anchor-every 0 keeps exactly K of the tokens after the first cell, those the oracle keeps."""
    videos = _shown_clips(archive)
    for name, options in (("all", ("--keep", "all")), ("some", ("--keep", "0.1", "--anchor-every", "0"))):
        process = start("index", videos, "--store", tmp_path / name, "--model", tiny, *options)
        process.communicate(timeout=200)
    lossless, pruned = echoprune.open_store(tmp_path / "all"), echoprune.open_store(tmp_path / "some")
    checked = 0
    for row in pruned.videos().to_pylist():
        if row["status"] == "failed":
            continue
        every, kept = lossless.tokens(row["video_id"]), pruned.tokens(row["video_id"])
        cells, height, width = every.grid_thw
        count = height * width
        budget = cells * count // 10
        shape = (cells, count)
        expected = oracle.keep_without_question(
            every.correspondence.double().reshape(shape).numpy(),
            every.echo.double().reshape(shape).numpy(),
            budget=budget,
        )
        assert kept.flat_index.tolist() == list(expected)
        assert len(kept) == min(count + budget, cells * count)
        assert torch.equal(kept.tokens, every.tokens[kept.flat_index])
        assert torch.equal(kept.echo, every.echo[kept.flat_index])
        checked += cells > 1
    assert checked >= 5
