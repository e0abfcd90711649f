from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from echoprune.errors import ConfigError
from echoprune.question import Question
from echoprune.questions import question_key, read_questions
from tests.question_files import FULL, GOOD, from_csv, from_lines, from_parquet, written

EXPECTED = Question(
    question_id="q1",
    video="clip.mp4",
    question="What colour is it?",
    options=("red", "blue, or green"),
    answer="B",
    kind="colour",
    start_s=1.5,
    end_s=9.0,
    prompt="open",
    extra={"level": 3, "source": 'ü\n"x"'},
)


@pytest.mark.parametrize("name", ["q.jsonl", "q.ndjson", "q.JSON"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    file = from_lines(tmp_path, "", FULL, "   ", GOOD | {"question_id": 2, "level": None}, name=name)
    assert file.questions == (
        EXPECTED,
        Question(question_id="2", video="clip.mp4", question="What colour is it?"),
    )
    assert file.extra == {"level": pa.int64(), "source": pa.string()}


@pytest.mark.parametrize("options", ['"[""red"", ""blue, or green""]"', '"red | blue, or green"'])
def test_csv(tmp_path: Path, options: str) -> None:
    file = from_csv(
        tmp_path,
        "\ufeffquestion_id,video,question,options,answer,kind,start_s,end_s,prompt,level,source,blank\r\n"
        f'q1,clip.mp4,What colour is it?,{options},B,colour,1.5,9.0,open,3,"ü\n""x""",\r\n'
        "\r\n,,,,,,,,,,,\r\n2,clip.mp4,What colour is it?,,,,,,,,,\r\n",
    )
    assert file.questions == (
        EXPECTED,
        Question(question_id="2", video="clip.mp4", question="What colour is it?"),
    )
    assert file.extra == {"level": pa.int64(), "source": pa.string(), "blank": pa.string()}


@pytest.mark.parametrize("options", [["red", "blue, or green"], "red|blue, or green"])
def test_parquet(tmp_path: Path, options: object) -> None:
    file = from_parquet(
        tmp_path, pa.Table.from_pylist([FULL | {"options": options}, GOOD | {"question_id": "2"}])
    )
    assert file.questions == (
        EXPECTED,
        Question(question_id="2", video="clip.mp4", question="What colour is it?"),
    )
    assert file.extra == {"level": pa.int64(), "source": pa.string()}


BAD_ROWS = [
    ({"question_id": None}, "no_id", "question_id is missing"),
    ({"question_id": " "}, "no_id", "question_id is missing"),
    ({"question_id": ["q"]}, "bad_value", "question_id ['q']"),
    ({"question_id": True}, "bad_value", "question_id True"),
    ({"video": None}, "no_video", "give an id, a uri or a file name"),
    ({"video": ""}, "no_video", "video is missing or empty"),
    ({"video": {"uri": "x"}}, "bad_value", "video {'uri': 'x'}"),
    ({"question": None}, "empty_question", "write one, or give a prompt"),
    ({"question": " \n"}, "empty_question", "question is missing or empty"),
    ({"question": math.nan}, "empty_question", "question is missing or empty"),
    ({"question": ["x"]}, "bad_value", "question ['x']"),
    ({"options": ["red"]}, "bad_options", "options ['red']"),
    ({"options": []}, "bad_options", "options []"),
    ({"options": ["red", ""]}, "bad_options", 'as ["red", "blue"] or red|blue'),
    ({"options": ["red", None]}, "bad_options", "['red', None]"),
    ({"options": ["red", ["blue"]]}, "bad_options", "['red', ['blue']]"),
    ({"options": "red"}, "bad_options", "options 'red'"),
    ({"options": "['red', 'blue']"}, "bad_options", "2 to 26 texts"),
    ({"options": "red||blue"}, "bad_options", "options 'red||blue'"),
    ({"options": {"A": "red", "B": "blue"}}, "bad_options", "{'A': 'red'"),
    ({"options": [str(i) for i in range(27)]}, "bad_options", "2 to 26 texts"),
    ({"options": 5}, "bad_options", "options 5"),
    ({"options": ["red", "blue"], "answer": "C"}, "bad_answer", "give a letter A to B"),
    ({"options": ["red", "red"], "answer": "red"}, "bad_answer", "answer 'red'"),
    ({"answer": True}, "bad_value", "answer True"),
    ({"start_s": -1}, "bad_range", "start_s -1"),
    ({"start_s": math.nan}, "bad_range", "start_s nan"),
    ({"end_s": math.inf}, "bad_range", "end_s inf"),
    ({"end_s": 10**400}, "bad_value", "end_s 1000"),
    ({"end_s": 0}, "bad_range", "end_s 0.0 is not after start_s 0.0"),
    ({"start_s": 4, "end_s": 4}, "bad_range", "end_s 4.0 is not after start_s 4.0"),
    ({"start_s": "soon"}, "bad_value", "start_s 'soon'"),
    ({"start_s": True}, "bad_value", "start_s True"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error_class", "says"), BAD_ROWS)
def test_a_bad_row_says_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], error_class: str, says: str
) -> None:
    file = from_lines(tmp_path, GOOD | {"question_id": "first"}, GOOD | {"mood": "calm"} | change)
    good, bad = file.questions
    assert good.error_class == "" and good.error == ""
    assert bad.error_class == error_class and says in bad.error
    assert bad.error.startswith("row 2: ") and "\n" not in bad.error
    assert bad.extra == {"mood": "calm"}
    assert bad.question_id == ("row-2" if "question_id" in change else "q1")
    written(tmp_path, file)


def test_what_could_be_read_of_a_bad_row_is_kept(tmp_path: Path) -> None:
    (bad,) = from_lines(tmp_path, FULL | {"options": ["red"], "answer": "x"}).questions
    assert dataclasses.replace(bad, error_class="", error="") == dataclasses.replace(
        EXPECTED, options=(), answer="x"
    )


def test_later_rows_of_an_id_are_duplicates(tmp_path: Path) -> None:
    file = from_lines(
        tmp_path,
        GOOD,
        GOOD | {"question_id": 1},
        GOOD | {"question_id": " q1 "},
        GOOD | {"question_id": 1.0},
        GOOD,
    )
    assert [q.error_class for q in file.questions] == ["", "", "duplicate_id", "duplicate_id", "duplicate_id"]
    assert [q.question_id for q in file.questions] == ["q1", "1", "q1", "1", "q1"]
    assert len({question_key(question) for question in file.questions}) == 5


def test_a_prompt_stands_for_a_question(tmp_path: Path) -> None:
    (question,) = from_lines(tmp_path, {"question_id": "1", "video": "v", "prompt": "brief"}).questions
    assert question.error_class == "" and question.question == "" and question.prompt == "brief"


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        (["A. red", "B. blue"], ("red", "blue")),
        (["(A) red", "(B) blue"], ("red", "blue")),
        (["A) red", "B: blue"], ("red", "blue")),
        (["A. red", "C. blue"], ("A. red", "C. blue")),
        (["A. red", "blue"], ("A. red", "blue")),
        (["A man", "B movie"], ("A man", "B movie")),
        (["A. ", "B. "], ("A.", "B.")),
        ([1, 2.5], ("1", "2.5")),
        ('["1|2", "3"]', ("1|2", "3")),
        ("yes|no", ("yes", "no")),
        ([" red ", "blue"], ("red", "blue")),
    ],
)
def test_options(tmp_path: Path, given_options: object, expected: tuple[str, ...]) -> None:
    (question,) = from_lines(tmp_path, GOOD | {"options": given_options}).questions
    assert question.error == "" and question.options == expected


def test_numbers_become_text_and_text_numbers(tmp_path: Path) -> None:
    row = GOOD | {"question_id": 7.0, "video": 12, "answer": 3, "kind": 2.5, "start_s": "1.5", "end_s": " 2 "}
    (question,) = from_lines(tmp_path, row).questions
    assert (question.question_id, question.video, question.answer, question.kind) == ("7", "12", "3", "2.5")
    assert (question.start_s, question.end_s, question.error) == (1.5, 2.0, "")


def test_parquet_ids_of_other_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "question_id": pa.array([1, 2], pa.int32()),
            "video": pa.array(["v", "w"]).dictionary_encode(),
            "question": ["a", "b"],
            "start_s": pa.array([Decimal("1.5"), None]),
            "end_s": pa.array([2.5, math.nan], pa.float32()),
        }
    )
    first, second = from_parquet(tmp_path, table).questions
    assert (first.question_id, first.video, first.start_s, first.end_s, first.error) == (
        "1",
        "v",
        1.5,
        2.5,
        "",
    )
    assert second.error_class == "bad_range"


def test_a_key_follows_everything() -> None:
    changes: Sequence[dict[str, Any]] = [
        {}, {"question_id": "q2"}, {"video": "w"}, {"question": "x"}, {"options": ("red",)}, {"answer": "A"},
        {"kind": None}, {"start_s": 2.0}, {"end_s": None}, {"prompt": None}, {"extra": {"level": 4}},
        {"extra": {"level": "3"}}, {"error": "x"}, {"error_class": "x"}, {"extra": {"level": 3, "t": date(2026, 1, 1)}},
    ]  # fmt: skip
    keys = [question_key(dataclasses.replace(EXPECTED, **change)) for change in changes]
    assert len(set(keys)) == len(changes) and all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    turned = dict(reversed(EXPECTED.extra.items()))
    assert question_key(dataclasses.replace(EXPECTED, extra=turned)) == keys[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


json_rows = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys((*FULL, "x", "\ud800"), json_values)),
    min_size=1,
    max_size=5,
)


@limits(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(json_rows)
def test_any_json_row_can_be_written_as_an_answer(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    file = from_lines(tmp_path, *rows)
    assert len(file.questions) == len(rows) == written(tmp_path, file).num_rows
    again = read_questions(str(tmp_path / "q.jsonl")).questions
    assert [question_key(q) for q in again] == [question_key(q) for q in file.questions]


@limits(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    for name, start in (
        ("q.jsonl", b""),
        ("q.csv", b"question_id,video,question,x\n"),
        ("q.parquet", b"PAR1"),
    ):
        (tmp_path / name).write_bytes(start + content)
        try:
            file = read_questions(str(tmp_path / name))
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
        else:
            written(tmp_path, file)
