"""A whole evaluation with real Ray, killed and resumed: its answers are those of the plain function."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.evaluation_folder import answers_bytes, answers_name, store_name
from echoprune.evaluation_grid import DENSE, Setting
from echoprune.models import load_answerer
from echoprune.questions import read_questions
from echoprune.store import open_store
from pipelines.config import IndexConfig
from tests.clips import Clip, even, write
from tests.pipelines import in_process
from tests.pipelines.conftest import NO_RAY, RUN_LIMIT_S, call, run, start

pytestmark = pytest.mark.usefixtures("shared_ray")

# 15 tokens a cell of two frames: 30 of 4 frames fit into the budget, 120 of 16 do not.
GRID = ("--policies", "anchored,uniform", "--budgets", "40,30%", "--keeps", "all,0.25", "--frames")
SHORT = ("--max-new-tokens", "6", "--batch", "3", "--letters", "--anchor-every", "0")
SETTINGS = [
    Setting(DENSE, 4, "all", "all"),
    Setting(DENSE, 4, "all", "0.25"),
    *(Setting(policy, frames, "0.3", "all") for policy in ("anchored", "uniform") for frames in (4, 16)),
    Setting("anchored", 4, "0.3", "0.25"),
    Setting("anchored", 16, "0.3", "0.25"),
    Setting("anchored", 16, "40", "all"),
    Setting("uniform", 16, "40", "all"),
    Setting("anchored", 16, "40", "0.25"),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write(Clip("a.mp4", even(200)), folder)
    write(Clip("b.mp4", even(120)), folder)
    (folder / "unasked.mp4").write_text("not a video, and nobody asks")
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "question_id": f"q{i:02d}",
            "video": "ab"[i % 2] + ".mp4",
            "question": f"What is {'left ' * (i % 4)}here?",
            "options": ["red", "blue"],
            "answer": "AB"[i // 2 % 2],
            "kind": ("event_order", "static_colour")[i % 3 == 2],
        }
        | ({"event_start_s": 1.0, "event_end_s": 2.5} if i % 3 < 2 else {})
        for i in range(18)
    ]
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def digests(out: Path) -> dict[str, str]:
    found = [*out.glob("answers/*.parquet"), *out.glob("eval.*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def resumed(
    clips: Path, tiny: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of an evaluation that was killed while it answered and run again with more, and what that printed."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    command = ("eval", clips, "--questions", questions, "--model", tiny, "--out", out, *SHORT, *GRID)
    process = start(*command, "16")
    deadline = time.monotonic() + RUN_LIMIT_S
    while len(list(out.glob("answers/*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = digests(out)
    of_16 = sum(setting.frames == 16 for setting in SETTINGS)
    assert 2 <= sum(name != "eval.json" for name in before) < of_16, "killed too late to show anything"
    # The stores that it does not have yet, without the Ray that a run of its own would have.
    for keep in ("all", "0.25"):
        paths = (str(clips / "a.mp4"), str(clips / "b.mp4"))
        store = str(out / store_name(4, keep))
        in_process.index(
            IndexConfig(paths=paths, store=store, model=str(tiny), frames=4, keep=keep, anchor_every=0.0)
        )
    printed = call(*command, "4,16")
    assert before.items() <= digests(out).items(), "what was there was done again in another way"
    assert f"{len(SETTINGS)} settings" not in printed and "in earlier runs" in printed
    return out, printed


def test_the_answers_are_those_of_the_plain_function(
    resumed: tuple[Path, str], tiny: Path, questions: Path
) -> None:
    out, _ = resumed
    assert {path.name for path in out.glob("answers/*.parquet")} == {
        Path(answers_name(setting)).name for setting in SETTINGS
    }
    answerer = load_answerer(str(tiny), device="cpu")
    file = read_questions(str(questions)).questions
    ordered = sorted(file, key=lambda question: question.video)
    for setting in SETTINGS:
        settings = AnswerSettings(
            budget=setting.budget,
            budget_includes_text=True,
            policy="anchored" if setting.policy == DENSE else setting.policy,
            letters=True,
            max_new_tokens=6,
            batch=3,
        )
        store = open_store(out / store_name(setting.frames, setting.keep))
        answers = list(answer_questions(ordered, store=store, answerer=answerer, settings=settings))
        assert (out / answers_name(setting)).read_bytes() == answers_bytes(setting, answers), setting
        rows = pq.read_table(out / answers_name(setting)).to_pylist()
        assert all({**row, **asdict(setting)} == row and row["status"] == "ok" for row in rows)
        if setting.policy == "uniform":
            most = 40 if setting.budget == "40" else round(0.3 * 15 * setting.frames / 2)
            assert {row["visual_tokens"] for row in rows} == {most}


def test_the_result_says_what_the_answers_say(resumed: tuple[Path, str]) -> None:
    out, printed = resumed
    rows = {
        (row["policy"], row["frames"], row["budget"], row["keep"], row["group"]): row
        for row in pq.read_table(out / "eval.parquet").to_pylist()
    }
    # The dense runs of 4 frames stand under the budget that they fit in.
    shown = {(s.policy, s.frames, "40" if s.policy == DENSE else s.budget, s.keep) for s in SETTINGS}
    groups = ("event_order", "static_colour", "event", "static", "all")
    assert set(rows) == {(*each, group) for each in shown for group in groups}
    for name in (("anchored", 16, "40", "all"), ("uniform", 16, "40", "all")):
        answers = pq.read_table(out / answers_name(Setting(*name))).to_pylist()
        row = rows[*name, "all"]
        assert (row["n"], row["correct"]) == (18, sum(each["correct"] for each in answers))
        events = [each for each in answers if each["event_start_s"] is not None]
        near = [-1.0 <= (each["evidence_start_s"] + each["evidence_end_s"]) / 2 <= 4.5 for each in events]
        assert (row["evidence_n"], row["evidence_within_2s"]) == (12, sum(near) / 12)
        assert row["visual_tokens"] == 40 and row["prompt_tokens"] > 40
    assert rows["uniform", 16, "40", "all", "all"]["against"] == "anchored, 16 frames, budget 40, keep all"
    report = json.loads((out / "run_report.json").read_text())
    assert report["same_as_dense"] == 4 and not report["errors"] and report["videos"] == 2
    assert {each["reason"] for each in report["left_out"]} == {
        "uniform needs all tokens, and the store keeps 0.25"
    }
    assert (out / "eval.png").read_bytes().startswith(b"\x89PNG")
    assert "budget 40, keep all" in printed and "| uniform | 16 | 40 | all |" in (out / "eval.md").read_text()
    # One video, and the file that nobody asks about, take no part in any store.
    assert {row["status"] for row in open_store(out / store_name(4, "all")).videos().to_pylist()} == {"ok"}


def test_the_same_command_again_and_one_that_differs(
    resumed: tuple[Path, str], clips: Path, tiny: Path, questions: Path
) -> None:
    """Neither starts Ray; `--by` and fewer settings are only another look at the same answers."""
    out, printed = resumed
    before = digests(out)
    command = ("eval", clips, "--questions", questions, "--model", tiny, "--out", out, *SHORT, *GRID, "4,16")
    again = run(*command, more=NO_RAY)
    assert "nothing to do" in again and digests(out) == before
    assert again.splitlines()[:5] == printed.splitlines()[:5]
    err = call(*command, "--seed", "1", expect=2, streams=True)
    assert "made with seed = 0, this run has 1: give the --seed" in err
    assert digests(out) == before
