"""Answers and tokens in forms that other tools read: sample logs of evaluation suites, Parquet, numpy and Lance.

What is exported appears under its name only when it is whole, and replaces nothing. Memory: one row group.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.answer_schema import OWN_COLUMNS
from echoprune.answer_store import AnswerStore
from echoprune.dtype import codec
from echoprune.errors import ConfigError
from echoprune.pool import unpool
from echoprune.schema import table_schema
from echoprune.storage import checked_name, store_errors
from echoprune.store import TokenStore
from echoprune.store_files import column_values

FORMATS = ("parquet", "npz", "lance")
# What a question was; the rest of a row is what became of it.
_DOC = (
    "question_id",
    "video",
    "video_id",
    "uri",
    "kind",
    "question",
    "options",
    "answer",
    "start_s",
    "end_s",
)
_RESULT = (
    "status",
    "error_class",
    "error",
    "finish",
    "evidence",
    "original_tokens",
    "stored_tokens",
    "visual_tokens",
    "timestamp_tokens",
    "prompt_tokens",
    "new_tokens",
    "r_needed",
    "certified",
    "template",
    "template_hash",
    "model_fingerprint",
    "store_digest",
    "settings_digest",
)
_CELL_SCALARS = ("t", "time_s", "end_s", "pts_s", "anchor", "kept", "mean_novelty", "radius")


def export_answers(answers: AnswerStore, path: str | os.PathLike[str]) -> int:
    """How many answers were written to `path`, one JSON object a line, in the shape of lmms-eval's sample logs.

    Guaranteed, with the names and nesting that lmms-eval writes: `doc_id` (from 0, in the order of the lines: shard by
    shard), `doc` (the question's columns, those of its file among them), `target` (text, "" if none is known), `input`
    (the question), `resps` ([[what the model said]]), `filtered_resps` ([the letter that was parsed, else what was
    said]), `doc_hash`, `target_hash` (sha256), and the metric `accuracy` (1.0 or 0.0; left out where no answer is
    known). Under `echoprune`: status, errors, evidence, token counts, provenance. A failed question has resps [[""]].
    Positions of kept tokens are left out. lmms-eval's own settings are not known here, so no other metric and
    no `prompt_hash`.

    Raises ConfigError where `path` is there already, StoreError where it cannot be written or answers are damaged.
    """
    count = 0
    with _appearing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for batch in answers.batches(_without_kept(answers)):
            for row in batch.to_pylist():
                file.write(json.dumps(_sample(count, row), ensure_ascii=False, default=_json) + "\n")
                count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def export_tokens(store: TokenStore, path: str | os.PathLike[str], *, format: str = "parquet") -> int:
    """How many tokens were written to the new folder `path`, vectors as float32 values.

    The columns are the store's; vectors, bytes there, are lists of D float32 and int8 scales are multiplied in.
    "parquet": tokens.parquet, cells.parquet and videos.parquet. "lance": the same three as Lance datasets;
    needs the package pylance. "npz": `<video_id>.npz` for each video that did not fail, with the columns of its
    tokens, of its cells under `cell_<name>`, `uri` and `grid_thw`; readable without pickle.

    Raises ConfigError for another format, without pylance, and where `path` is there already; StoreError where it
    cannot be written or the store is damaged.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} is not known: use {', '.join(FORMATS)}")
    lance = _lance() if format == "lance" else None
    with _appearing(path) as folder:
        folder.mkdir()
        if format == "npz":
            return sum(_write_npz(store, row, folder) for row in store.videos().to_pylist())
        count = 0
        for table in ("tokens", "cells"):
            schema = _float_schema(table, store)
            batches = _Counted(_float_batches(store, table, schema))
            if lance is not None:
                reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
                lance.write_dataset(reader, folder / f"{table}.lance")
            else:
                with pq.ParquetWriter(folder / f"{table}.parquet", schema, compression="zstd") as writer:
                    for batch in batches:
                        writer.write_batch(batch)
            count = count or batches.rows
        videos = store.videos().replace_schema_metadata(None)
        if lance is not None:
            lance.write_dataset(videos, folder / "videos.lance")
        else:
            pq.write_table(videos, folder / "videos.parquet", compression="zstd")
        return count


# Answers


def _without_kept(answers: AnswerStore) -> list[str]:
    names: dict[str, None] = dict.fromkeys(OWN_COLUMNS)
    for file in answers.files:
        with answers.storage.open_input(file.name) as source:
            names |= dict.fromkeys(pq.ParquetFile(source).schema_arrow.names)
    return [name for name in names if name != "kept"]


def _sample(doc_id: int, row: Mapping[str, Any]) -> dict[str, Any]:
    extra = {name: value for name, value in row.items() if name not in OWN_COLUMNS}
    doc = {name: row[name] for name in _DOC} | extra
    target = row["answer"] or ""
    said = row["raw_text"] or ""
    sample = {
        "doc_id": doc_id,
        "doc": doc,
        "target": target,
        "input": row["question"],
        "resps": [[said]],
        "filtered_resps": [row["parsed_choice"] or said],
        "doc_hash": _sha256(json.dumps(doc, indent=2, default=_json, ensure_ascii=False)),
        "target_hash": _sha256(target),
        "echoprune": {name: row[name] for name in _RESULT},
    }
    return sample if row["correct"] is None else sample | {"accuracy": float(row["correct"])}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: object) -> object:
    """Columns of a question file may be of kinds that JSON has not."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


# Tokens


def _float_schema(table: str, store: TokenStore) -> pa.Schema:
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), store.settings.dim)
    fields = [
        pa.field(
            field.name, vector if pa.types.is_fixed_size_binary(field.type) else field.type, nullable=False
        )
        for field in table_schema(table, store.settings)
        if not field.name.endswith("scale")
    ]
    return pa.schema(fields)


def _float_batches(store: TokenStore, table: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    stored = table_schema(table, store.settings).names
    for shard_id in store.receipts:
        for _, group in store.tables.read_groups(store.tables.row_groups(table, shard_id), stored):
            # In slices: float32 is up to four times what is stored.
            for start in range(0, len(group), 4096):
                part = group.slice(start, 4096)
                columns = []
                for field in schema:
                    if pa.types.is_fixed_size_list(field.type):
                        values = pa.array(_vectors(store, part, field.name).reshape(-1))
                        columns.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
                    else:
                        columns.append(part[field.name].combine_chunks())
                yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _vectors(store: TokenStore, table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    """(n, D) float32 of a column of vectors."""
    raw = column_values(table[name])
    if name == "pooled":
        return np.asarray(unpool(raw).float().numpy())
    scale = "scale" if name == "emb" else f"{name}_scale"
    scales = column_values(table[scale]).copy() if scale in table.column_names else None
    return np.asarray(codec(store.settings.dtype).decode(raw.copy(), scales).float().numpy())


class _Counted:
    """Batches as they pass, and how many rows they had."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.rows = 0
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def _lance() -> Any:
    try:
        return importlib.import_module("lance")
    except ImportError as error:
        raise ConfigError(
            f"format lance needs the package pylance ({error}): pip install pylance, or use parquet"
        ) from error


def _write_npz(store: TokenStore, video: Mapping[str, Any], folder: Path) -> int:
    """The number of tokens of one video, written to its file column by column; 0 and no file for a failed one."""
    if video["status"] == "failed":
        return 0
    path = folder / f"{checked_name(video['video_id'])}.npz"
    kept, cells, dim = video["kept"], video["cells"], store.settings.dim
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _entry(archive, "uri", iter([np.array(video["uri"])]), np.array(video["uri"]).dtype, ())
        grid = np.array([cells, video["grid_h"], video["grid_w"]])
        _entry(archive, "grid_thw", iter([grid]), grid.dtype, (3,))
        for table, prefix, rows in (("tokens", "", kept), ("cells", "cell_", cells)):
            for field in _float_schema(table, store):
                if field.name == "video_id":
                    continue
                vector = pa.types.is_fixed_size_list(field.type)
                dtype = np.dtype(np.float32 if vector else field.type.to_pandas_dtype())
                shape = (rows, dim) if vector else (rows,)
                pieces = _pieces(store, table, video["video_id"], field.name, vector=vector)
                _entry(archive, prefix + field.name, pieces, dtype, shape)
    return int(kept)


def _pieces(
    store: TokenStore, table: str, video_id: str, name: str, *, vector: bool
) -> Iterator[npt.NDArray[Any]]:
    columns = table_schema(table, store.settings).names
    scale = "scale" if name == "emb" else f"{name}_scale"
    wanted = [name, scale] if vector and scale in columns else [name]
    for piece in store.video_rows(table, video_id, wanted):
        for start in range(0, len(piece), 4096):
            part = piece.slice(start, 4096)
            yield _vectors(store, part, name) if vector else column_values(part[name])


def _entry(
    archive: zipfile.ZipFile,
    name: str,
    pieces: Iterator[npt.NDArray[Any]],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> None:
    """One array of an .npz, written as its pieces come; numpy itself would want it whole."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # A fixed date: equal stores give equal files.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype=dtype).tobytes())


@contextmanager
def _appearing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to it at the end, removed after an error."""
    target = Path(path).expanduser().absolute()
    if target.exists():
        raise ConfigError(f"{target} is there already: remove it, or choose another --out")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    with store_errors(f"write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.rename(target)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.unlink(missing_ok=True)
