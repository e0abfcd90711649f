"""Question files for tests: written in each format, read, and their further columns written on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.answer_schema import OWN_COLUMNS, answers_table
from echoprune.question import Answer
from echoprune.questions import QuestionFile, read_questions

GOOD: dict[str, Any] = {"question_id": "q1", "video": "clip.mp4", "question": "What colour is it?"}


FULL: dict[str, Any] = GOOD | {
    "options": ["red", "blue, or green"],
    "answer": "B",
    "kind": "colour",
    "start_s": 1.5,
    "end_s": 9.0,
    "prompt": "open",
    "level": 3,
    "source": 'ü\n"x"',
}


def from_lines(folder: Path, *lines: str | dict[str, Any], name: str = "q.jsonl") -> QuestionFile:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return read_questions(str(folder / name))


def from_csv(folder: Path, text: str) -> QuestionFile:
    (folder / "q.csv").write_text(text, encoding="utf-8")
    return read_questions(str(folder / "q.csv"))


def from_parquet(folder: Path, table: pa.Table) -> QuestionFile:
    pq.write_table(table, folder / "q.parquet")
    return read_questions(str(folder / "q.parquet"))


def written(folder: Path, file: QuestionFile) -> pa.Table:
    """The further columns after going through an answers table and Parquet."""
    answers = [
        Answer(question=q, status="failed", error_class=q.error_class or "x", error=q.error)
        for q in file.questions
    ]
    provenance = {"model_fingerprint": "m", "store_digest": "s", "settings_digest": "t"}
    pq.write_table(
        answers_table(answers, extra=file.extra, provenance=provenance), folder / "answers.parquet"
    )
    return pq.read_table(folder / "answers.parquet").drop_columns(list(OWN_COLUMNS))
