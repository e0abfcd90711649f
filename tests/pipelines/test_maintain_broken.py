"""forget, compact, gc and retry: broken at every single write and removal, in a folder and in S3; and in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from echoprune import lease as leases
from echoprune.errors import MediaError, StoreError
from echoprune.lease import Lease
from echoprune.plan import Source, extend_plan, load_plan, pending
from echoprune.receipt import committed, read_receipts, sweep
from echoprune.rewrite import shards_to_redo
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.config import IndexConfig
from pipelines.maintain import finish_earlier, new_run_id, run_compact, run_forget, run_gc
from pipelines.open_shard import OpenShard, committed_shard
from tests import stores as made
from tests.echoprune.test_compact import content

BAD = "/archive/bad.mp4"


def retry(root: str) -> None:
    """What a retry run does to a store, without Ray and a model: the failed video fails again."""
    store = open_store(root)
    storage, settings = store.storage, store.settings
    with Lease.acquire(storage, run_id=new_run_id()) as lease:
        finish_earlier(storage, settings, lease)
        for shard in shards_to_redo(storage, settings, read_receipts(storage)):
            with storage.tmp_dir() as folder:
                old = committed_shard(storage, settings, shard, lease_epoch=lease.epoch)
                files = OpenShard(folder, settings, shard.shard_id, old)
                for source in shard.sources:
                    if source.video_id in shard.redo:
                        files.failed(source, MediaError("no such file", stage="probe", kind="missing"))
                    else:
                        files.copy(source)
                files.commit(
                    storage,
                    IndexConfig(store=root, model="tiny", paths=("/archive",)),
                    run_id=lease.holder.run_id,
                    lease_epoch=lease.epoch,
                    check_epoch=partial(leases.check, storage, lease.epoch),
                )
        sweep(storage)


# What people put into a table's folder, and a killed run left.
LEFT = {"tokens/left (1).parquet": b"x", "videos/left.parquet": b"y"}
JOBS: dict[str, Callable[[str], object]] = {
    "forget": lambda root: run_forget(root, ["1.mp4", "bad.mp4"]),
    "compact": lambda root: run_compact(root, target_bytes=1 << 30),
    "retry": retry,
    "gc": lambda root: run_gc(root, dry_run=False),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store of two shards."""
    root = tmp_path_factory.mktemp("prepared")
    storage, _ = made.planned_store(root, made.settings(), failed=[BAD], count=3, shard_videos=2)
    return storage.read_many(storage.names())


def tables(storage: Storage) -> set[str]:
    """All names but those that tell of runs and times; of receipts without the lease, of which a second run has another."""
    names = [name for name in storage.names() if not name.startswith("lease/")]
    return {name.rpartition("-")[0] if name.startswith("receipts/") else name for name in names}


# A server of S3 takes a minute for them all, and each of its steps is one of a folder too.
@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.long)])
@pytest.mark.parametrize("job", list(JOBS))
def test_broken_at_any_step(
    request: pytest.FixtureRequest, tmp_path: Path, prepared: dict[str, bytes], job: str, place: str
) -> None:
    base = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_url")
    run, files = JOBS[job], prepared | (LEFT if job == "gc" else {})

    def fresh(name: str) -> Storage:
        storage = Storage(f"{base}/{name}")
        for each, data in files.items():
            storage._files.write(each, data, before=None)
        return storage

    clean = fresh("clean")
    before = content(clean.url)
    run(clean.url)
    after, left = content(clean.url), tables(clean)
    if job != "retry":
        assert set(after) <= set(before) and all(
            after[uri] == before[uri] for uri in set(after) - {"failures"}
        )
    # All of them in a folder; in S3, where each takes a second, every fifth.
    for step in range(0, 100, 1 if place == "folder" else 5):
        storage = fresh(str(step))
        with made.breaking(step) as done:
            try:
                run(storage.url)
            except StoreError as error:
                assert "the disk failed" in str(error)
        found = content(storage.url)
        rows = {uri: row for uri, row in found.items() if uri != "failures"}
        for uri, row in rows.items():
            assert row == before[uri], (done[-1], uri)
        assert set(after) <= set(found) <= set(before), done[-1]
        wrong = [line for line in verify(storage.url) if "run gc" not in line and "run forget" not in line]
        assert wrong == [], done[-1]
        assert store_status(storage.url)["videos"]["missing"] == 0, done[-1]
        run(storage.url)
        ended = content(storage.url)
        assert {**ended, "failures": []} == {**after, "failures": []}, done[-1]
        assert list(verify(storage.url)) == [], done[-1]
        if job != "retry":
            assert tables(storage) == left, done[-1]
        if len(done) <= step:
            break
    assert step >= {"forget": 8, "compact": 10, "retry": 4, "gc": 2}[job], done


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_commands_keeps_count(tmp_path: Path, seed: int) -> None:
    """Indexed, forgotten, brought back, merged, retried, damaged and done again, in any order: the right videos, once each."""
    chance, settings = random.Random(seed), made.settings()
    clips = {
        f"/archive/{i}.mp4": made.clip(f"/archive/{i}.mp4", settings, cells=2 + i % 4, seed=i)
        for i in range(12)
    }
    every, root = [*clips, BAD, "/archive/bad too.mp4"], str(tmp_path)
    storage = made.create_store(tmp_path, settings)
    live: set[str] = set()
    seen: set[str] = set()

    def index(uris: list[str], *, bring_back: bool) -> None:
        limits = {"shard_bytes": 1 << 30, "shard_videos": chance.choice([1, 2, 3])}
        extend_plan(storage, [Source(uri, 1000) for uri in uris], **limits, bring_back=bring_back)
        for shard in pending(load_plan(storage), committed(read_receipts(storage))):
            planned = [source.uri for source in shard.sources]
            good = [clips[uri] for uri in planned if uri in clips]
            bad = [uri for uri in planned if uri not in clips]
            made.write_shard(storage, settings, good, shard_id=shard.shard_id, failed=bad)
        live.update(uris if bring_back else set(uris) - seen)
        seen.update(uris)

    done = []
    for _ in range(14):
        done.append(
            chance.choice(["index", "bring back", "forget", "forget", "compact", "gc", "retry", "lose"])
        )
        receipts = read_receipts(storage)
        if done[-1] in ("index", "bring back"):
            index(chance.sample(every, chance.randint(1, 6)), bring_back=done[-1] == "bring back")
        elif done[-1] == "forget" and live:
            gone = chance.sample(sorted(live), min(len(live), chance.randint(1, 3)))
            run_forget(root, gone)
            live.difference_update(gone)
        elif done[-1] == "compact" and receipts:
            largest = max(receipt.size_bytes for receipt in receipts.values())
            run_compact(root, target_bytes=chance.choice([1 << 30, 3 * largest]))
        elif done[-1] == "lose" and receipts:
            storage.remove(chance.choice([receipt.name for receipt in receipts.values()]))
            sweep(storage)
            index([], bring_back=False)
        elif done[-1] in ("gc", "retry"):
            JOBS[done[-1]](root)
        assert list(verify(root)) == [], done
        assert set(content(root)) - {"failures"} == live, done
        assert store_status(root)["videos"]["missing"] == 0, done
