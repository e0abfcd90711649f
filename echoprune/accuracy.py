"""Shares of right answers, by any columns of an answers table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.errors import ConfigError

_Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_COUNTS = ("n", "answered", "failed", "correct")
_OUT = ("overall", *_COUNTS, "accuracy", "low", "high")


def accuracy(table: pa.Table, *, by: Sequence[str]) -> pa.Table:
    """One row per group of the columns `by`, sorted by them with nulls last, then one row over all.

    Columns: those of `by` (null in the row over all), `overall` (true for that row alone), `n` questions that have an
    `answer`, `answered` and `failed` of them, `correct`, `accuracy` = correct / n, and [`low`, `high`] its 95 %
    interval after Wilson. A failed answer and an unclear choice are not right. Rows without `answer` are left
    out; accuracy and interval are null where n = 0.

    `table` has the columns `answer`, `status` and `correct` of an answers table. Raises ConfigError for a column that is
    not there, cannot be grouped by, or is named as one of the result.
    """
    for name in dict.fromkeys(("answer", "status", "correct", *by)):
        if table.column_names.count(name) != 1:
            raise ConfigError(f"no column {name!r} in the answers: choose of {', '.join(table.column_names)}")
    for name in by:
        kind = table.schema.field(name).type
        if name in _OUT:
            raise ConfigError(f"cannot group by {name!r}, a name of the result: rename that column")
        if pa.types.is_nested(kind):
            raise ConfigError(
                f"cannot group by {name!r}, whose values are {kind}: choose a column of plain values"
            )
    by = list(dict.fromkeys(by))
    asked = table.filter(pc.is_valid(table["answer"]))
    failed = pc.equal(asked["status"], "failed")
    right = pc.and_(pc.fill_null(asked["correct"], False), pc.invert(failed))
    counted = pa.table(
        {name: asked[name] for name in by}
        | {
            "n": pa.array([1] * len(asked), pa.int64()),
            "answered": pc.invert(failed).cast(pa.int64()),
            "failed": failed.cast(pa.int64()),
            "correct": right.cast(pa.int64()),
        }
    )
    total = _sums(counted, [])
    groups = _sums(counted, by).sort_by([(name, "ascending") for name in by]) if by else total.slice(1)
    rows = pa.concat_tables([groups, total], promote_options="default")
    rows = rows.append_column("overall", pa.array([False] * (len(rows) - 1) + [True]))
    shares = [
        wilson(correct, n)
        for correct, n in zip(rows["correct"].to_pylist(), rows["n"].to_pylist(), strict=True)
    ]
    for place, name in enumerate(("accuracy", "low", "high")):
        rows = rows.append_column(name, pa.array([share[place] for share in shares], pa.float64()))
    return rows.select([*by, *_OUT])


def _sums(counted: pa.Table, by: list[str]) -> pa.Table:
    if not by:
        return pa.table(
            {name: pa.array([pc.sum(counted[name], min_count=0).as_py()], pa.int64()) for name in _COUNTS}
        )
    summed = counted.group_by(by, use_threads=False).aggregate([(name, "sum") for name in _COUNTS])
    return summed.rename_columns([*by, *_COUNTS])


def wilson(correct: int, n: int) -> tuple[float, float, float] | tuple[None, None, None]:
    """The share correct / n, and the ends of its 95 % score interval after Wilson; three times None where n = 0."""
    if n == 0:
        return (None, None, None)
    share, z2 = correct / n, _Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The ends are 0 and 1 where no or every answer is right; rounding leaves 1e-17 of it.
    low, high = middle - half if correct else 0.0, middle + half if correct < n else 1.0
    return (share, max(0.0, low), min(1.0, high))
