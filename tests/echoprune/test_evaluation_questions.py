"""Which questions can be scored, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echoprune.errors import ConfigError
from echoprune.evaluation_questions import Scorable, scorable
from echoprune.questions import read_questions
from echoprune.sources import Source

SOURCES = [Source(f"/v/{name}") for name in ("a.mp4", "b.mp4", "more/b.mp4", "unasked.mp4")]
GOOD: dict[str, Any] = {
    "question_id": "1",
    "video": "a.mp4",
    "question": "x?",
    "answer": "yes",
    "kind": "event_x",
}


def read(folder: Path, *rows: dict[str, Any], by: str = "kind") -> Scorable:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return scorable(read_questions(str(path)), SOURCES, by=by, where="questions q.jsonl")


def test_questions_about_one_video_come_together_and_unscorable_ones_not_at_all(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        GOOD | {"question_id": "1", "video": "/v/more/b.mp4", "level": 3},
        GOOD | {"question_id": "2", "kind": None},
        GOOD | {"question_id": "3", "video": SOURCES[2].video_id},
        {"question_id": "4", "video": "nowhere.mp4", "question": "Describe it."},
        GOOD | {"question_id": "5", "level": 4},
    )
    assert [each.question_id for each in found.questions] == ["2", "5", "1", "3"]
    assert found.labels == {"1": "event_x", "2": None, "3": "event_x", "5": "event_x"}
    assert found.videos == ("/v/a.mp4", "/v/more/b.mp4")
    by_level = read(tmp_path, GOOD | {"level": 3}, GOOD | {"question_id": "2"}, by="level")
    assert by_level.labels == {"1": "3", "2": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": None}, "none of the questions q.jsonl has an `answer`"),
        ({"kind": None}, "has a `kind`: add it, or give another --by"),
        ({"question": None}, "rows that are no questions: 1, such as row 1: "),
        ({"video": "b.mp4"}, "'b.mp4', which is the name of 2 of the 4 VIDEOS"),
        ({"video": "c.mp4"}, "'c.mp4', which is the name of 0 of the 4 VIDEOS"),
        ({"event_start_s": "soon"}, "column event_start_s of questions q.jsonl is string"),
    ],
)
def test_what_makes_no_evaluation_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, GOOD | change)
    assert says in str(error.value)


def test_an_unknown_column_to_group_by(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--by is 'level'"):
        read(tmp_path, GOOD, by="level")
