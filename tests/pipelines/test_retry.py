"""Failed videos indexed again: by a worker in this process, broken off at every step, and by the command on real Ray."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import duckdb
import pytest

from echoprune.errors import ConfigError, StoreError, StoreMismatchError
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.plan import Shard, extend_plan
from echoprune.receipt import read_receipts, sweep
from echoprune.rewrite import shards_to_redo
from echoprune.sources import list_sources
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.config import IndexConfig
from pipelines.events import VideoDone
from pipelines.index_worker import IndexWorker
from pipelines.maintain import run_compact
from pipelines.retry import run_retry
from pipelines.retry_config import RetryConfig
from tests.clips import Clip, cut, even, write
from tests.pipelines import in_process
from tests.pipelines.conftest import RUN_LIMIT_S, call, start
from tests.stores import breaking

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips in one shard, of which `b.mp4` is zeros of the right size (its good bytes in b.good), `c.mp4` breaks off."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4", "d.mp4"):
        write(Clip(name, even(60, step_ms=40)), folder)
    long = write(Clip("whole.mp4", even(250), muxer={"movflags": "faststart"}), folder)
    cut(long, folder / "c.mp4", keep=0.6)
    long.unlink()
    (folder / "b.mp4").rename(folder / "b.good")
    (folder / "b.mp4").write_bytes(bytes((folder / "b.good").stat().st_size))
    return folder


def copied(videos: Path, to: Path) -> Path:
    """The archive again, under one path whatever it is repaired to: uris are parts of ids."""
    shutil.copytree(videos, to)
    return to


def worker(store: Path, tiny: Path, *, run_id: str) -> IndexWorker:
    config = IndexConfig(store=str(store), model=str(tiny), segment_cells=2)
    return in_process.worker(config, run_id=run_id)


def done_by(made: IndexWorker, shard: Shard) -> dict[str, VideoDone]:
    events = list(made.run_shard(shard, {}))
    return {Path(event.uri).name: event for event in events if isinstance(event, VideoDone)}


def index(store: Path, videos: Path, tiny: Path, *, shard_videos: int = 99) -> None:
    made = worker(store, tiny, run_id="first")
    sources = list_sources([str(videos / "*.mp4")])
    for shard in extend_plan(Storage(store), sources, shard_bytes=1 << 40, shard_videos=shard_videos):
        done_by(made, shard)


def redo(store: Path, *, partial: bool = False) -> list[Shard]:
    opened = open_store(store)
    return shards_to_redo(opened.storage, opened.settings, opened.receipts, partial=partial)


def repair(videos: Path) -> None:
    shutil.copyfile(videos / "b.good", videos / "b.mp4")


def contents(store: Path) -> list[tuple[str, int, str]]:
    """What the files of the only shard hold, whatever generation their names tell."""
    (receipt,) = read_receipts(Storage(store)).values()
    return [(f.table, f.rows, f.sha256) for f in receipt.files if f.table != "failures"]


def globbed(store: Path) -> dict[str, str]:
    rows = duckdb.sql(f"SELECT uri, status FROM '{store}/videos/*.parquet'").fetchall()
    assert len(dict(rows)) == len(rows), "a video twice"
    return {Path(uri).name: status for uri, status in rows}


def test_broken_at_any_step_it_is_the_old_shard_or_the_new_one(
    videos: Path, tiny: Path, tmp_path: Path
) -> None:
    archive = copied(videos, tmp_path / "videos")
    index(tmp_path / "before", archive, tiny)
    assert globbed(tmp_path / "before") == {
        "a.mp4": "ok",
        "b.mp4": "failed",
        "c.mp4": "partial",
        "d.mp4": "ok",
    }
    repair(archive)
    index(tmp_path / "clean", archive, tiny)
    old, new = contents(tmp_path / "before"), contents(tmp_path / "clean")
    assert old != new
    made: IndexWorker | None = None
    for step in range(20):
        store = tmp_path / str(step)
        shutil.copytree(tmp_path / "before", store)
        made = worker(store, tiny, run_id=f"again {step}")
        (shard,) = redo(store)
        try:
            with breaking(step) as done:
                assert list(done_by(made, shard)) == ["b.mp4"]
        except StoreError as error:
            assert "the disk failed" in str(error)
            assert contents(store) == old and len(open_store(store).videos()) == 4
            sweep(Storage(store))
            assert globbed(store)["b.mp4"] == "failed" and list(verify(store)) == []
            done_by(worker(store, tiny, run_id="later"), shard)
        sweep(Storage(store))
        assert contents(store) == new, done[-1]
        assert set(globbed(store).values()) == {"ok", "partial"} and list(verify(store)) == []
        if len(done) <= step:
            break
    assert step == 5, "tokens, cells, failures, videos, receipt"
    # A worker that died after its commit is followed by one that only says so.
    assert made is not None and done_by(made, shard) == {}
    assert [receipt.generation for receipt in open_store(store).receipts.values()] == [1]


def test_attempts_are_kept_and_counted(videos: Path, tiny: Path, tmp_path: Path) -> None:
    archive, store = copied(videos, tmp_path / "videos"), tmp_path / "store"
    index(store, archive, tiny)
    for attempt in (2, 3):
        (shard,) = redo(store)
        assert done_by(worker(store, tiny, run_id=str(attempt)), shard)["b.mp4"].status == "failed"
        sweep(Storage(store))
        rows = open_store(store).failures().to_pylist()
        assert [row["attempt"] for row in rows if row["uri"].endswith("b.mp4")] == list(range(1, attempt + 1))
    repair(archive)
    done_by(worker(store, tiny, run_id="good"), redo(store)[0])
    opened = open_store(store)
    assert opened.video("b.mp4")["status"] == "ok" and opened.video("b.mp4")["error"] is None
    assert [row["attempt"] for row in opened.failures().to_pylist() if row["uri"].endswith("b.mp4")] == [
        1,
        2,
        3,
    ]
    assert opened.receipts[shard.shard_id].generation == 3 and redo(store) == []


def test_a_part_is_kept_where_nothing_can_be_read_now(videos: Path, tiny: Path, tmp_path: Path) -> None:
    archive, store = copied(videos, tmp_path / "videos"), tmp_path / "store"
    index(store, archive, tiny)
    before = open_store(store).video("c.mp4")
    whole = (archive / "c.mp4").read_bytes()
    (archive / "c.mp4").unlink()
    (shard,) = redo(store, partial=True)
    found = done_by(worker(store, tiny, run_id="gone"), shard)
    assert found["c.mp4"].status == "partial" and found["c.mp4"].error_class == "missing"
    opened = open_store(store)
    assert {**opened.video("c.mp4"), "token_row": 0} == {**before, "token_row": 0}
    assert len(opened.tokens("c.mp4")) == before["kept"]
    assert [row["class"] for row in opened.failures().to_pylist() if row["uri"].endswith("c.mp4")] == [
        "truncated",
        "missing",
    ]
    (archive / "c.mp4").write_bytes(whole)
    done_by(worker(store, tiny, run_id="there"), redo(store, partial=True)[0])
    assert open_store(store).video("c.mp4")["kept"] == before["kept"]
    # A part that is shorter than the one that is stored is not put in its place.
    (archive / "c.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    found = done_by(worker(store, tiny, run_id="shorter"), redo(store, partial=True)[0])
    assert found["c.mp4"].status == "partial" and found["c.mp4"].error_class == "truncated"
    opened = open_store(store)
    assert opened.video("c.mp4")["cells"] == before["cells"] == len(opened.cells("c.mp4"))
    assert [row["attempt"] for row in opened.failures().to_pylist() if row["uri"].endswith("c.mp4")] == [
        1,
        2,
        3,
        4,
    ]
    sweep(Storage(store))
    assert list(verify(store)) == []


def test_a_merged_shard_is_retried(videos: Path, tiny: Path, tmp_path: Path) -> None:
    archive, store = copied(videos, tmp_path / "videos"), tmp_path / "store"
    index(store, archive, tiny, shard_videos=1)
    assert run_compact(store, target_bytes=1 << 30)["merged"] == 4
    repair(archive)
    (shard,) = redo(store)
    assert list(done_by(worker(store, tiny, run_id="again"), shard)) == ["b.mp4"]
    sweep(Storage(store))
    (receipt,) = read_receipts(Storage(store)).values()
    assert receipt.generation == 1 and len(receipt.replaces) == 4 and receipt.failed == 0
    assert set(globbed(store).values()) == {"ok", "partial"} and list(verify(store)) == []


def test_only_the_model_of_the_store(videos: Path, tiny: Path, tmp_path: Path) -> None:
    archive, store = copied(videos, tmp_path / "videos"), tmp_path / "store"
    index(store, archive, tiny)
    other = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "other", seed=5)
    with pytest.raises(StoreMismatchError, match="model_fingerprint"):
        run_retry(RetryConfig(store=str(store), model=str(other)), on_progress=lambda _: None)
    receipt = next((store / "receipts").iterdir())
    values = {name: value for name, value in json.loads(receipt.read_text()).items() if name != "digest"}
    receipt.write_text(json.dumps(values | {"config": values["config"] | {"model": str(tmp_path / "moved")}}))
    with pytest.raises(ConfigError, match="give --model"):
        run_retry(RetryConfig(store=str(store)), on_progress=lambda _: None)
    # Nothing of another class failed: no Ray is started for that.
    report = run_retry(
        RetryConfig(store=str(store), model=str(tiny), classes=("missing",)), on_progress=lambda _: None
    )
    assert report["run"]["videos"]["of"] == 0 and report["store"]["failed"] == 1


def test_the_command(videos: Path, tiny: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL once its worker is at it, and called again: the tables are those of a clean index."""
    archive, store = copied(videos, tmp_path / "videos"), tmp_path / "store"
    index(store, archive, tiny, shard_videos=2)
    repair(archive)
    process = start("retry", store, "--class", "not_a_video", "--decoders-per-gpu", "0")
    deadline = time.monotonic() + RUN_LIMIT_S
    while not list((store / ".tmp").glob("build-*")) and len(list((store / "videos").glob("*.g1-*"))) == 0:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    # Not communicate: Ray's processes hold its pipes for as long as they outlive it.
    process.wait(timeout=RUN_LIMIT_S)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    assert len(open_store(store).videos()) == 4
    said = call("retry", store)
    found = globbed(store)
    assert found == {"a.mp4": "ok", "b.mp4": "ok", "c.mp4": "partial", "d.mp4": "ok"}
    assert "3 ok, 1 partial, 0 failed" in said
    assert list(verify(store)) == []
    index(tmp_path / "clean", archive, tiny, shard_videos=2)
    assert _hashes(store) == _hashes(tmp_path / "clean")
    report = json.loads((store / "run_report.json").read_text())
    assert report["job"] == "retry" and report["store"]["missing"] == 0
    said = call("retry", store, "--class", "truncated")
    assert "nothing to do" in said and "--partial includes" in said


def _hashes(store: Path) -> dict[str, str]:
    """The sha256 of each table file by its name without the generation."""
    return {
        f"{table}/{path.name.replace('.g1', '').replace('.g2', '')}": hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for table in ("videos", "cells", "tokens")
        for path in (store / table).iterdir()
    }
