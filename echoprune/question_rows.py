"""The rows of a question file, one dict per row, whatever its format: JSON lines, CSV or Parquet.

What the values mean is questions.py's; a row that cannot be read at all says why. Files that cannot are a ConfigError.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from echoprune.errors import ConfigError
from echoprune.open_text import open_text

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".parquet")
_BATCH_ROWS = 16384
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class QuestionRow:
    """One row: its `number` (JSON: the line; otherwise the row below the header; from 1) and its non-null `values`.

    `error_class`, `error`: why it is no row, "" if it is one.
    """

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    error_class: str = ""
    error: str = ""


@dataclass(frozen=True)
class RowFile:
    """A question file being read. `columns`: its columns, None for JSON. `types`: theirs, None where it has none."""

    rows: Iterator[QuestionRow]
    columns: Sequence[str] | None
    types: dict[str, pa.DataType] | None = None


def open_rows(path: str) -> RowFile:
    """The rows of the file. Raises ConfigError if it cannot be read; its rows may do so while they are read."""
    openers: dict[str, Callable[[str], RowFile]] = {".csv": _open_csv, ".parquet": _open_parquet}
    suffix = Path(path).suffix.lower()
    opener = openers.get(suffix, _open_json if suffix in JSON_SUFFIXES else None)
    if opener is None:
        raise ConfigError(
            f"question file {path} ends in {suffix or 'nothing'!r}: give one of {', '.join(SUFFIXES)}"
        )
    try:
        opened = opener(path)
    except (OSError, csv.Error, UnicodeDecodeError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return RowFile(_guarded(path, opened.rows), opened.columns, opened.types)


def _guarded(path: str, rows: Iterator[QuestionRow]) -> Iterator[QuestionRow]:
    try:
        yield from rows
    except (OSError, csv.Error, ValueError, OverflowError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ConfigError:
    if isinstance(error, UnicodeDecodeError):
        cure = "save it as UTF-8"
    elif isinstance(error, OSError) and error.strerror:
        cure = "check the path"
        return ConfigError(f"cannot read questions {path}: {error.strerror}; {cure}")
    else:
        cure = "write it anew, as JSON lines, CSV or Parquet"
    return ConfigError(f"cannot read questions {path}: {' '.join(str(error).split())}; {cure}")


def _open_json(path: str) -> RowFile:
    with open_text(path) as file:
        start = file.read(64).removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        raise ConfigError(
            f"questions {path} begin with a JSON list: write one object a line instead, for example with jq -c '.[]'"
        )
    return RowFile(_json_rows(path), None)


def _json_rows(path: str) -> Iterator[QuestionRow]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            # Decoded apart from parsing: bytes that are not UTF-8 mean another encoding of the whole file.
            text = (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8").strip()
            if text:
                yield _json_row(number, text)


def _json_row(number: int, text: str) -> QuestionRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
        problem = f"{text[:60]!r} is no JSON ({reason}); write one object a line"
        return QuestionRow(number, error_class="bad_json", error=problem)
    if not isinstance(value, dict):
        return QuestionRow(
            number, error_class="bad_json", error=f"{text[:60]!r} is no JSON object; write one a line"
        )
    return QuestionRow(number, {name: item for name, item in value.items() if item is not None})


def _open_csv(path: str) -> RowFile:
    with io.TextIOWrapper(open_text(path), encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, strict=True), [])
    columns = [name.strip() for name in header]
    return RowFile(_csv_rows(path, columns), columns)


def _csv_rows(path: str, columns: Sequence[str]) -> Iterator[QuestionRow]:
    with io.TextIOWrapper(open_text(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        next(reader, None)
        number = 0
        for fields in reader:
            if not any(text.strip() for text in fields):
                continue
            number += 1
            values = {name: text for name, text in zip(columns, fields, strict=False) if text.strip()}
            if len(fields) == len(columns):
                yield QuestionRow(number, values)
            else:
                problem = f"{len(fields)} fields under {len(columns)} columns; quote fields that hold a comma"
                yield QuestionRow(number, values, "bad_csv", problem)


def _open_parquet(path: str) -> RowFile:
    with open_text(path) as raw, pq.ParquetFile(raw) as file:
        schema = file.schema_arrow
    return RowFile(
        _parquet_rows(path), schema.names, {field.name: _plain_type(field.type) for field in schema}
    )


def _parquet_rows(path: str) -> Iterator[QuestionRow]:
    number = 0
    with open_text(path) as raw, pq.ParquetFile(raw) as file:
        for batch in file.iter_batches(_BATCH_ROWS):
            columns = [_values(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                number += 1
                named = zip(batch.schema.names, row, strict=True)
                yield QuestionRow(number, {name: value for name, value in named if value is not None})


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is passed on: its own, without dictionary or extension; string for null."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_null(kind) else kind


def _values(column: pa.Array) -> list[Any]:
    """Python values of which pyarrow can make the column again."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if (
        pa.types.is_timestamp(kind) or pa.types.is_time64(kind) or pa.types.is_duration(kind)
    ) and kind.unit == "ns":
        # Python's own types end at microseconds; pyarrow takes the bare number back.
        column = pc.cast(column, pa.int64())
    values: list[Any] = column.to_pylist()
    return values
