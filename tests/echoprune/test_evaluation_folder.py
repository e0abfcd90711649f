"""The folder of an evaluation: pinned to its settings, answers as files and back."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from echoprune.errors import NotAStoreError, StoreError, StoreMismatchError
from echoprune.evaluation import Outcome, result_rows
from echoprune.evaluation_folder import (
    MARKER,
    RESULT_SCHEMA,
    EvalRun,
    answers_bytes,
    answers_name,
    create_evaluation,
    outcomes,
    read_answers,
    result_bytes,
    store_name,
)
from echoprune.evaluation_grid import Setting
from echoprune.question import Answer, Evidence, Question

RUN = EvalRun(
    model_digest="m", compute_dtype="fp32", videos="v", questions="q", settings={"seed": 0, "letters": False}
)
SETTING = Setting("evs", 96, "512", "4/cell")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(RUN, model_digest="n"), "model_digest = 'm', this run has 'n': give the --model"),
        (replace(RUN, questions="p"), "give the --questions"),
        (replace(RUN, videos="w"), "give the VIDEOS"),
        (replace(RUN, compute_dtype="bf16"), "give the --compute-dtype"),
        (replace(RUN, settings={"seed": 1, "letters": False}), "seed = 0, this run has 1: give the --seed"),
        (replace(RUN, settings={"seed": 0}), "letters = False, this run has None"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, other: EvalRun, says: str) -> None:
    assert create_evaluation(tmp_path / "out", RUN).url == create_evaluation(tmp_path / "out", RUN).url
    with pytest.raises(StoreMismatchError) as error:
        create_evaluation(tmp_path / "out", other)
    assert says in str(error.value) and "another --out" in str(error.value)


def test_folders_of_other_things_and_of_other_versions(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(NotAStoreError, match=r"photo\.jpg but no eval\.json"):
        create_evaluation(tmp_path, RUN)
    for text in ("{", "{}", replace(RUN, schema_version=9).to_json()):
        (tmp_path / MARKER).write_text(text)
        with pytest.raises(StoreError, match="cannot be read"):
            create_evaluation(tmp_path, RUN)


def answers() -> list[Answer]:
    def asked(name: str, **extra: object) -> Question:
        return Question(
            question_id=name, video="a.mp4", question="x?", kind="event_order", answer="A", extra=extra
        )

    near = (Evidence(3.0, 4.0, 0.6), Evidence(90.0, 91.0, 0.4))
    seen = {
        "status": "ok",
        "visual_tokens": 500,
        "timestamp_tokens": 12,
        "prompt_tokens": 600,
        "evidence": near,
    }
    return [
        Answer(question=asked("near", event_start_s=5, event_end_s=6.5), correct=True, raw_text="A", **seen),  # type: ignore[arg-type]
        Answer(question=asked("far", event_start_s=90.0, event_end_s=91.0), correct=False, **seen),  # type: ignore[arg-type]
        Answer(question=asked("untimed"), correct=None, **seen),  # type: ignore[arg-type]
        Answer(
            question=asked("broken", event_start_s=5.0, event_end_s=6.0),
            status="failed",
            error_class="out_of_memory",
        ),
    ]


def test_answers_and_back(tmp_path: Path) -> None:
    storage = create_evaluation(tmp_path / "out", RUN)
    content = answers_bytes(SETTING, answers())
    assert content == answers_bytes(SETTING, answers())
    storage.write_bytes(answers_name(SETTING), content)
    table = read_answers(storage, SETTING)
    first = table.slice(0, 1).to_pylist()[0]
    assert {**first, **asdict(SETTING)} == first
    assert (first["evidence_start_s"], first["evidence_end_s"], first["event_start_s"]) == (3.0, 4.0, 5.0)
    assert outcomes(table) == {
        "near": Outcome(True, False, 500, 600, True),
        "far": Outcome(False, False, 500, 600, False),
        "untimed": Outcome(False, False, 500, 600, None),
        "broken": Outcome(False, True, 0, 0, False),
    }
    storage.write_bytes(answers_name(SETTING), content[:-30])
    with pytest.raises(StoreError, match="damaged"):
        read_answers(storage, SETTING)


def test_the_result_has_the_columns_of_its_rows() -> None:
    found = {SETTING: {"a": Outcome(True, False, 5, 6, None)}}
    rows = result_rows(found, {"all": frozenset("a")}, reference="anchored")
    table = pq.read_table(io.BytesIO(result_bytes(rows)))
    assert table.schema.equals(RESULT_SCHEMA) and table.to_pylist() == [asdict(row) for row in rows]


def test_stores_have_names_of_their_own() -> None:
    assert store_name(96, "4/cell") == "stores/frames-96-keep-4-per-cell"
