"""Shards written again: what is copied is what was there, and readers see the old shard or the new one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from echoprune.errors import StoreError
from echoprune.forgotten import Tombstone, add_forgotten
from echoprune.plan import Source, load_plan
from echoprune.receipt import Receipt, read_receipts, sweep
from echoprune.rewrite import CommittedShard, drop_forgotten, rewrite_shard, shards_to_redo
from echoprune.schema import StoreSettings
from echoprune.sources import video_id
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from tests import stores as made

BAD = "/archive/bad.mp4"


def rewrite(storage: Storage, settings: StoreSettings, receipt: Receipt, keep: set[str]) -> Receipt:
    return rewrite_shard(
        storage, settings, receipt, keep=keep, run_id="again", lease_epoch=2, check_epoch=lambda: None
    )


@pytest.mark.parametrize(
    ("dtype", "layers", "limits"),
    [
        ("fp32", 0, {}),
        ("bf16", 2, {}),
        # Row groups of one video, of many, and videos that are cut; several files.
        ("int8", 1, {"row_group_bytes": 4000}),
        ("fp32", 0, {"row_group_bytes": 500, "file_bytes": 500 + (64 << 10)}),
    ],
)
def test_a_copy_is_the_shard_that_would_have_been_made(
    tmp_path: Path, dtype: str, layers: int, limits: dict[str, int]
) -> None:
    """The copied shard has the bytes of one that never held the dropped video."""
    settings = made.settings(dtype=dtype, deepstack_layers=layers)
    clips = [made.clip(f"/archive/{i}.mp4", settings, cells=3 + 5 * i, seed=i) for i in range(5)]
    storage = made.create_store(tmp_path / "store", settings)
    receipt = made.write_shard(storage, settings, clips, failed=[BAD], **limits)
    keep = {clip.video_id for clip in clips if clip is not clips[2]} | {video_id(BAD)}
    written = rewrite(storage, settings, receipt, keep)
    clean = made.create_store(tmp_path / "clean", settings)
    others = [clip for clip in clips if clip is not clips[2]]
    expected = made.write_shard(clean, settings, others, failed=[BAD])
    assert [(file.table, file.rows, file.sha256) for file in written.files] == [
        (file.table, file.rows, file.sha256) for file in expected.files
    ]
    assert (written.generation, written.ok, written.failed, written.lease_epoch) == (1, 4, 1, 2)
    assert written.versions == receipt.versions and written.run_id == "again"


def test_an_emptied_shard_is_a_receipt_without_files(tmp_path: Path) -> None:
    settings = made.settings()
    storage, _ = made.planned_store(tmp_path, settings)
    for receipt in read_receipts(storage).values():
        rewrite(storage, settings, receipt, set())
    sweep(storage)
    store = open_store(tmp_path)
    assert (
        len(store.videos()) == 0 and not store.files("tokens") and not list(tmp_path.rglob("*/*.parquet"))[1:]
    )


def test_damage_is_not_copied(tmp_path: Path) -> None:
    settings = made.settings()
    storage, clips = made.planned_store(tmp_path, settings)
    receipt = next(iter(read_receipts(storage).values()))
    path = tmp_path / receipt.files_of("tokens")[0].name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    before = storage.read_bytes(receipt.name)
    with pytest.raises(StoreError, match="is damaged"):
        rewrite(storage, settings, receipt, {clip.video_id for clip in clips.values()})
    assert storage.read_bytes(receipt.name) == before


def test_only_shards_with_such_videos_are_redone(tmp_path: Path) -> None:
    settings = made.settings()
    storage, _ = made.planned_store(tmp_path, settings, failed=[BAD])
    receipts = read_receipts(storage)
    (shard,) = shards_to_redo(storage, settings, receipts)
    assert receipts[shard.shard_id].failed == 1
    assert shard.redo == {video_id(BAD)} and shard.todo == (Source(BAD, None),)
    assert [source.video_id for source in shard.sources] == list(
        CommittedShard.open(storage, settings, shard.receipt).videos
    )
    assert shards_to_redo(storage, settings, receipts, classes=["missing"], partial=True) == [shard]
    assert shards_to_redo(storage, settings, receipts, classes=["empty"]) == []


def test_a_store_whose_receipts_have_no_lease_in_their_names(tmp_path: Path) -> None:
    settings = made.settings()
    storage, clips = made.planned_store(tmp_path, settings, failed=[BAD])
    for receipt in read_receipts(storage).values():
        (tmp_path / receipt.name).rename(tmp_path / f"receipts/{receipt.shard_id}.json")
    assert list(verify(tmp_path)) == []
    (shard,) = shards_to_redo(storage, settings, read_receipts(storage))
    assert BAD in [
        row["uri"] for row in CommittedShard.open(storage, settings, shard.receipt).videos.values()
    ]
    _forget(storage, settings, {BAD})
    assert sorted(clips) == open_store(tmp_path).videos()["uri"].to_pylist()
    assert list(verify(tmp_path)) == [] and f"receipts/{shard.shard_id}.json" not in storage.names("receipts")


def _forget(storage: Storage, settings: StoreSettings, gone: set[str]) -> None:
    rows = load_plan(storage).table.to_pylist()
    add_forgotten(
        storage, [Tombstone(row["shard_id"], row["video_id"]) for row in rows if row["uri"] in gone]
    )
    drop_forgotten(
        storage,
        settings,
        load_plan(storage),
        read_receipts(storage),
        run_id="forget",
        lease_epoch=2,
        check_epoch=lambda: None,
    )
    sweep(storage)


def test_broken_at_any_step_it_is_the_old_shard_or_the_new_one(tmp_path: Path) -> None:
    settings = made.settings()
    gone = {"/archive/1.mp4", "/archive/5.mp4", BAD}
    broken = 0
    for step in range(100):
        storage, clips = made.planned_store(tmp_path / str(step), settings, failed=[BAD])
        contents = {uri: _content(storage, uri) for uri in clips}
        with made.breaking(step) as done:
            try:
                _forget(storage, settings, gone)
            except StoreError as error:
                assert "the disk failed" in str(error)
                broken += 1
        store = open_store(storage.url)
        found = store.videos()["uri"].to_pylist()
        assert len(set(found)) == len(found) and set(found) >= set(clips) - gone
        for uri in set(found) & set(clips):
            assert _content(storage, uri) == contents[uri], (done[-1], uri)
        _forget(storage, settings, set())
        if step and broken > step:
            found = open_store(storage.url).videos()["uri"].to_pylist()
            assert sorted(found) == sorted(set(clips) - gone), done[-1]
        files = {file.name for receipt in read_receipts(storage).values() for file in receipt.files}
        assert {
            name for table in ("videos", "cells", "tokens", "failures") for name in storage.names(table)
        } == files
        if broken == step:
            break
    assert broken > 12, "every put and removal of two shards"


def _content(storage: Storage, uri: str) -> str:
    store = open_store(storage.url)
    tokens = store.tokens(uri)
    row = {name: value for name, value in store.video(uri).items() if name != "token_row"}
    parts = [str(row), str(store.cells(uri).to_pylist()), str(tokens.positions.tolist())]
    parts += [str(tokens.tokens.tolist()), str(tokens.echo.tolist()), str(tokens.times_s.tolist())]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def test_a_reader_that_was_overtaken_is_told_to_open_again(tmp_path: Path) -> None:
    settings = made.settings()
    storage, _ = made.planned_store(tmp_path, settings)
    reader = open_store(tmp_path)
    reader.videos()
    _forget(storage, settings, {"/archive/0.mp4"})
    stale = next(r for r in reader.receipts.values() if not storage.exists(r.files_of("tokens")[0].name))
    uri = pq.read_table(tmp_path / made.file_of(storage, "videos", stale.shard_id))["uri"][0].as_py()
    with pytest.raises(StoreError, match="open it again"):
        reader.tokens(uri)
    assert len(open_store(tmp_path).tokens(uri))
