from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from echoprune.questions import question_key
from tests.question_files import GOOD, from_csv, from_lines, from_parquet, written

NESTED = pa.string()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 2, None], pa.int64(), [1, 2, None]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([True, None, False], pa.bool_(), [True, None, False]),
        ([True, 1], NESTED, ["true", "1"]),
        (["a", "b"], pa.string(), ["a", "b"]),
        (["a", 1], NESTED, ['"a"', "1"]),
        ([[1, math.nan], {"ü": None}], NESTED, ["[1, null]", '{"ü": null}']),
        ([2**60, 1], pa.int64(), [2**60, 1]),
        ([2**60, 1.5], NESTED, [str(2**60), "1.5"]),
        ([2**63, 1], NESTED, [str(2**63), "1"]),
        ([math.nan, "a"], pa.string(), [None, "a"]),
        ([math.nan, 3], pa.int64(), [None, 3]),
        ([math.nan, True], pa.bool_(), [None, True]),
        ([math.inf, 3.0], pa.float64(), [math.inf, 3.0]),
        (["\ud800x", "nul\0"], pa.string(), ["\\ud800x", "nul\0"]),
        ([["\udfff"], 1], NESTED, ['["\\udfff"]', "1"]),
    ],
)
def test_types_of_json_columns(
    tmp_path: Path, values: list[Any], kind: pa.DataType, expected: list[Any]
) -> None:
    rows = [GOOD | {"question_id": i, "x": value} for i, value in enumerate(values)]
    file = from_lines(tmp_path, *rows)
    assert file.extra == {"x": kind}
    assert written(tmp_path, file)["x"].to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "-2", ""], pa.int64(), [1, -2, None]),
        (["1", "2.5", "1e3", "nan"], pa.float64(), [1.0, 2.5, 1000.0, math.nan]),
        (["True", "false"], pa.bool_(), [True, False]),
        (["true", "1"], pa.string(), ["true", "1"]),
        (["007", "8"], pa.string(), ["007", "8"]),
        (["1_0", "2"], pa.string(), ["1_0", "2"]),
        (["1", "nan"], pa.int64(), [1, None]),
        (["x", "nan", "1"], pa.string(), ["x", "nan", "1"]),
        (["9" * 19, "1"], pa.string(), ["9" * 19, "1"]),
        (["9" * 18, "1"], pa.int64(), [int("9" * 18), 1]),
        (["", ""], pa.string(), [None, None]),
    ],
)
def test_types_of_csv_columns(
    tmp_path: Path, values: list[str], kind: pa.DataType, expected: list[Any]
) -> None:
    lines = "".join(f"{i},v,q,{value}\n" for i, value in enumerate(values))
    file = from_csv(tmp_path, f"question_id,video,question,x\n{lines}")
    assert file.extra == {"x": kind}
    assert repr(written(tmp_path, file)["x"].to_pylist()) == repr(expected)


PARQUET_COLUMNS = {
    "int8": pa.array([1, None], pa.int8()),
    "float16": pa.array([1.5, None], pa.float32()).cast(pa.float16()),
    "float32": pa.array([0.1, math.nan], pa.float32()),
    "large": pa.array(["a", None], pa.large_string()),
    "bytes": pa.array([b"\xff\0", None]),
    "decimal": pa.array([Decimal("1.50"), None]),
    "day": pa.array([date(2026, 5, 11), None]),
    "second": pa.array([datetime(2026, 5, 11, tzinfo=UTC), None], pa.timestamp("ms", "UTC")),
    "nano": pa.array([1_770_000_000_123_456_789, None], pa.timestamp("ns")),
    "span": pa.array([1_000_000_001, None], pa.duration("ns")),
    "list": pa.array([[1, 2], None], pa.list_(pa.int16())),
    "struct": pa.array([{"a": [1], "b": "x"}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
}


def test_parquet_types_are_kept(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([GOOD, GOOD | {"question_id": "q2"}])
    for name, column in PARQUET_COLUMNS.items():
        table = table.append_column(name, column)
    table = table.append_column("codes", pa.array(["x", "y"]).dictionary_encode())
    table = table.append_column("nothing", pa.nulls(2))
    file = from_parquet(tmp_path, table)
    types = {name: column.type for name, column in PARQUET_COLUMNS.items()}
    assert file.extra == types | {"codes": pa.string(), "nothing": pa.string()}
    found = written(tmp_path, file)
    for name, column in PARQUET_COLUMNS.items():
        exact = pa.int64() if name in ("nano", "span") else column.type
        assert repr(found[name].cast(exact).to_pylist()) == repr(column.cast(exact).to_pylist())
    assert found["codes"].to_pylist() == ["x", "y"] and found["nothing"].to_pylist() == [None, None]
    for question in file.questions:
        assert len(question_key(question)) == 16
