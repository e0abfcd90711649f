"""Shards merged: the same rows in fewer files, and readers see the shards or the merged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from echoprune.compact import merge_groups, merge_shards
from echoprune.errors import StoreError
from echoprune.plan import load_plan, pending
from echoprune.receipt import Receipt, committed, read_receipts, sweep
from echoprune.rewrite import shards_to_redo
from echoprune.schema import StoreSettings
from echoprune.sources import video_id
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.maintain import run_compact, run_forget
from tests import stores as made

BAD = "/archive/bad.mp4"


def content(root: Path | str) -> dict[str, Any]:
    """All that a reader gets, by video: its row but for its place, its cells and its tokens."""
    store = open_store(root)
    found: dict[str, Any] = {"failures": store.failures().to_pylist()}
    for row in store.videos().to_pylist():
        row.pop("token_row")
        parts: list[Any] = [row, store.cells(row["uri"]).to_pylist()]
        if row["status"] != "failed":
            tokens = store.tokens(row["uri"])
            parts += [tokens.tokens.tolist(), tokens.positions.tolist(), tokens.echo.tolist()]
        found[row["uri"]] = parts
    return found


def globbed(root: Path | str) -> list[str]:
    rows = duckdb.sql(f"SELECT uri FROM '{root}/videos/*.parquet' ORDER BY uri").fetchall()
    return [uri for (uri,) in rows]


def merge(storage: Storage, settings: StoreSettings, group: list[Receipt]) -> Receipt:
    return merge_shards(storage, settings, group, run_id="merge", lease_epoch=1, check_epoch=lambda: None)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_the_rows_are_the_same_in_fewer_files(tmp_path: Path, dtype: str) -> None:
    settings = made.settings(dtype=dtype)
    storage, clips = made.planned_store(tmp_path, settings, failed=[BAD], count=8, shard_videos=1)
    before = content(tmp_path)
    report = run_compact(tmp_path, target_bytes=1 << 30)
    assert report == {"merged": 9, "into": 1, "files_before": 26, "files": 4}
    assert content(tmp_path) == before and globbed(tmp_path) == sorted([*clips, BAD])
    assert len(list((tmp_path / "receipts").iterdir())) == 1 and list(verify(tmp_path)) == []
    assert pending(load_plan(storage), committed(read_receipts(storage))) == []
    found = store_status(tmp_path)
    assert (found["shards"], found["shards_planned"], found["videos"]["missing"]) == (9, 9, 0)
    assert found["garbage"]["files"] == 0
    assert run_compact(tmp_path, target_bytes=1 << 30)["merged"] == 0


def test_groups_are_neighbours_of_about_the_target(tmp_path: Path) -> None:
    storage, _ = made.planned_store(tmp_path, made.settings(), count=10, shard_videos=1)
    plan, receipts = load_plan(storage), read_receipts(storage)
    largest = max(receipt.size_bytes for receipt in receipts.values())
    groups = merge_groups(plan, receipts, target_bytes=3 * largest)
    assert [receipt.shard_id for group in groups for receipt in group] == plan.shard_ids[
        : sum(map(len, groups))
    ]
    assert len(groups) >= 3
    for group in groups[:-1]:
        assert 1.5 * largest < sum(receipt.size_bytes for receipt in group) <= 3 * largest
    assert merge_groups(plan, receipts, target_bytes=largest) == []
    assert [len(each) for each in merge_groups(plan, receipts, target_bytes=1 << 30, most_videos=4)] == [
        4,
        4,
        2,
    ]
    # Files of a few rows get smaller when they are merged: it ends, though not at once.
    merged = [run_compact(tmp_path, target_bytes=3 * largest)["merged"] for _ in range(5)]
    assert merged[0] > 6 and merged[-1] == 0
    # A larger target merges merged shards.
    before = content(tmp_path)
    assert run_compact(tmp_path, target_bytes=1 << 30)["into"] == 1
    (receipt,) = read_receipts(storage).values()
    assert set(receipt.replaces) >= set(plan.shard_ids)
    assert content(tmp_path) == before and list(verify(tmp_path)) == []


def test_broken_at_any_step_it_is_the_shards_or_the_merged_one(tmp_path: Path) -> None:
    settings = made.settings()
    for step in range(100):
        root = tmp_path / str(step)
        storage, clips = made.planned_store(root, settings, failed=[BAD], count=4, shard_videos=2)
        before = content(root)
        with made.breaking(step) as done:
            try:
                merge(storage, settings, list(read_receipts(storage).values()))
            except StoreError as error:
                assert "the disk failed" in str(error)
        assert content(root) == before, done[-1]
        assert pending(load_plan(storage), committed(read_receipts(storage))) == []
        sweep(storage)
        assert globbed(root) == sorted([*clips, BAD]) and list(verify(root)) == [], done[-1]
        assert run_compact(root, target_bytes=1 << 30)["merged"] == (3 if step < 5 else 0)
        assert content(root) == before and list(verify(root)) == []
        if len(done) <= step:
            break
    assert step > 14, "five puts, three receipts, their files"


def test_merged_shards_can_be_forgotten_retried_and_done_again(tmp_path: Path) -> None:
    settings = made.settings()
    storage, clips = made.planned_store(tmp_path, settings, failed=[BAD], shard_videos=2)
    run_compact(tmp_path, target_bytes=1 << 30)
    (merged,) = read_receipts(storage).values()
    (shard,) = shards_to_redo(storage, settings, read_receipts(storage))
    assert shard.shard_id == merged.shard_id and shard.redo == {video_id(BAD)} and len(shard.sources) == 7
    run_forget(tmp_path, ["3.mp4"])
    (receipt,) = read_receipts(storage).values()
    assert (receipt.generation, receipt.replaces) == (1, merged.replaces)
    left = sorted({*clips, BAD} - {"/archive/3.mp4"})
    assert globbed(tmp_path) == left and list(verify(tmp_path)) == []
    # The cure for a damaged shard: without its receipt the planned shards are to be done again.
    storage.remove(receipt.name)
    waiting = pending(load_plan(storage), committed(read_receipts(storage)))
    assert sorted(source.uri for shard in waiting for source in shard.sources) == left
