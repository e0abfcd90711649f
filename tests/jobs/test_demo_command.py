"""`echoprune demo`: which questions it asks, what its tables say, and all of it on a small model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import jobs.demo
from echoprune.models.tiny import write_tiny_checkpoint
from jobs.cli import main
from jobs.demo import some_of_each_kind

pytestmark = pytest.mark.usefixtures("shared_ray")


def line(kind: str, video: str, number: int) -> str:
    return json.dumps({"question_id": f"{video}-{kind}-{number}", "kind": kind, "video": video})


def test_questions_are_taken_evenly_of_kinds_and_videos_in_their_order() -> None:
    rows = [line(kind, video, n) for video in "abc" for kind in ("x", "y", "z") for n in range(4)]
    rows.append(line("rare", "c", 0))
    taken = some_of_each_kind(rows, 13)
    assert taken == [row for row in rows if row in taken] and len(set(taken)) == 13
    found = [json.loads(row) for row in taken]
    assert Counter(row["kind"] for row in found) == {"x": 4, "y": 4, "z": 4, "rare": 1}
    assert max(Counter((row["kind"], row["video"]) for row in found).values()) == 2
    assert {row["video"] for row in map(json.loads, some_of_each_kind(rows, 4))} == set("abc")
    assert some_of_each_kind(rows, 1000) == rows


def test_a_model_that_is_none_is_said_before_anything_is_rendered(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["demo", "--out", str(tmp_path / "out"), "--model", str(tmp_path / "no")]
    )
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_all_of_it_with_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.demo, "CLIPS", 2)
    monkeypatch.setattr(jobs.demo, "CLIP_S", 12.0)
    monkeypatch.setattr(jobs.demo, "ASKED", 14)
    monkeypatch.setattr(jobs.demo, "WINDOW", "6s")
    monkeypatch.setenv("COLUMNS", "1000")
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "tiny")
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["demo", "--out", str(out), "--model", str(model)])
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "2 ok, 0 partial, 1 failed" in text
    asked = [json.loads(row) for row in (out / "questions.jsonl").read_text().splitlines()]
    every = [json.loads(row) for row in (out / "archive" / "questions.jsonl").read_text().splitlines()]
    assert len(asked) == 14 and {row["kind"] for row in asked} == {row["kind"] for row in every}
    assert (
        " of 14 answers are right" in text
        and "about one event rest most on a moment within 2 s of it" in text
    )
    table = text[text.index("5. echoprune answer") :]
    for row in asked:
        assert row["question"] in table and row["answer"] in table
        if row["event_start_s"] is not None:
            assert f"{row['event_start_s']:.1f}-{row['event_end_s']:.1f}" in table
    assert "truth: Nothing happens." in text or " pops up at the " in text
    assert "truth: it pops up in clip_000.mp4 from " in text
    assert {path.name for path in out.glob("*.png")} == {"clip_000.png", "clip_001.png"}
    # Again: nothing is rendered, indexed or answered twice.
    again = CliRunner().invoke(main, ["demo", "--out", str(out), "--model", str(model)])
    assert again.exit_code == 0 and "nothing to do" in again.stdout
