"""Manifests: lists of videos in a file. What a uri stands for is found in sources.py."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from echoprune.errors import ConfigError
from echoprune.open_text import open_text
from echoprune.s3_options import S3Options

MANIFEST_SUFFIXES = frozenset((".txt", ".jsonl", ".csv", ".parquet"))

# 4 TiB: no video is larger, and the sum of a million of them stays below 2^63.
_MAX_SIZE_BYTES = 2**42

_log = logging.getLogger(__name__)


def read_manifest(path: str, *, s3: S3Options | None = None) -> list[tuple[str, int | None, str | None]]:
    """(uri, size_bytes, etag) of each row of a manifest, in its order; size and etag None where not given.

    `path`: of a local file, or an s3:// URL, reached as `s3` says.

    `.jsonl`, `.csv` and `.parquet` have a column `uri` and perhaps `size_bytes` and `etag`; any other file has one
    uri a line, in UTF-8 with or without a mark at the start, and # starts a comment. Rows without a uri are left out
    with a warning. Raises ConfigError for a file that cannot be read, or holds anything else in these columns.
    """
    readers: dict[str, Callable[[BinaryIO], pa.Table]] = {
        ".csv": _read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pq.read_table,
    }
    try:
        with open_text(path, s3=s3) as file:
            table = readers.get(Path(path).suffix.lower(), _read_text)(file)
        uris = _column(table, "uri", pa.string())
        sizes = _column(table, "size_bytes", pa.int64())
        etags = _column(table, "etag", pa.string())
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"cannot read manifest {path}: {reason}; give a text file with one uri a line, or a table with a column uri"
        ) from error
    rows = [row for row in zip(uris, sizes, etags, strict=True) if row[0]]
    if len(rows) < len(uris):
        _log.warning("%d rows of manifest %s have no uri and are left out", len(uris) - len(rows), path)
    for uri, size_bytes, _ in rows:
        if "\0" in uri:
            raise ConfigError(f"manifest {path}: the uri {uri!r} holds a zero byte; no file has such a name")
        if size_bytes is not None and not 0 <= size_bytes <= _MAX_SIZE_BYTES:
            raise ConfigError(
                f"manifest {path}: size_bytes of {uri} is {size_bytes}; give 0 to {_MAX_SIZE_BYTES}, or leave it empty"
            )
    return rows


def _read_csv(file: BinaryIO) -> pa.Table:
    # Left to guess, pyarrow would read the names 007 and 1e3 as numbers.
    texts = pyarrow.csv.ConvertOptions(column_types={"uri": pa.string(), "etag": pa.string()})
    return pyarrow.csv.read_csv(file, convert_options=texts)


def _read_text(file: BinaryIO) -> pa.Table:
    lines = (line.strip() for line in file.read().decode("utf-8-sig").replace("\r", "\n").split("\n"))
    return pa.table({"uri": pa.array([line for line in lines if line and line[0] != "#"], pa.string())})


def _column(table: pa.Table, name: str, kind: pa.DataType) -> list[Any]:
    """The values of one column as `kind`, all None where it may be missing and is; ValueError for anything else."""
    count = table.column_names.count(name)
    if count > 1 or (count == 0 and name == "uri"):
        raise ValueError(f"it has the columns {', '.join(table.column_names)}: it needs one column {name}")
    if count == 0:
        return [None] * len(table)
    column = table[name]
    found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    number = pa.types.is_integer(found) or pa.types.is_floating(found)
    if not (pa.types.is_null(found) or (text if kind == pa.string() else number)):
        raise ValueError(
            f"its column {name} holds {found}, not {'text' if kind == pa.string() else 'numbers'}"
        )
    values: list[Any] = column.cast(kind).to_pylist()
    return values
