from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.errors import ConfigError
from echoprune.questions import read_questions
from tests.question_files import GOOD, from_csv, from_lines


@pytest.mark.parametrize(
    "line", ["{", '{"question_id": "q2"', "[1]", '"text"', "null", "nope", "[" * 100000, "9" * 5000]
)
def test_lines_that_are_no_json_object(tmp_path: Path, line: str) -> None:
    file = from_lines(tmp_path, GOOD, line, GOOD | {"question_id": "q3"})
    assert [question.error_class for question in file.questions] == ["", "bad_json", ""]
    bad = file.questions[1]
    assert bad.question_id == "row-2" and bad.error.startswith("row 2: ") and len(bad.error) < 250
    assert bad.error.endswith("one a line") or bad.error.endswith("one object a line")


def test_csv_rows_of_another_length_are_bad(tmp_path: Path) -> None:
    file = from_csv(tmp_path, "question_id,video,question,level\n1,v,Red, or blue?,2\n2,v,Why?\n3,v,Why?,4\n")
    assert [q.error_class for q in file.questions] == ["bad_csv", "bad_csv", ""]
    assert "5 fields under 4 columns; quote" in file.questions[0].error
    assert file.questions[1].question_id == "2" and file.questions[2].extra == {"level": 4}
    assert file.extra == {"level": pa.int64()}


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_questions(str(path))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.txt", b"x", "give one of .jsonl, .ndjson, .json, .csv, .parquet"),
        ("q", b"x", "give one of .jsonl"),
        ("q.jsonl", b"", "hold no question"),
        ("q.jsonl", b"\n \n", "hold no question"),
        ("q.jsonl", b'\xef\xbb\xbf[{"question_id": 1}]', "one object a line"),
        ("q.jsonl", b'{"question_id": "caf\xe9"}\n', "save it as UTF-8"),
        ("q.jsonl", "{}".encode("utf-16"), "save it as UTF-8"),
        ("q.jsonl", b'{"question_id": 1, "status": "ok"}', "column status"),
        ("q.jsonl", b'{"question_id": 1, "Question": "ok"}', "write question, or rename it"),
        ("q.jsonl", b'{"question_id": 1, "": 2}', "a name of its own"),
        ("q.jsonl", json.dumps({str(i): i for i in range(1001)}).encode(), "1001 further columns"),
        ("q.csv", b"", "add question_id, video, question"),
        ("q.csv", b"question_id;video;question\n", "add question_id, video, question"),
        ("q.csv", b"question_id,video\n1,v\n", "add question"),
        ("q.csv", b"question_id,video,question\n", "hold no question"),
        ("q.csv", b"question_id,video,question,question\n1,v,a,b\n", "a name of its own"),
        ("q.csv", b",question_id,video,question\n0,1,v,a\n", "a name of its own"),
        ("q.csv", b"question_id,video,question,correct\n1,v,a,1\n", "column correct"),
        ("q.csv", b'question_id,video,question\n1,v,"never closed\n', "write it anew"),
        ("q.csv", b"question_id,video,question\n1,v,caf\xe9\n", "save it as UTF-8"),
        ("q.csv", b"\xffquestion_id,video,question\n1,v,x\n", "save it as UTF-8"),
        ("q.parquet", b"PAR1 not really", "write it anew"),
        ("q.parquet", b"", "write it anew"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.parquet"])
def test_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    assert "check the path" in refused(tmp_path / name)
    (tmp_path / name).mkdir()
    refused(tmp_path / name)


def test_parquet_files_that_cannot_be_used(tmp_path: Path) -> None:
    for change, says in (({"video_id": "x"}, "column video_id"), ({"Answer": "x"}, "write answer")):
        pq.write_table(pa.Table.from_pylist([GOOD | change]), tmp_path / "q.parquet")
        assert says in refused(tmp_path / "q.parquet")
    pq.write_table(pa.table({"question_id": ["1"]}), tmp_path / "q.parquet")
    assert "add video, question" in refused(tmp_path / "q.parquet")
    pq.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "q.parquet")
    whole = (tmp_path / "q.parquet").read_bytes()
    (tmp_path / "q.parquet").write_bytes(b"PAR1" + b"\xff" * 200 + whole[204:])
    assert "write it anew" in refused(tmp_path / "q.parquet")
