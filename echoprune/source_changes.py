"""Which source files, or objects in S3, are no longer those that a store was made from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.errors import MediaError
from echoprune.plan import Plan
from echoprune.s3_options import is_s3
from echoprune.sources import content_id
from echoprune.store import TokenStore

_COLUMNS = ["uri", "size_bytes", "etag", "content_id", "_shard_id"]
_BATCH = 10_000


def source_changes(store: TokenStore, plan: Plan) -> dict[str, Any]:
    """The uris of source files that `changed` or `vanished` since they were planned, and how many are `unchecked`.

    Changed: another size than planned, or a file that was not there when it was planned and is not indexed, or one that was written to after its
    shard was begun and has another content (of a failed video, whose content is not known, any such file). Of an object in
    S3: another size or etag. Unchecked: other urls, and objects that came after they were planned and were indexed by a retry. One look at each file; of local ones that were written to since, up to
    3 MiB are read. Raises ConfigError where S3 refuses.
    """
    begun_s = {
        shard_id: datetime.fromisoformat(receipt.started_at).timestamp()
        for shard_id, receipt in store.receipts.items()
    }
    found: dict[str, Any] = {"changed": [], "vanished": [], "unchecked": 0}
    for rows in _planned(store, plan):
        objects = [row for row in rows if is_s3(row["uri"])]
        for row, kind in zip(objects, _changes_in_s3(objects), strict=True):
            if kind == "unchecked":
                found["unchecked"] += 1
            elif kind:
                found[kind].append(row["uri"])
        for row in rows:
            if is_s3(row["uri"]):
                continue
            if "://" in row["uri"]:
                found["unchecked"] += 1
                continue
            kind = _change(row, begun_s.get(row["_shard_id"]))
            if kind:
                found[kind].append(row["uri"])
    return found


def _changes_in_s3(rows: list[dict[str, Any]]) -> Iterator[str | None]:
    if not rows:
        return
    # Loads s3fs, which takes half a second.
    from echoprune.s3_sources import look_up  # noqa: PLC0415

    for row, (size, etag) in zip(rows, look_up([row["uri"] for row in rows]), strict=True):
        if size is None:
            gone = row["size_bytes"] is not None or row["content_id"] is not None
            yield "vanished" if gone else None
        elif row["size_bytes"] is None and row["content_id"] is not None:
            # It came after it was planned, and was indexed by a retry: of its size and etag then nothing is kept.
            yield "unchecked"
        else:
            planned = (row["etag"] or "").strip('"')
            yield "changed" if row["size_bytes"] != size or (planned and planned != etag) else None


def _planned(store: TokenStore, plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """The rows of all videos that are stored, then of those that are planned only, some at a time."""
    stored = store.places().select(_COLUMNS)
    waiting = plan.table.filter(pc.invert(pc.is_in(plan.table["uri"], value_set=stored["uri"])))
    nothing = pa.nulls(len(waiting), pa.string())
    waiting = waiting.select(["uri", "size_bytes", "etag"]).append_column("content_id", nothing)
    for table in (stored, waiting.append_column("_shard_id", nothing)):
        for batch in table.to_batches(max_chunksize=_BATCH):
            yield batch.to_pylist()


def _change(row: dict[str, Any], begun_s: float | None) -> str | None:
    planned = row["size_bytes"]
    try:
        status = Path(row["uri"]).stat()
    except (OSError, ValueError):
        # It was not there when it was planned either, and is a failed video.
        return None if planned is None and row["content_id"] is None else "vanished"
    # One that came after it was planned, and was indexed by a retry, is known by its content alone.
    if status.st_size != planned and (planned is not None or row["content_id"] is None):
        return "changed"
    if begun_s is None or status.st_mtime < begun_s:
        return None
    try:
        return "changed" if content_id(row["uri"]) != row["content_id"] else None
    except MediaError:
        return "vanished"
