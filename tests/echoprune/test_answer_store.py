from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from echoprune.answer_schema import OWN_COLUMNS
from echoprune.answer_store import open_answers
from echoprune.errors import NotAStoreError, StoreError
from echoprune.receipt import sweep
from tests.answer_folders import answer, evidence, failed, write_answers


def test_only_what_receipts_cover_is_read_sorted(tmp_path: Path) -> None:
    write_answers(
        tmp_path, "a1", [answer("q3", "Who?", "a dog", evidence=evidence((1, 2, 0.5))), failed("q1", "?")]
    )
    write_answers(tmp_path, "b2", [answer("q2", "What?", "a ball")])
    write_answers(tmp_path, "c3", [answer("q0", "Killed?", "yes")], covered=False)
    answers = open_answers(tmp_path)
    table = answers.table()
    assert table.schema.names == list(OWN_COLUMNS)
    assert table["question_id"].to_pylist() == ["q1", "q2", "q3"]
    assert table["evidence"].to_pylist()[2] == [{"start_s": 1.0, "end_s": 2.0, "score": 0.5}]
    assert answers.table(["raw_text", "status"]).to_pydict() == {
        "raw_text": [None, "a ball", "a dog"],
        "status": ["failed", "ok", "ok"],
    }
    assert [batch["question_id"].to_pylist() for batch in answers.batches()] == [["q3", "q1"], ["q2"]]
    assert (answers.receipts["a1"].ok, answers.receipts["a1"].failed) == (1, 1)
    write_answers(tmp_path, "d4", [answer("q9", "Later?", "yes")])
    assert len(answers.table()) == 3 and len(open_answers(tmp_path).table()) == 4
    assert sweep(answers.storage).left == ["answers/c3.parquet"]


def test_extra_columns_of_some_shards(tmp_path: Path) -> None:
    write_answers(tmp_path, "a1", [answer("q1", "?", "x", extra={"level": 3})], extra={"level": pa.int64()})
    write_answers(tmp_path, "b2", [answer("q2", "?", "y")])
    assert open_answers(tmp_path).table(["question_id", "level"])["level"].to_pylist() == [3, None]


def test_no_answers(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match=r"no answers\.json"):
        open_answers(tmp_path)
    (tmp_path / "answers.json").write_text("{}")
    answers = open_answers(tmp_path)
    assert len(answers.table()) == 0 and answers.table(["kind"]).schema.names == ["kind"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_answers(tmp_path, "a1", [answer("q1", "?", "x")])
    (tmp_path / "answers/a1.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"a1\.parquet is damaged .*remove receipts/a1-\*\.json") as caught:
        open_answers(tmp_path).table()
    assert "\n" not in str(caught.value)
