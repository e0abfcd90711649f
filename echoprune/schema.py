"""What the files of a store look like: the settings in store.json and the columns of each table.

Everything here is a declaration; nothing reads or writes files. docs/store.md explains every column.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa

from echoprune.errors import StoreError, StoreMismatchError

SCHEMA_VERSION = 1
SETTINGS_FILE = "store.json"
PLAIN_TOWER = "plain"
# What an index ranks tokens by when it drops some: -c - e, or (1 - c)(2 - e); see change.py.
NOVELTY, CHANGE = "novelty", "change"
RANKS = (CHANGE, NOVELTY)
# Stores that were made before there was another value do not name the field: their digest is in all of their files.
_UNNAMED = {"tower": PLAIN_TOWER, "compression": "zstd", "rank_by": NOVELTY}
METADATA_KEY = b"echoprune"
TABLES = ("tokens", "cells", "failures", "videos")
STATUSES = ("ok", "partial", "failed")
VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
COMPRESSIONS = ("zstd", "none")


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """The contents of store.json: all that decides which tokens a video gives, and how they are written.

    `fps` and `keep` are kept as text ("30000/1001", "0.25", "64/cell", "all"), so that they compare exactly.
    `window` None is the whole frame. `max_pixels`: of one frame; None is the checkpoint's own limit.
    `compute_dtype` is what the encoder runs in, `dtype` what is stored. `tower`: the library's own (plain), or the same
    weights by other steps (fast), whose tokens differ by rounding. `compression`: of columns of vectors. `rank_by`: one of
    RANKS, what `keep` takes most of. store.json names these three where they are not plain, zstd and novelty.
    """

    schema_version: int = SCHEMA_VERSION
    family: str
    model_fingerprint: str
    dim: int
    deepstack_layers: int = 0
    compute_dtype: str
    fps: str | None
    max_frames: int | None
    frames: int | None
    max_pixels: int | None
    decoder: str
    cell_frames: int
    segment_cells: int
    keep: str
    anchor_every_s: float
    temperature: float
    window: int | None
    dtype: str
    tower: str = PLAIN_TOWER
    compression: str = "zstd"
    rank_by: str = NOVELTY

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(StoreSettings).items():
            value = getattr(self, name)
            if kind is float and type(value) is int:
                object.__setattr__(self, name, float(value))  # 10 and 10.0 must give one file and one hash
            elif isinstance(value, bool) or not isinstance(value, kind):
                raise ValueError(f"{name} must be {_kind_name(kind)}, got {value!r}")
        if self.dtype not in VALUE_BYTES:
            raise ValueError(f"dtype must be one of {', '.join(VALUE_BYTES)}, got {self.dtype!r}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(
                f"compression must be one of {', '.join(COMPRESSIONS)}, got {self.compression!r}"
            )
        if self.rank_by not in RANKS:
            raise ValueError(f"rank_by must be one of {', '.join(RANKS)}, got {self.rank_by!r}")
        if self.dim < 1 or self.deepstack_layers < 0 or self.cell_frames < 1 or self.segment_cells < 1:
            raise ValueError("dim, cell_frames, segment_cells must be >= 1 and deepstack_layers >= 0")

    @property
    def vector_bytes(self) -> int:
        """Bytes of one stored vector: dim values of `dtype`."""
        return self.dim * VALUE_BYTES[self.dtype]

    @property
    def digest(self) -> str:
        """16 hex digits that change with any setting; every table file carries them."""
        canonical = json.dumps(self._named(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of store.json."""
        return json.dumps(self._named(), indent=2) + "\n"

    def _named(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _UNNAMED or value != _UNNAMED[name]
        }

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = SETTINGS_FILE) -> StoreSettings:
        """The settings in a store.json; StoreError for another version, or an unknown, missing or odd field."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise StoreError(
                f"{where} is not JSON ({error}): the store is damaged, use another --store"
            ) from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{where} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: "
                "use the version of echoprune that made it, or another --store"
            )
        known = {field.name for field in fields(cls)}
        for problem, names in (
            ("lacks", known - set(_UNNAMED) - set(values)),
            ("has unknown", set(values) - known),
        ):
            if names:
                raise StoreError(
                    f"{where} {problem} field {', '.join(sorted(names))}: use the version of echoprune that "
                    "made it, or another --store"
                )
        try:
            return cls(**values)
        except ValueError as error:
            raise StoreError(f"{where} is damaged: {error}; restore it, or use another --store") from error

    def require_same(self, other: StoreSettings) -> None:
        """Raise StoreMismatchError for the first field in which `other`, asked for now, differs from this store."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                raise StoreMismatchError(
                    f"the store was made with {field.name} = {ours!r}, this run has {theirs!r}: "
                    f"{_cure(field.name, ours)}, or write to another --store"
                )

    def require_model(self, fingerprint: str, model: str) -> None:
        """Raise StoreMismatchError unless `model`, named in the message, has the fingerprint of this store's tokens."""
        if fingerprint != self.model_fingerprint:
            raise StoreMismatchError(
                f"the store was made with a {self.family} model of fingerprint {self.model_fingerprint[:16]}, {model} has "
                f"{fingerprint[:16]}: give the --model that the store was made with"
            )


def _kind_name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))


def _cure(name: str, value: object) -> str:
    if name in ("family", "model_fingerprint", "dim", "deepstack_layers", "cell_frames"):
        return "give the --model it was made with"
    if name == "schema_version":
        return "use the version of echoprune that made it"
    option = "--" + name.removesuffix("_s").replace("_", "-")
    return f"leave out {option}" if value is None else f"give {option} {value}"


def token_rows_dtype(settings: StoreSettings) -> np.dtype[np.void]:
    """The numpy dtype of one token before it has a place: what is spilled to disk and given to a ShardWriter.

    Fields `emb` (the vector's bytes), `correspondence`, `echo` (float32), for int8 `scale` (float32), then
    `deepstack_<i>` (bytes) and for int8 `deepstack_<i>_scale`. Packed, little-endian.
    """
    vector = f"V{settings.vector_bytes}"
    spec = [("emb", vector), ("correspondence", "<f4"), ("echo", "<f4")]
    if settings.dtype == "int8":
        spec.append(("scale", "<f4"))
    for layer in range(settings.deepstack_layers):
        spec.append((f"deepstack_{layer}", vector))
        if settings.dtype == "int8":
            spec.append((f"deepstack_{layer}_scale", "<f4"))
    return np.dtype(spec)


def table_schema(table: str, settings: StoreSettings) -> pa.Schema:
    """The pyarrow schema of one of TABLES, with the schema version and the settings' digest as metadata."""
    columns = {"videos": _videos, "cells": _cells, "tokens": _tokens, "failures": _failures}[table]
    note = json.dumps({"schema_version": SCHEMA_VERSION, "table": table, "settings": settings.digest})
    return pa.schema(columns(settings), metadata={METADATA_KEY: note.encode()})


def plan_schema() -> pa.Schema:
    """The pyarrow schema of plan/part-*.parquet; the plan does not depend on the settings."""
    note = json.dumps({"schema_version": SCHEMA_VERSION, "table": "plan"})
    columns = [
        _required("shard_id", pa.string()),
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
    ]
    return pa.schema(columns, metadata={METADATA_KEY: note.encode()})


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _videos(settings: StoreSettings) -> list[pa.Field]:
    # A video that failed has no more than its first columns and its error: the rest may be null.
    return [
        _required("video_id", pa.string()),
        pa.field("content_id", pa.string()),
        _required("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("pix_fmt", pa.string()),
        pa.field("stream_index", pa.int32()),
        pa.field("rotation", pa.int32()),
        pa.field("vfr", pa.bool_()),
        pa.field("start_pts_s", pa.float64()),
        pa.field("duration_s", pa.float64()),
        pa.field("covered_s", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("frame_h", pa.int32()),
        pa.field("frame_w", pa.int32()),
        pa.field("decoder", pa.string()),
        _required("cells", pa.int32()),
        pa.field("grid_h", pa.int32()),
        pa.field("grid_w", pa.int32()),
        _required("tokens", pa.int64()),
        _required("kept", pa.int64()),
        _required("anchors", pa.int32()),
        _required("token_row", pa.int64()),
        pa.field("highest_dropped_novelty", pa.float32()),
        _required("status", pa.string()),
        pa.field("error_stage", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("error", pa.string()),
    ]


def _cells(settings: StoreSettings) -> list[pa.Field]:
    return [
        _required("video_id", pa.string()),
        _required("t", pa.int32()),
        _required("time_s", pa.float64()),
        _required("end_s", pa.float64()),
        _required("pts_s", pa.float64()),
        _required("anchor", pa.bool_()),
        _required("kept", pa.int32()),
        _required("mean_novelty", pa.float32()),
        _required("pooled", pa.binary(2 * settings.dim)),
        _required("radius", pa.float32()),
    ]


def _tokens(settings: StoreSettings) -> list[pa.Field]:
    place = [
        _required("video_id", pa.string()),
        _required("t", pa.int32()),
        _required("h", pa.int16()),
        _required("w", pa.int16()),
    ]
    rows = token_rows_dtype(settings)
    spilled = {name: rows[name] for name in rows.names or ()}
    # Scalars first: a reader that wants only them reads one stretch of the file.
    order = sorted(spilled, key=lambda name: spilled[name].kind == "V")
    kinds = {name: pa.binary(d.itemsize) if d.kind == "V" else pa.float32() for name, d in spilled.items()}
    return place + [_required(name, kinds[name]) for name in order]


def _failures(settings: StoreSettings) -> list[pa.Field]:
    return [
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        _required("stage", pa.string()),
        _required("class", pa.string()),
        _required("message", pa.string()),
        _required("attempt", pa.int32()),
        _required("host", pa.string()),
        _required("time", pa.timestamp("us", tz="UTC")),
        pa.field("decoder", pa.string()),
    ]
