"""Which videos answers were made from, and whether a store still holds the same ones.

A store's settings do not tell two stores apart that were made alike from different files; what a video gave does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.answer_store import AnswerStore
from echoprune.errors import StoreMismatchError
from echoprune.schema import StoreSettings
from echoprune.store import TokenStore

_COLUMNS = ("video_id", "video_digest")
# The file as it was, and what the index kept of it. Where its rows are, and how it is called, may change.
_FIELDS = (
    "video_id",
    "content_id",
    "size_bytes",
    "etag",
    "status",
    "cells",
    "grid_h",
    "grid_w",
    "tokens",
    "kept",
    "highest_dropped_novelty",
    "covered_s",
)


def video_digest(row: Mapping[str, Any], settings: StoreSettings) -> str:
    """16 hex digits over a row of a store's videos table and the store's settings: equal for equal tokens of equal files."""
    values = {name: row[name] for name in _FIELDS} | {"settings": settings.digest}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def require_same_videos(answers: AnswerStore, store: TokenStore) -> None:
    """Raise StoreMismatchError unless each video that `answers` are about is in `store` as it was when it was asked about.

    Videos that `store` gained since are no difference. Two columns of the answers are read.
    """
    asked = _asked(answers)
    if not asked:
        return
    videos = store.videos().select(_FIELDS)
    wanted = pa.array(sorted({video_id for video_id, _ in asked}), pa.string())
    now = {
        row["video_id"]: video_digest(row, store.settings)
        for batch in videos.filter(pc.is_in(videos["video_id"], value_set=wanted)).to_batches()
        for row in batch.to_pylist()
    }
    for video_id, digest in sorted(asked):
        if now.get(video_id) != digest:
            found = "holds another video" if video_id in now else "holds no video"
            raise StoreMismatchError(
                f"the answers in {answers.storage.url} are about video {video_id} ({digest}), {store.storage.url} {found} "
                f"of that id{f' ({now[video_id]})' if video_id in now else ''}: name the STORE they were made from, or write "
                "to another --out"
            )


def _asked(answers: AnswerStore) -> set[tuple[str, str]]:
    """The different pairs of video_id and video_digest; rows of no video, and of folders made before there was one, left out."""
    found: set[tuple[str, str]] = set()
    for batch in answers.batches(_COLUMNS):
        if set(_COLUMNS) <= set(batch.schema.names):
            pairs = pa.Table.from_batches([batch]).group_by(list(_COLUMNS)).aggregate([])
            found.update(zip(*(pairs[name].to_pylist() for name in _COLUMNS), strict=True))
    return {pair for pair in found if None not in pair}
