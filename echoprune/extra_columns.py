"""One Arrow type for each further column of a question file, found from all its values.

For files that have no types of their own, CSV and JSON. What the columns mean is not looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,18})", re.ASCII)  # 007 is a name, not a number
_NUMBER = re.compile(
    r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?inf", re.ASCII | re.IGNORECASE
)
_TRUTH = {"true": True, "false": False}
_EXACT_FLOAT = 1 << 53  # from here on not every int is a float64


@dataclass(frozen=True)
class ExtraColumn:
    """A column's type, and whether its values become JSON text because no plain type holds them all."""

    type: pa.DataType
    as_json: bool = False


def text_columns(rows: Iterable[Mapping[str, object]]) -> dict[str, ExtraColumn]:
    """Columns of rows whose values are texts, in the order in which they appear: bool, int64, float64 or string."""
    return _columns(rows, _text_kind, as_json=False)


def json_columns(rows: Iterable[Mapping[str, object]]) -> dict[str, ExtraColumn]:
    """Columns of rows of JSON values without None, in the order in which they appear.

    bool, int64, float64 or string where all values of a column are of that kind, float64 for int and float together
    where that is exact; anything else is a string column of JSON text. NaN counts as missing, except in float64.
    """
    return _columns(rows, _json_kind, as_json=True)


def fitted(row: Mapping[str, object], columns: Mapping[str, ExtraColumn]) -> dict[str, object]:
    """The values of a row as the types of their columns want them; missing ones are left out."""
    found = {name: _fit(value, columns[name]) for name, value in row.items()}
    return {name: value for name, value in found.items() if value is not None}


def writable(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON may hold and UTF-8 may not, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _columns(
    rows: Iterable[Mapping[str, object]], kind_of: Callable[[object], str], *, as_json: bool
) -> dict[str, ExtraColumn]:
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(kind_of(value))
    return {name: _column(found, as_json=as_json) for name, found in kinds.items()}


def _column(kinds: set[str], *, as_json: bool) -> ExtraColumn:
    known = kinds - {"nan"}
    if known == {"bool"}:
        return ExtraColumn(pa.bool_())
    if known and known <= {"int", "long"}:
        return ExtraColumn(pa.int64())
    if known <= {"int", "float"}:
        return ExtraColumn(pa.float64())
    return ExtraColumn(pa.string(), as_json=as_json and known != {"string"})


def _text_kind(value: object) -> str:
    text = str(value)
    if text.lower() in _TRUTH:
        return "bool"
    if _WHOLE.fullmatch(text):
        return _int_kind(int(text))
    if text.lower() == "nan":
        return "nan"
    return "float" if _NUMBER.fullmatch(text) else "string"


def _json_kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _int_kind(value)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else "float"
    return "string" if isinstance(value, str) else "nested"


def _int_kind(value: int) -> str:
    if abs(value) <= _EXACT_FLOAT:
        return "int"
    return "long" if -(1 << 63) <= value < 1 << 63 else "huge"


def _fit(value: object, column: ExtraColumn) -> object:
    if pa.types.is_float64(column.type):
        return float(value)  # type: ignore[arg-type]  # a number, or the text of one
    if isinstance(value, float) and math.isnan(value):
        return None
    if column.as_json:
        value = json.dumps(_without_nan(value), ensure_ascii=False)
    if not isinstance(value, str):
        return value
    if pa.types.is_string(column.type):
        return writable(value)
    truth = _TRUTH.get(value.lower())
    # Left are texts of bool and int columns, "nan" among them.
    return truth if truth is not None or value.lower() == "nan" else int(value)


def _without_nan(value: object) -> object:
    """A JSON value with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value
