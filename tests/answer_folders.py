"""Small folders of answers for tests: real rows, files and receipts; no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.answer_schema import answers_table
from echoprune.answer_store import MARKER
from echoprune.question import Answer, Evidence, Question
from echoprune.receipt import Receipt, StoredFile
from echoprune.storage import Storage

PROVENANCE = {"model_fingerprint": "ab" * 32, "store_digest": "cd" * 8, "settings_digest": "ef" * 8}


def answer(question_id: str, question: str, text: str, **changes: Any) -> Answer:
    """An ok answer about /v/clip.mp4; `changes` to it, those of the question under its field names."""
    of_question = {"options", "answer", "kind", "start_s", "end_s", "extra"} & set(changes)
    asked = Question(
        question_id=question_id,
        video="clip.mp4",
        question=question,
        **{name: changes.pop(name) for name in of_question},
    )
    values: dict[str, Any] = {
        "status": "ok",
        "video_id": "v" * 20,
        "uri": "/v/clip.mp4",
        "raw_text": text,
        "finish": "eos",
    }
    return Answer(question=asked, **(values | changes))


def failed(question_id: str, question: str) -> Answer:
    return answer(
        question_id,
        question,
        "",
        status="failed",
        error_class="unknown_video",
        error="no such video",
        video_id=None,
        uri=None,
    )


def evidence(*moments: tuple[float, float, float]) -> tuple[Evidence, ...]:
    return tuple(Evidence(*moment) for moment in moments)


def write_answers(
    folder: Path,
    shard_id: str,
    answers: Sequence[Answer],
    *,
    extra: Mapping[str, pa.DataType] | None = None,
    covered: bool = True,
) -> None:
    """One shard of an answer run; without its receipt where not `covered`."""
    storage = Storage(folder)
    storage.create_exclusive(MARKER, b"{}\n")
    sink = pa.BufferOutputStream()
    table = answers_table(answers, extra=extra or {}, provenance=PROVENANCE)
    pq.write_table(table, sink, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    name = f"answers/{shard_id}.parquet"
    storage.write_bytes(name, data)
    if not covered:
        return
    statuses = [row.status for row in answers]
    receipt = Receipt(
        shard_id=shard_id,
        generation=0,
        files=(StoredFile(name, len(answers), len(data), hashlib.sha256(data).hexdigest()),),
        ok=statuses.count("ok"),
        partial=statuses.count("empty"),
        failed=statuses.count("failed"),
        lease_epoch=1,
        run_id="run",
        host="here",
        started_at="2026-05-11T00:00:00+00:00",
        finished_at="2026-05-11T00:00:01+00:00",
    )
    storage.write_bytes(receipt.name, receipt.to_json().encode())
