"""Videos forgotten and garbage collected, on real files; by processes that are killed on the way too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from echoprune.errors import NoSuchVideoError, NotAStoreError, StoreError
from echoprune.lease import Lease
from echoprune.plan import Source, extend_plan, load_plan, pending
from echoprune.receipt import read_receipts
from echoprune.sources import video_id
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.maintain import run_forget, run_gc
from tests import answer_folders
from tests import stores as made

BAD = "/archive/bad.mp4"
REPOSITORY = Path(__file__).parents[2]


def globbed(store: Path, table: str = "videos") -> list[str]:
    """The uris, or video ids, that a plain glob over a table reads."""
    column = "uri" if table == "videos" else "DISTINCT video_id"
    return sorted(
        row[0] for row in duckdb.sql(f"SELECT {column} FROM '{store}/{table}/*.parquet'").fetchall()
    )


def test_a_forgotten_video_is_nowhere_and_the_others_are_as_they_were(tmp_path: Path) -> None:
    storage, clips = made.planned_store(tmp_path, made.settings(), failed=[BAD])
    before = {uri: open_store(tmp_path).tokens(uri) for uri in clips}
    report = run_forget(tmp_path, ["2.mp4", video_id("/archive/4.mp4"), BAD])
    assert report["uris"] == ["/archive/2.mp4", "/archive/4.mp4", BAD] and report["bytes"] > 0
    left = sorted(set(clips) - {"/archive/2.mp4", "/archive/4.mp4"})
    assert globbed(tmp_path) == left
    for table in ("cells", "tokens"):
        assert globbed(tmp_path, table) == sorted(video_id(uri) for uri in left)
    store = open_store(tmp_path)
    assert store.failures().num_rows == 0 and list(verify(tmp_path)) == []
    for uri in left:
        assert store.tokens(uri).tokens.equal(before[uri].tokens)
    found = store_status(tmp_path)
    assert found["videos"] == {"ok": 4, "partial": 0, "failed": 0, "missing": 0} and found["forgotten"] == 3
    assert run_forget(tmp_path, ["2.mp4"]) == {"uris": [], "shards": 0, "bytes": 0}
    with pytest.raises(NoSuchVideoError, match="no video 'never'"):
        run_forget(tmp_path, ["0.mp4", "never.mp4".removesuffix(".mp4")])
    assert globbed(tmp_path) == left and storage.exists("forgotten.json")


def test_it_is_not_planned_again_unless_brought_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = made.settings()
    storage, clips = made.planned_store(tmp_path, settings, shard_videos=2)
    run_forget(tmp_path, ["0.mp4", "1.mp4"])
    sources = [Source(uri, 1000) for uri in clips]
    limits = {"shard_bytes": 1 << 30, "shard_videos": 2}
    assert extend_plan(storage, sources, **limits) == [] and "2 videos were forgotten" in caplog.text
    assert pending(load_plan(storage), read_receipts(storage)) == []
    # The same videos in the same order make up the same shard: it must not be taken for the one that was emptied.
    (shard,) = extend_plan(storage, sources, **limits, bring_back=True)
    assert [source.uri for source in shard.sources] == ["/archive/0.mp4", "/archive/1.mp4"]
    assert shard.shard_id not in read_receipts(storage)
    assert pending(load_plan(storage), read_receipts(storage)) == [shard]
    made.write_shard(
        storage, settings, [clips[source.uri] for source in shard.sources], shard_id=shard.shard_id
    )
    assert globbed(tmp_path) == sorted(clips) and list(verify(tmp_path)) == []
    run_forget(tmp_path, ["0.mp4"])
    assert globbed(tmp_path) == sorted(set(clips) - {"/archive/0.mp4"}) and list(verify(tmp_path)) == []
    assert store_status(tmp_path)["forgotten"] == 1


def test_a_video_that_waits_to_be_indexed_can_be_forgotten(tmp_path: Path) -> None:
    storage = made.create_store(tmp_path, made.settings())
    sources = [Source(f"/archive/{i}.mp4", 1000) for i in range(3)]
    extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=2)
    assert run_forget(tmp_path, ["/archive/0.mp4", "/archive/2.mp4"])["shards"] == 0
    (shard,) = pending(load_plan(storage), {})
    assert [source.uri for source in shard.sources] == ["/archive/1.mp4"]


KILLED = """
import os, sys
from echoprune.storage import Storage
from pipelines.maintain import run_forget
left = int(sys.argv[2])
def dying(real):
    def call(storage, *given, **more):
        global left
        if not str(given[0]).startswith("lease/"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
        return real(storage, *given, **more)
    return call
for name in ("put_file", "write_bytes", "remove"):
    setattr(Storage, name, dying(getattr(Storage, name)))
run_forget(sys.argv[1], ["1.mp4"])
"""


# The tombstone is there; before the receipt of the only shard concerned; after it, before its old files go.
@pytest.mark.parametrize("at", [1, 4, 6])
def test_killed_on_the_way(tmp_path: Path, at: int) -> None:
    _, clips = made.planned_store(tmp_path, made.settings())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, str(at)], cwd=REPOSITORY, check=False, timeout=180
    )
    assert done.returncode == -signal.SIGKILL
    found = open_store(tmp_path).videos()["uri"].to_pylist()
    assert found == sorted(clips) if at < 5 else found == sorted(set(clips) - {"/archive/1.mp4"})
    run_forget(tmp_path, ["1.mp4"])
    assert globbed(tmp_path) == sorted(set(clips) - {"/archive/1.mp4"}) and list(verify(tmp_path)) == []


def test_gc_removes_what_nothing_counts_and_nothing_else(tmp_path: Path) -> None:
    storage, clips = made.planned_store(tmp_path, made.settings())
    files = {name: (tmp_path / name).read_bytes() for name in storage.names()}
    receipt = next(iter(read_receipts(storage).values()))
    orphan = f"tokens/{receipt.shard_id}.g7-0000.parquet"
    storage.write_bytes(orphan, b"x" * 500)
    (tmp_path / ".tmp/build-left").mkdir(parents=True)
    (tmp_path / ".tmp/build-left/spill").write_bytes(b"y" * 70)
    dry = run_gc(tmp_path, dry_run=True)
    assert (dry.count, dry.size_bytes, dry.files) == (2, 570, {orphan: 500}) and storage.exists(orphan)
    assert store_status(tmp_path)["garbage"] == {"files": 2, "bytes": 570}
    assert run_gc(tmp_path, dry_run=False) == dry
    assert run_gc(tmp_path, dry_run=False).count == 0
    assert {n: (tmp_path / n).read_bytes() for n in storage.names() if not n.startswith("lease/")} == files
    assert globbed(tmp_path) == sorted(clips)


def test_gc_keeps_off_a_store_in_use_and_one_it_does_not_understand(tmp_path: Path) -> None:
    storage, _ = made.planned_store(tmp_path / "store", made.settings())
    storage.write_bytes("tokens/open-0000.parquet", b"x")
    with (
        Lease.acquire(storage, run_id="running"),
        pytest.raises(StoreError, match=f"pid {os.getpid()}"),
    ):
        run_gc(tmp_path / "store", dry_run=False)
    receipt = next(iter(read_receipts(storage).values()))
    storage.write_bytes(receipt.name, b"{")
    with pytest.raises(StoreError, match="is damaged"):
        run_gc(tmp_path / "store", dry_run=False)
    assert storage.exists("tokens/open-0000.parquet")
    assert all(storage.exists(file.name) for file in receipt.files)
    (tmp_path / "photos").mkdir()
    with pytest.raises(NotAStoreError):
        run_gc(tmp_path / "photos", dry_run=False)


def test_gc_of_answers(tmp_path: Path) -> None:
    rows = [answer_folders.answer("q1", "what?", "a cat")]
    answer_folders.write_answers(tmp_path, "a1", rows)
    answer_folders.write_answers(tmp_path, "b2", rows, covered=False)
    assert list(run_gc(tmp_path, dry_run=False).files) == ["answers/b2.parquet"]
    assert Storage(tmp_path).names("answers") == ["answers/a1.parquet"]
