"""What changes a store without a model and without Ray: forgetting videos, merging shards, removing what nothing counts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from echoprune import lease as leases
from echoprune.answer_store import MARKER
from echoprune.compact import merge_groups, merge_shards
from echoprune.errors import NoSuchVideoError, NotAStoreError
from echoprune.forgotten import Tombstone, add_forgotten
from echoprune.garbage import Garbage, collect_garbage, find_garbage
from echoprune.lease import Lease
from echoprune.plan import Plan, load_plan
from echoprune.receipt import Receipt, read_receipts, sweep
from echoprune.rewrite import drop_forgotten
from echoprune.schema import SETTINGS_FILE, StoreSettings
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.video_names import find_video


def new_run_id() -> str:
    """An id that sorts by time and that no other run has."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]


@dataclass(frozen=True)
class Ready:
    """A store that is ready for a run: the receipts that count, and the ids of shards that were written again before."""

    receipts: dict[str, Receipt]
    rewritten: list[str]


def finish_earlier(storage: Storage, settings: StoreSettings, lease: Lease) -> Ready:
    """Removes what killed runs left, and ends what a killed `forget` began."""
    check_epoch = partial(leases.check, storage, lease.epoch)
    receipts = sweep(storage, check_epoch=check_epoch).receipts
    rewritten = drop_forgotten(
        storage,
        settings,
        load_plan(storage),
        receipts,
        # A run takes a receipt with its own id for work of its own that is done.
        run_id=f"{lease.holder.run_id}-forget",
        lease_epoch=lease.epoch,
        check_epoch=check_epoch,
    )
    if rewritten:
        receipts = sweep(storage, check_epoch=check_epoch).receipts
    return Ready(receipts, rewritten)


def run_forget(path: str | os.PathLike[str], videos: Sequence[str]) -> dict[str, Any]:
    """Removes videos from a store: `uris` of those that it removed, `shards` written again, `bytes` less on disk.

    `videos`: ids, uris, paths, or file names that are unique in the plan; of videos that are planned and not indexed yet
    too. First they are marked in forgotten.json, then their shards are written again without them: a run that is killed in
    between is finished by the same command, or by the next index or retry. Raises NoSuchVideoError, before anything is
    changed, for one that the plan does not hold; one that is forgotten already is passed over.
    """
    store = open_store(path)
    storage = store.storage
    with Lease.acquire(storage, run_id=new_run_id(), option="STORE") as lease:
        before = _table_bytes(storage)
        plan = load_plan(storage)
        rows = dict.fromkeys(at for video in videos if (at := _planned(plan, video, where=storage.url)) >= 0)
        named = (
            plan.table.take(pa.array(list(rows), pa.int64()))
            .select(["shard_id", "video_id", "uri"])
            .to_pylist()
        )
        if named:
            add_forgotten(storage, (Tombstone(row["shard_id"], row["video_id"]) for row in named))
        shards = finish_earlier(storage, store.settings, lease).rewritten
        return {
            "uris": [row["uri"] for row in named],
            "shards": len(shards),
            "bytes": before - _table_bytes(storage),
        }


def run_compact(path: str | os.PathLike[str], *, target_bytes: int) -> dict[str, int]:
    """Merges small shards of a store: `merged` shards `into` so many, and files that count, `files_before` and `files`.

    A run that is killed leaves each group of shards as it was or merged; the same command goes on from there.
    """
    store = open_store(path)
    storage = store.storage
    with Lease.acquire(storage, run_id=new_run_id(), option="STORE") as lease:
        receipts = finish_earlier(storage, store.settings, lease).receipts
        groups = merge_groups(load_plan(storage), receipts, target_bytes=target_bytes)
        merged = [
            merge_shards(
                storage,
                store.settings,
                group,
                run_id=lease.holder.run_id,
                lease_epoch=lease.epoch,
                check_epoch=partial(leases.check, storage, lease.epoch),
            )
            for group in groups
        ]
        before = sum(len(receipt.files) for receipt in receipts.values())
        replaced = sum(len(receipt.files) for group in groups for receipt in group)
        return {
            "merged": sum(map(len, groups)),
            "into": len(merged),
            "files_before": before,
            "files": before - replaced + sum(len(receipt.files) for receipt in merged),
        }


def run_gc(path: str | os.PathLike[str], *, dry_run: bool) -> Garbage:
    """What was removed from a store or a folder of answers because nothing counts it; with `dry_run` what would be.

    A dry run takes no lease: it may list the files that a run is about to commit.
    """
    storage = Storage(path)
    if not storage.exists(SETTINGS_FILE) and not storage.exists(MARKER):
        storage.require_bucket()
        raise NotAStoreError(
            f"{storage.url} holds neither a store ({SETTINGS_FILE}) nor answers ({MARKER}): check the path"
        )
    if dry_run:
        return find_garbage(storage)
    with Lease.acquire(storage, run_id=new_run_id(), option="folder") as lease:
        return collect_garbage(storage, check_epoch=partial(leases.check, storage, lease.epoch))


def _planned(plan: Plan, video: str, *, where: str) -> int:
    """The row of a video in the plan; -1 for one that is forgotten already."""
    try:
        return find_video(plan.table, video, where=f"the plan of {where}")
    except NoSuchVideoError as error:
        if error.several:
            raise
        try:
            find_video(plan.forgotten, video, where=where)
        except NoSuchVideoError:
            raise error from None
        return -1


def _table_bytes(storage: Storage) -> int:
    return sum(receipt.size_bytes for receipt in read_receipts(storage).values())
