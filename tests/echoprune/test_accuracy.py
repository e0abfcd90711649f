from __future__ import annotations

import math

import pyarrow as pa
import pytest

from echoprune.accuracy import accuracy
from echoprune.answer_schema import answers_table
from echoprune.errors import ConfigError
from echoprune.question import Answer, Question

PROVENANCE = {"model_fingerprint": "m", "store_digest": "s", "settings_digest": "t"}


def answer(
    kind: str | None, correct: bool | None, *, status: str = "ok", truth: str | None = "A", level: int = 1
) -> Answer:
    question = Question(
        question_id="1",
        video="v",
        question="?",
        options=("x", "y"),
        answer=truth,
        kind=kind,
        extra={"level": level},
    )
    error = "no_video" if status == "failed" else ""
    return Answer(question=question, status=status, error_class=error, correct=correct)


def table(*answers: Answer) -> pa.Table:
    return answers_table(answers, extra={"level": pa.int64()}, provenance=PROVENANCE)


MIXED = table(
    answer("where", True),
    answer("where", False, level=2),
    answer("where", None, status="failed"),
    answer("who", True, level=2),
    answer(None, True),
    answer("who", None, truth=None),
    answer("caption", None, truth=None, status="empty"),
)


def test_groups_and_the_row_over_all() -> None:
    rows = accuracy(MIXED, by=["kind"]).to_pylist()
    shown = [(r["kind"], r["overall"], r["n"], r["answered"], r["failed"], r["correct"]) for r in rows]
    assert shown == [
        ("where", False, 3, 2, 1, 1),
        ("who", False, 1, 1, 0, 1),
        (None, False, 1, 1, 0, 1),
        (None, True, 5, 4, 1, 3),
    ]
    assert [r["accuracy"] for r in rows] == [1 / 3, 1.0, 1.0, 3 / 5]


def test_several_columns_extra_ones_among_them() -> None:
    rows = accuracy(MIXED, by=["level", "kind", "level"]).to_pylist()
    assert [(r["level"], r["kind"], r["n"], r["correct"]) for r in rows] == [
        (1, "where", 2, 1),
        (1, None, 1, 1),
        (2, "where", 1, 0),
        (2, "who", 1, 1),
        (None, None, 5, 3),
    ]


def test_without_columns_only_the_row_over_all() -> None:
    assert accuracy(MIXED, by=[]).column_names == [
        "overall", "n", "answered", "failed", "correct", "accuracy", "low", "high",
    ]  # fmt: skip
    assert [(r["overall"], r["n"]) for r in accuracy(MIXED, by=[]).to_pylist()] == [(True, 5)]


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (3, 10), (81, 263), (500, 500), (0, 40)])
def test_the_interval_is_wilsons(correct: int, n: int) -> None:
    rows = accuracy(table(*(answer("k", i < correct) for i in range(n))), by=[]).to_pylist()
    low, high = rows[0]["low"], rows[0]["high"]
    # Its definition: the shares p whose own normal interval just reaches the observed share.
    for end in (low, high):
        if 0 < end < 1:
            assert math.isclose(
                abs(correct / n - end), 1.959963984540054 * math.sqrt(end * (1 - end) / n), rel_tol=1e-9
            )
    assert low <= correct / n <= high and (low == 0) == (correct == 0) and (high == 1) == (correct == n)


def test_an_interval_known_from_the_literature() -> None:
    # 81 of 263: Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    row = accuracy(table(*(answer("k", i < 81) for i in range(263))), by=[]).to_pylist()[0]
    assert (round(row["low"], 4), round(row["high"], 4)) == (0.2553, 0.3662)


def test_nothing_to_score() -> None:
    for rows in (table(), table(answer("k", None, truth=None))):
        found = accuracy(rows, by=["kind", "level"]).to_pylist()
        assert [(r["n"], r["correct"], r["accuracy"], r["low"], r["overall"]) for r in found] == [
            (0, 0, None, None, True)
        ]


def test_a_failed_row_is_never_right() -> None:
    odd = MIXED.set_column(MIXED.column_names.index("correct"), "correct", pa.array([True] * len(MIXED)))
    assert accuracy(odd, by=[]).to_pylist()[0]["correct"] == 4


@pytest.mark.parametrize("by", [["colour"], ["options"], ["kind", "evidence"]])
def test_columns_that_cannot_be_grouped_by(by: list[str]) -> None:
    with pytest.raises(ConfigError, match=by[-1]):
        accuracy(MIXED, by=by)


def test_a_column_named_as_the_results_is_refused() -> None:
    with pytest.raises(ConfigError, match="rename"):
        accuracy(MIXED.append_column("low", pa.array(range(len(MIXED)))), by=["low"])
    with pytest.raises(ConfigError, match="no column 'correct'"):
        accuracy(MIXED.drop_columns(["correct"]), by=[])
