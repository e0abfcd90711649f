"""What the folder of an answer run looks like: the columns of its tables.

`answers/<shard>.parquet` has one row per question: the columns below, then the question file's further columns under
their own names. docs/answers.md explains every column. Declarations and conversion only; files are written elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from echoprune.question import Answer

EVIDENCE = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("score", pa.float32())]))
KEPT = pa.list_(pa.struct([("t", pa.int32()), ("h", pa.int16()), ("w", pa.int16())]))

_COLUMNS: tuple[tuple[str, pa.DataType, bool], ...] = (
    ("question_id", pa.string(), False),
    ("video", pa.string(), False),
    ("video_id", pa.string(), True),
    ("uri", pa.string(), True),
    ("video_digest", pa.string(), True),
    ("kind", pa.string(), True),
    ("question", pa.string(), False),
    ("options", pa.list_(pa.string()), False),
    ("answer", pa.string(), True),
    ("start_s", pa.float64(), True),
    ("end_s", pa.float64(), True),
    ("status", pa.string(), False),
    ("error_class", pa.string(), True),
    ("error", pa.string(), True),
    ("raw_text", pa.string(), True),
    ("finish", pa.string(), True),
    ("parsed_choice", pa.string(), True),
    ("choice_logprobs", pa.list_(pa.float32()), True),
    ("correct", pa.bool_(), True),
    ("evidence", EVIDENCE, False),
    ("kept", KEPT, False),
    ("original_tokens", pa.int64(), False),
    ("stored_tokens", pa.int64(), False),
    ("visual_tokens", pa.int64(), False),
    ("timestamp_tokens", pa.int64(), False),
    ("prompt_tokens", pa.int64(), False),
    ("new_tokens", pa.int64(), False),
    ("r_needed", pa.float32(), True),
    ("certified", pa.bool_(), False),
    ("template", pa.string(), True),
    ("template_hash", pa.string(), True),
    ("model_fingerprint", pa.string(), False),
    ("store_digest", pa.string(), False),
    ("settings_digest", pa.string(), False),
)

OWN_COLUMNS = tuple(name for name, _, _ in _COLUMNS)


def answers_schema(extra: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of the answers table, `extra` being the question file's further columns, all nullable.

    Raises ValueError for an extra column whose name is one of OWN_COLUMNS.
    """
    taken = sorted(set(extra) & set(OWN_COLUMNS))
    if taken:
        raise ValueError(f"columns {', '.join(taken)} are the answers table's own")
    own = [pa.field(name, kind, nullable=nullable) for name, kind, nullable in _COLUMNS]
    return pa.schema([*own, *(pa.field(name, kind) for name, kind in extra.items())])


def answers_table(
    answers: Sequence[Answer], *, extra: Mapping[str, pa.DataType], provenance: Mapping[str, str]
) -> pa.Table:
    """The rows of `answers`, in their order. `provenance`: model_fingerprint, store_digest and settings_digest.

    Raises pyarrow.ArrowException where an extra value does not fit its column's type.
    """
    schema = answers_schema(extra)
    rows = [_row(answer) | dict(provenance) for answer in answers]
    columns: list[pa.Array] = []
    for name in schema.names:
        if name == "kept":
            columns.append(_kept(answers))
            continue
        values = [
            answer.question.extra.get(name) if name in extra else row[name]
            for answer, row in zip(answers, rows, strict=True)
        ]
        columns.append(pa.array(values, type=schema.field(name).type))
    return pa.table(columns, schema=schema)


def _kept(answers: Sequence[Answer]) -> pa.Array:
    """The column `kept`, without a Python object for each of its tokens."""
    offsets = np.cumsum([0, *(len(answer.kept) for answer in answers)])
    places = np.concatenate([answer.kept for answer in answers] or [np.empty((0, 3), np.int32)])
    kinds = [field.type for field in KEPT.value_type]
    parts = [pa.array(places[:, axis].copy()).cast(kind) for axis, kind in enumerate(kinds)]
    struct = pa.StructArray.from_arrays(parts, fields=list(KEPT.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct, type=KEPT)


def _row(answer: Answer) -> dict[str, Any]:
    question = answer.question
    return {
        "question_id": question.question_id,
        "video": question.video,
        "video_id": answer.video_id,
        "uri": answer.uri,
        "video_digest": answer.video_digest,
        "kind": question.kind,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        "start_s": question.start_s,
        "end_s": question.end_s,
        "status": answer.status,
        "error_class": answer.error_class or None,
        "error": answer.error or None,
        "raw_text": answer.raw_text if answer.status == "ok" else None,
        "finish": answer.finish or None,
        "parsed_choice": answer.parsed_choice,
        "choice_logprobs": None if answer.choice_logprobs is None else list(answer.choice_logprobs),
        "correct": answer.correct,
        "evidence": [
            {"start_s": moment.start_s, "end_s": moment.end_s, "score": moment.score}
            for moment in answer.evidence
        ],
        "original_tokens": answer.original_tokens,
        "stored_tokens": answer.stored_tokens,
        "visual_tokens": answer.visual_tokens,
        "timestamp_tokens": answer.timestamp_tokens,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "r_needed": answer.r_needed,
        "certified": answer.certified,
        "template": answer.template or None,
        "template_hash": answer.template_hash or None,
    }
