"""The folder of an evaluation: what eval.json pins down, and the file of answers of each setting.

    <out>/eval.json                    first: all that decides an answer beside setting and question; a mismatch is an error
    <out>/stores/frames-F-keep-K/      a store per number of frames and keep
    <out>/answers/<setting>.parquet    one row per question, whole or not there: no receipt is needed
    <out>/eval.parquet, eval.md, eval.png, run_report.json      the result

A later run may ask for more settings; those whose file is there are done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.errors import StoreError, StoreMismatchError
from echoprune.evaluation import Outcome, ResultRow, event_found
from echoprune.evaluation_grid import Setting
from echoprune.question import Answer
from echoprune.storage import Storage

MARKER = "eval.json"
RESULT_FILE = "eval.parquet"
SCHEMA_VERSION = 1
EVENT_COLUMNS = ("event_start_s", "event_end_s")

_TEXT, _COUNT, _SECONDS = pa.string(), pa.int64(), pa.float64()
ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("question_id", _TEXT, nullable=False),
        pa.field("video", _TEXT, nullable=False),
        pa.field("kind", _TEXT),
        pa.field("policy", _TEXT, nullable=False),
        pa.field("frames", _COUNT, nullable=False),
        pa.field("budget", _TEXT, nullable=False),
        pa.field("keep", _TEXT, nullable=False),
        pa.field("status", _TEXT, nullable=False),
        pa.field("error_class", _TEXT),
        pa.field("error", _TEXT),
        pa.field("answer", _TEXT),
        pa.field("correct", pa.bool_()),
        pa.field("raw_text", _TEXT),
        pa.field("parsed_choice", _TEXT),
        pa.field("evidence_start_s", _SECONDS),
        pa.field("evidence_end_s", _SECONDS),
        *(pa.field(name, _SECONDS) for name in EVENT_COLUMNS),
        pa.field("visual_tokens", _COUNT, nullable=False),
        pa.field("timestamp_tokens", _COUNT, nullable=False),
        pa.field("prompt_tokens", _COUNT, nullable=False),
    ]
)
RESULT_SCHEMA = pa.schema(
    [
        pa.field(
            each.name,
            _TEXT
            if each.name in ("policy", "budget", "keep", "group", "against")
            else _COUNT
            if each.name in ("frames", "n", "correct", "failed", "evidence_n")
            else _SECONDS,
        )
        for each in fields(ResultRow)
    ]
)


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """The contents of eval.json: all that decides an answer beside the setting and the question's own text.

    `model_digest`: of the whole checkpoint. `videos`, `questions`: digests of the uris, and of the questions with their
    answers. `settings`: the options that every setting shares, by name.
    """

    schema_version: int = SCHEMA_VERSION
    model_digest: str
    compute_dtype: str
    videos: str
    questions: str
    settings: Mapping[str, Any]

    def to_json(self) -> str:
        """The text of eval.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = MARKER) -> EvalRun:
        """What an eval.json says; StoreError naming `where` for one that cannot be read."""
        try:
            found = cls(**json.loads(text))
            if found.schema_version != SCHEMA_VERSION:
                raise ValueError(
                    f"schema_version {found.schema_version!r}, this program reads {SCHEMA_VERSION}"
                )
        except (ValueError, TypeError) as error:
            raise StoreError(f"{where} cannot be read ({error}): use another --out") from error
        return found

    def require_same(self, other: EvalRun) -> None:
        """Raise StoreMismatchError for the first field in which `other`, asked for now, differs from this run's."""
        ours, theirs = _flat(self), _flat(other)
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if ours.get(name) != theirs.get(name):
                option = {"videos": "VIDEOS", "questions": "--questions", "model_digest": "--model"}.get(
                    name, "--" + name.replace("_", "-")
                )
                raise StoreMismatchError(
                    f"the evaluation was made with {name} = {ours.get(name)!r}, this run has {theirs.get(name)!r}: "
                    f"give the {option} it was made with, or another --out"
                )


def _flat(run: EvalRun) -> dict[str, Any]:
    values = asdict(run)
    settings = values.pop("settings")
    return {**values, **settings}


def create_evaluation(path: str | os.PathLike[str], run: EvalRun) -> Storage:
    """The storage of an evaluation's folder, made if it is not there.

    Raises StoreMismatchError if it was made with something else, NotAStoreError if it holds other things.
    """
    storage = Storage(path)
    found = storage.claim(MARKER, run.to_json().encode(), lacks="it holds no evaluation", option="--out")
    EvalRun.from_json(found, where=storage.url_of(MARKER)).require_same(run)
    return storage


def store_name(frames: int, keep: str) -> str:
    """The name, below the folder, of the store of that many frames and that keep."""
    return f"stores/frames-{frames}-keep-{keep.replace('/', '-per-')}"


def answers_name(setting: Setting) -> str:
    """The name, below the folder, of the file with the answers of a setting."""
    return f"answers/{setting.name}.parquet"


def answers_bytes(setting: Setting, answers: Sequence[Answer]) -> bytes:
    """The Parquet file of the answers of a setting, in their order."""
    rows = [_answer_row(setting, answer) for answer in answers]
    return _parquet(pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA))


def result_bytes(rows: Sequence[ResultRow]) -> bytes:
    """The Parquet file of the result."""
    return _parquet(pa.Table.from_pylist([asdict(row) for row in rows], schema=RESULT_SCHEMA))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _answer_row(setting: Setting, answer: Answer) -> dict[str, Any]:
    question = answer.question
    moment = answer.evidence[0] if answer.evidence else None
    return {
        "question_id": question.question_id,
        "video": question.video,
        "kind": question.kind,
        **asdict(setting),
        "status": answer.status,
        "error_class": answer.error_class or None,
        "error": answer.error or None,
        "answer": question.answer,
        "correct": answer.correct,
        "raw_text": answer.raw_text if answer.status == "ok" else None,
        "parsed_choice": answer.parsed_choice,
        "evidence_start_s": None if moment is None else moment.start_s,
        "evidence_end_s": None if moment is None else moment.end_s,
        **{name: question.extra.get(name) for name in EVENT_COLUMNS},
        "visual_tokens": answer.visual_tokens,
        "timestamp_tokens": answer.timestamp_tokens,
        "prompt_tokens": answer.prompt_tokens,
    }


def read_answers(storage: Storage, setting: Setting) -> pa.Table:
    """The answers of a setting. Raises StoreError where its file is damaged."""
    name = answers_name(setting)
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(name)))
        if not table.schema.equals(ANSWERS_SCHEMA):
            raise pa.ArrowInvalid("its columns are not those of an evaluation")
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"{storage.url_of(name)} is damaged ({reason}): remove it and run again") from error
    return table


def outcomes(answers: pa.Table) -> dict[str, Outcome]:
    """What became of each question, by its id, from the answers of one setting."""
    found = {}
    for row in answers.to_pylist():
        event = (row["event_start_s"], row["event_end_s"])
        moment = (row["evidence_start_s"], row["evidence_end_s"])
        failed = row["status"] == "failed"
        found[row["question_id"]] = Outcome(
            correct=bool(row["correct"]) and not failed,
            failed=failed,
            visual_tokens=row["visual_tokens"],
            prompt_tokens=row["prompt_tokens"],
            found=event_found(None if None in moment else moment, event),
        )
    return found
