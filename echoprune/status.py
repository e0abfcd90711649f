"""How a store or a folder of answers stands, as one plain dictionary: for people, scripts and the demo."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.answer_plan import load_plan as load_answer_plan
from echoprune.answer_store import MARKER, open_answers
from echoprune.errors import StoreError
from echoprune.garbage import find_garbage
from echoprune.plan import Plan, load_plan
from echoprune.receipt import Receipt, committed
from echoprune.schema import STATUSES
from echoprune.source_changes import source_changes
from echoprune.storage import Storage
from echoprune.store import open_store

# The class of a video that killed its encoder twice and is left out from then on.
QUARANTINED = "worker_died"


def store_status(path: str | os.PathLike[str], *, sources: bool = False) -> dict[str, Any]:
    """Counts of videos by status, failures with their messages, tokens, cells, seconds and bytes of a store.

    `videos` has ok, partial, failed and missing (planned, without a row yet); of the failed ones `quarantined` killed
    their encoder; `forgotten` ones are in none of these. `errors`: failed and partial ones by class. `failures`: one entry for each partial or failed video with
    status, stage, class, uri and message; `named` makes it a line. `bytes`, `files`: of its tables; `garbage`: of files
    that nothing counts; `bytes_on_disk`: of all there is. `sources` adds what `source_changes` says under that name.
    Raises StoreError where there is no store.
    """
    store = open_store(path)
    videos = store.videos()
    plan = load_plan(store.storage)
    counts = {status: _sum(pc.equal(videos["status"], status)) for status in STATUSES}
    quarantined = pc.and_(pc.equal(videos["status"], "failed"), pc.equal(videos["error_class"], QUARANTINED))
    gone = set(plan.forgotten["video_id"].to_pylist())
    gone -= set(plan.table["video_id"].to_pylist()) if gone else set()
    planned = set(plan.shard_ids)
    found = {
        "store": store.storage.url,
        "settings": asdict(store.settings),
        "videos": counts | {"missing": _missing(plan, videos)},
        "quarantined": _sum(quarantined),
        "forgotten": len(gone),
        "errors": _by_class(videos["error_class"]),
        "failures": _failures(videos),
        "video_s": float(_sum(videos["covered_s"])),
        "cells": _sum(videos["cells"]),
        "tokens_seen": _sum(videos["tokens"]),
        "tokens_kept": _sum(videos["kept"]),
        **_disk(store.storage, store.receipts.values()),
        "shards": len(planned.intersection(committed(store.receipts)) or store.receipts),
        "shards_planned": len(planned),
        "last_run": _last_run(store.storage),
    }
    if sources:
        found["sources"] = source_changes(store, plan)
    return found


def answers_status(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How a folder of answers stands: `counts` of ok, empty, failed and missing; failed ones by class in `errors`.

    Further keys as in `store_status`. Raises NotAStoreError where there are no answers.
    """
    answers = open_answers(path)
    table = answers.table(["status", "error_class"])
    counts = {name: _sum(pc.equal(table["status"], name)) for name in ("ok", "empty", "failed")}
    planned = load_answer_plan(answers.storage)
    return {
        "answers": answers.storage.url,
        "counts": counts | {"missing": max(0, len(planned) - len(table))},
        "errors": _by_class(table["error_class"]),
        **_disk(answers.storage, answers.receipts.values()),
        "shards": len(answers.receipts),
        "last_run": _last_run(answers.storage),
    }


def is_answers(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder of answers."""
    return Storage(path).exists(MARKER)


def named(failure: Mapping[str, Any]) -> str:
    """The message of one of the `failures`, with the uri in front where it does not begin with it already."""
    uri, message = " ".join(str(failure["uri"]).split()), str(failure["message"])
    return message if message.startswith(uri) else f"{uri}: {message}"


def _disk(storage: Storage, receipts: Iterable[Receipt]) -> dict[str, Any]:
    files = [file for receipt in receipts for file in receipt.files]
    garbage = find_garbage(storage)
    return {
        "bytes": sum(file.size_bytes for file in files),
        "files": len(files),
        "garbage": {"files": garbage.count, "bytes": garbage.size_bytes},
        "bytes_on_disk": sum(storage.sizes().values()) + garbage.unfinished[1],
    }


def _missing(plan: Plan, videos: pa.Table) -> int:
    # Not a difference of counts: a `forget` that was killed leaves rows that the plan has no longer.
    stored = pc.is_in(plan.table["video_id"], value_set=videos["video_id"])
    return len(plan) - int(_sum(stored))


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def _by_class(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each class is there, in order of their names."""
    counts = pc.value_counts(column.drop_null()).to_pylist()
    return {each["values"]: each["counts"] for each in sorted(counts, key=lambda each: each["values"])}


def _failures(videos: pa.Table) -> list[dict[str, Any]]:
    columns = ["status", "error_stage", "error_class", "uri", "error"]
    names = ["status", "stage", "class", "uri", "message"]
    failed = videos.filter(pc.not_equal(videos["status"], "ok"))
    rows: list[dict[str, Any]] = failed.select(columns).rename_columns(names).to_pylist()
    return rows


def _last_run(storage: Storage) -> dict[str, Any] | None:
    """The newest run's report, None before the first run ended."""
    name = "run_report.json"
    if not storage.exists(name):
        return None
    try:
        report: dict[str, Any] = json.loads(storage.read_bytes(name))
        return {key: report[key] for key in ("run_id", "started_at", "finished_at", "run")}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{storage.url_of(name)} is no report of a run ({error!r}): remove it; the next run writes it anew"
        ) from error
