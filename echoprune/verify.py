"""Rereading a store, or a folder of answers: everything that can be checked without the videos and the model.

One line for each finding. Memory: the ids of all videos, and of one shard its videos and a row group; a shard that is
damaged does not keep the others from being checked. What the rows of a shard must be like is in verify_rows.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.answer_plan import load_plan as load_answer_plan
from echoprune.answer_store import MARKER, open_answers
from echoprune.errors import NotAStoreError, StoreError
from echoprune.forgotten import FORGOTTEN_FILE, Tombstone, read_forgotten
from echoprune.plan import Plan, load_plan, plan_problems
from echoprune.receipt import (
    ANSWERS,
    Receipt,
    StoredFile,
    committed,
    old_receipt_name,
    receipt_names,
    standing,
    table_files,
)
from echoprune.rewrite import holding_forgotten
from echoprune.schema import SETTINGS_FILE, StoreSettings, plan_schema
from echoprune.storage import Storage
from echoprune.store_files import StoreFiles
from echoprune.verify_rows import check_rows

# Of an object in S3 each block is a request, of about 30 ms.
_BLOCK_BYTES = 4 << 20
OnShard = Callable[[int, int], None]


def verify(
    path: str | os.PathLike[str], *, quick: bool = False, on_shard: OnShard | None = None
) -> Iterator[str]:
    """A line for each thing that is wrong in a store or a folder of answers; none: it is sound and complete.

    `quick` reads no vectors and hashes no file that has some, so that damage goes unnoticed that leaves all other values. `on_shard(done, of)` is
    called after each shard. No run may write meanwhile. Raises NotAStoreError where there is nothing to verify, StoreError
    where store.json or answers.json cannot be read.
    """
    storage = Storage(path)
    if storage.exists(MARKER):
        yield from _verify_answers(storage, quick=quick, on_shard=on_shard)
    else:
        yield from _verify_store(storage, quick=quick, on_shard=on_shard)


def _verify_store(storage: Storage, *, quick: bool, on_shard: OnShard | None) -> Iterator[str]:
    settings = _settings(storage)
    receipts, left, damaged = _receipts(storage)
    yield from damaged
    try:
        plan = load_plan(storage)
        yield from plan_problems(storage)
        yield from _check_tombstones(plan, read_forgotten(storage))
        if not len(plan) and not len(plan.forgotten) and receipts:
            # One line, not one for each video.
            yield f"{sum(each.videos for each in receipts.values())} videos are stored, and no plan has them: restore plan/"
    except StoreError as error:
        plan = Plan(plan_schema().empty_table())
        yield str(error)
    ids: list[pa.Array] = []
    unread: set[str] = set()
    for done, (shard_id, receipt) in enumerate(receipts.items(), 1):
        problems = list(_check_files(storage, receipt, quick=quick))
        yield from problems
        # A file that is not what it was may hold anything: one line says so.
        unread.add(shard_id)
        if not problems:
            try:
                found = yield from check_rows(
                    StoreFiles(storage, {shard_id: receipt}), settings, receipt, vectors=not quick
                )
                ids.append(pa.array(found, pa.string()))
                unread.remove(shard_id)
            except StoreError as error:
                yield str(error)
        if on_shard:
            on_shard(done, len(receipts))
    if not damaged:
        yield from _check_plan(plan, pa.chunked_array(ids, pa.string()), receipts, unread=unread)
        yield from _orphans(storage, receipts, left)


def _settings(storage: Storage) -> StoreSettings:
    # Not open_store, which ends at the first receipt that is damaged.
    if not storage.exists(SETTINGS_FILE):
        storage.require_bucket()
        raise NotAStoreError(
            f"{storage.url} holds neither a store ({SETTINGS_FILE}) nor answers ({MARKER}): check the path"
        )
    return StoreSettings.from_json(storage.read_bytes(SETTINGS_FILE), where=storage.url_of(SETTINGS_FILE))


def _verify_answers(storage: Storage, *, quick: bool, on_shard: OnShard | None) -> Iterator[str]:
    try:
        json.loads(storage.read_bytes(MARKER))
    except ValueError as error:
        raise StoreError(f"{storage.url_of(MARKER)} is not JSON ({error}): use another --out") from error
    receipts, left, damaged = _receipts(storage)
    yield from damaged
    for done, receipt in enumerate(receipts.values(), 1):
        yield from _check_files(storage, receipt, quick=quick)
        if on_shard:
            on_shard(done, len(receipts))
    if damaged:
        return
    yield from _orphans(storage, receipts, left)
    try:
        planned = len(load_answer_plan(storage))
        answered = Counter(open_answers(storage.url).table(["question_id"])["question_id"].to_pylist())
    except StoreError as error:
        yield str(error)
        return
    yield from (f"question {name} has {count} rows" for name, count in answered.items() if count > 1)
    rows = sum(file.rows for receipt in receipts.values() for file in receipt.files_of(ANSWERS))
    for receipt in receipts.values():
        held = sum(file.rows for file in receipt.files_of(ANSWERS))
        if held != receipt.videos:
            yield f"{receipt.name} counts {receipt.videos} answers, its file has {held}"
    if rows < planned:
        yield f"{planned - rows} of {planned} planned questions have no answer: run the same command again"
    elif rows > planned:
        yield f"{rows} answers for {planned} planned questions: run the same command again"


def _receipts(storage: Storage) -> tuple[dict[str, Receipt], list[str], list[str]]:
    """The receipts that count, by shard id; names of those that others superseded; a line for each that cannot be read."""
    receipts: dict[str, Receipt] = {}
    problems = []
    for name in receipt_names(storage):
        try:
            receipt = Receipt.from_json(storage.read_bytes(name), where=storage.url_of(name))
        except StoreError as error:
            problems.append(str(error))
            continue
        if name not in (receipt.name, old_receipt_name(receipt.name)):
            problems.append(f"{name} is the receipt of shard {receipt.shard_id}: remove it")
        else:
            receipts[name] = receipt
    counted = standing(receipts.values())
    left = [name for name, receipt in receipts.items() if counted.get(receipt.shard_id) is not receipt]
    return counted, left, problems


def _check_files(storage: Storage, receipt: Receipt, *, quick: bool) -> Iterator[str]:
    """Files that are missing or not what the receipt says of them."""
    tables = StoreFiles(storage, {receipt.shard_id: receipt})
    cure = f"remove {receipt.name} and run the same command again, which redoes that shard"
    for file in receipt.files:
        if not storage.exists(file.name):
            yield f"{file.name} is missing: {cure}"
            continue
        try:
            # Rows of videos and failures are few; damage to what a reader skips, such as statistics, shows in the hash only.
            hashed = not quick or file.table in ("videos", "failures", ANSWERS)
            size, digest = _size_and_sha256(storage, file, hashed=hashed)
            if size != file.size_bytes:
                yield f"{file.name} has {size} bytes, its receipt says {file.size_bytes}: {cure}"
            elif digest not in ("", file.sha256):
                yield f"{file.name} differs from its receipt (sha256): {cure}"
            else:
                with tables.damage(file.name), tables.open(file.name) as parquet:
                    rows = parquet.metadata.num_rows
                if rows != file.rows:
                    yield f"{file.name} has {rows} rows, its receipt says {file.rows}: {cure}"
        except StoreError as error:
            yield str(error)


def _size_and_sha256(storage: Storage, file: StoredFile, *, hashed: bool) -> tuple[int, str]:
    with StoreFiles(storage, {}).damage(file.name), storage.open_input(file.name) as source:
        size = int(source.size())
        if not hashed:
            return size, ""
        digest = hashlib.sha256()
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
        return size, digest.hexdigest()


def _check_plan(
    plan: Plan, ids: pa.ChunkedArray, receipts: dict[str, Receipt], *, unread: set[str]
) -> Iterator[str]:
    """Whether every planned video has exactly one row, and no row is of another.

    `ids`: of all videos rows but those of the shards in `unread`.
    """
    counted = pc.value_counts(ids)
    for entry in counted.filter(pc.greater(counted.field("counts"), 1)).to_pylist():
        yield f"video {entry['values']} has {entry['counts']} rows in videos"
    for receipt in holding_forgotten(plan, receipts):
        yield f"shard {receipt.shard_id} holds a video that is forgotten: run forget, index or retry"
    planned = plan.table["video_id"]
    if not len(planned):
        return
    twice = len(planned) - len(pc.unique(planned))
    if twice:
        yield f"{twice} videos are planned twice"
    lacking = plan.table.filter(pc.invert(pc.is_in(planned, value_set=pc.unique(ids))))
    by_shard = committed(receipts)
    done = pc.is_in(lacking["shard_id"], value_set=pa.array(list(by_shard), pa.string()))
    to_do = len(lacking) - int(pc.sum(done).as_py() or 0)
    if to_do:
        yield f"{to_do} of {len(planned)} planned videos are not indexed yet: run index again"
    for row in lacking.filter(done).to_pylist():
        if by_shard[row["shard_id"]].shard_id not in unread:
            yield f"video {row['uri']} has no row, though its shard {row['shard_id']} has a receipt"
    known = pa.concat_arrays([planned.combine_chunks(), plan.forgotten["video_id"].combine_chunks()])
    for video_id in ids.filter(pc.invert(pc.is_in(ids, value_set=known))).to_pylist():
        yield f"video {video_id} is in the store and not in its plan"


def _check_tombstones(plan: Plan, tombstones: set[Tombstone]) -> Iterator[str]:
    rows = (plan.forgotten[name].to_pylist() for name in ("shard_id", "video_id"))
    for each in sorted(tombstones.difference(map(Tombstone, *rows))):
        yield f"{FORGOTTEN_FILE} names video {each.video_id} in shard {each.shard_id}, which the plan has not: restore it"


def _orphans(storage: Storage, receipts: dict[str, Receipt], left: list[str]) -> Iterator[str]:
    for name in left:
        yield f"{name} was replaced: run gc"
    covered = {file.name for receipt in receipts.values() for file in receipt.files}
    for name in table_files(storage):
        if name not in covered:
            yield f"{name} has no receipt, and globs read it: run gc"
