"""What a store holds and how its archive stands, as one plain dictionary: for people, scripts and the demo."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.errors import StoreError
from echoprune.plan import load_plan
from echoprune.schema import STATUSES
from echoprune.store import TokenStore, open_store


def store_status(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Counts of videos by status, failures with their messages, tokens, cells, seconds and bytes of a store.

    `videos` has ok, partial, failed and missing (planned, without a row yet). `failures`: one entry for each
    partial or failed video with status, stage, class, uri and message; `named` makes it a line. Raises StoreError where there is no store.
    """
    store = open_store(path)
    videos = store.videos()
    plan = load_plan(store.storage)
    counts = {status: _sum(pc.equal(videos["status"], status)) for status in STATUSES}
    files = [file for receipt in store.receipts.values() for file in receipt.files]
    return {
        "store": store.storage.url,
        "settings": asdict(store.settings),
        "videos": counts | {"missing": len(plan) - len(videos)},
        "failures": _failures(videos),
        "video_s": float(_sum(videos["covered_s"])),
        "cells": _sum(videos["cells"]),
        "tokens_seen": _sum(videos["tokens"]),
        "tokens_kept": _sum(videos["kept"]),
        "bytes": sum(file.size_bytes for file in files),
        "files": len(files),
        "shards": len(store.receipts),
        "shards_planned": len(plan.shard_ids),
        "last_run": _last_run(store),
    }


def named(failure: Mapping[str, Any]) -> str:
    """The message of one of the `failures`, with the uri in front where it does not begin with it already."""
    uri, message = " ".join(str(failure["uri"]).split()), str(failure["message"])
    return message if message.startswith(uri) else f"{uri}: {message}"


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def _failures(videos: pa.Table) -> list[dict[str, Any]]:
    columns = ["status", "error_stage", "error_class", "uri", "error"]
    names = ["status", "stage", "class", "uri", "message"]
    failed = videos.filter(pc.not_equal(videos["status"], "ok"))
    rows: list[dict[str, Any]] = failed.select(columns).rename_columns(names).to_pylist()
    return rows


def _last_run(store: TokenStore) -> dict[str, Any] | None:
    """The newest run's report, None before the first run ended."""
    name = "run_report.json"
    if not store.storage.exists(name):
        return None
    try:
        report: dict[str, Any] = json.loads(store.storage.read_bytes(name))
    except ValueError as error:
        raise StoreError(
            f"{store.storage.url_of(name)} is not JSON: remove it; the next run writes it anew"
        ) from error
    return {key: report[key] for key in ("run_id", "started_at", "finished_at", "run")}
