"""Rows of the `videos` and `failures` tables, from what probing, decoding and encoding found out."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import Any

from echoprune.errors import MediaError
from echoprune.index import IndexedVideo
from echoprune.shard import CellColumn
from echoprune.sources import Source, video_id
from pipelines.decode_actor import Opened


def video_row(
    source: Source, opened: Opened, indexed: IndexedVideo, *, status: str, error: MediaError | None
) -> dict[str, Any]:
    """The row of an ok or partial video; the writer adds its counts."""
    info, grid = opened.info, indexed.grid
    return _source_columns(source) | {
        "content_id": opened.content_id,
        "container": info.container,
        "codec": info.codec,
        "pix_fmt": info.pix_fmt,
        "stream_index": info.stream_index,
        "rotation": info.rotation,
        "vfr": info.vfr,
        "start_pts_s": info.start_pts_s,
        "duration_s": info.duration_s,
        "covered_s": indexed.covered_s,
        "width": info.width,
        "height": info.height,
        "frame_h": grid.frame_hw[0],
        "frame_w": grid.frame_hw[1],
        "decoder": indexed.decoder,
        "cells": indexed.cells,
        "grid_h": grid.grid_hw[0],
        "grid_w": grid.grid_hw[1],
        "highest_dropped_novelty": indexed.selection.highest_dropped,
        "status": status,
        **(_error_columns(error) if error else {}),
    }


def failed_row(source: Source, error: MediaError) -> dict[str, Any]:
    """The row of a video that has no tokens."""
    return _source_columns(source) | {"status": "failed"} | _error_columns(error)


def failure_row(
    source: Source, error: MediaError, *, decoder: str | None, attempt: int = 1
) -> dict[str, Any]:
    """The failures row of one attempt that failed or ended early: with where and when, unlike the videos row."""
    return {
        "video_id": video_id(source.uri),
        "uri": source.uri,
        "stage": error.stage,
        "class": error.kind,
        "message": one_line(str(error)),
        "attempt": attempt,
        "host": f"{socket.gethostname()}:{os.getpid()}",
        "time": datetime.now(UTC),
        "decoder": decoder,
    }


def cell_columns(indexed: IndexedVideo) -> dict[str, CellColumn]:
    """The arrays of the cells table that the writer does not count itself."""
    columns = indexed.columns
    return {
        "time_s": columns.time_s,
        "end_s": columns.end_s,
        "pts_s": columns.pts_s,
        "anchor": columns.anchor,
        "mean_novelty": columns.mean_novelty,
        "pooled": columns.pooled,
        "radius": columns.radius,
    }


def unforeseen(uri: str, error: BaseException, *, stage: str) -> MediaError:
    """An error that nobody foresaw, as the failure of the video that it happened to; its class groups it."""
    kind = type(error).__name__
    return MediaError(f"{uri}: {kind}: {one_line(str(error))}", stage=stage, kind=kind)


def one_line(text: str) -> str:
    """`text` with runs of white space made single spaces."""
    return " ".join(text.split())


def _source_columns(source: Source) -> dict[str, Any]:
    return {
        "video_id": video_id(source.uri),
        "uri": source.uri,
        "size_bytes": source.size_bytes,
        "etag": source.etag,
    }


def _error_columns(error: MediaError) -> dict[str, Any]:
    return {"error_stage": error.stage, "error_class": error.kind, "error": one_line(str(error))}
