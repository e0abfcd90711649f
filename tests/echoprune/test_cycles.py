"""Python's search for cycles: how often it runs while a run is planned, and that it is on again afterwards."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from echoprune import answer_plan, plan
from echoprune.cycles import no_search_for_cycles
from echoprune.questions import read_questions
from echoprune.receipt import Receipt, read_receipts
from echoprune.sources import list_sources
from echoprune.storage import Storage

COUNT = 2000


@pytest.fixture
def searches() -> Iterator[list[int]]:
    """The generation of each search so far, which comes after every hundred objects."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(100, 2, 2)
    try:
        yield found
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)


def video_plan(folder: Path) -> Callable[[], object]:
    """The steps of `index` over a manifest."""
    (folder / "videos.txt").write_text("".join(f"/v/{number}.mp4\n" for number in range(COUNT)))
    storage = Storage(folder / "store")

    def steps() -> object:
        found = list_sources([folder / "videos.txt"])
        plan.extend_plan(storage, found, shard_bytes=1, shard_videos=5)
        return plan.pending(plan.load_plan(storage), {})

    return steps


def question_plan(folder: Path) -> Callable[[], object]:
    """The steps of `answer` over a file of questions."""
    rows = [{"question_id": f"q{i}", "video": f"{i // 3}.mp4", "question": "what?"} for i in range(COUNT)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage = Storage(folder / "answers")

    def steps() -> object:
        questions = list(read_questions(str(folder / "q.jsonl")).questions)
        answer_plan.extend_plan(storage, questions, extra={}, shard_questions=4)
        return answer_plan.load_plan(storage).pending({})

    return steps


def receipts(folder: Path) -> Callable[[], object]:
    """The receipts of a store."""
    (folder / "receipts").mkdir()
    for number in range(COUNT):
        made = Receipt(
            shard_id=f"{number:016x}", generation=0, files=(), ok=0, partial=0, failed=0, lease_epoch=1, run_id="r",
            host="h", started_at="", finished_at="",
        )  # fmt: skip
        (folder / made.name).write_text(made.to_json())
    return lambda: read_receipts(Storage(folder))


@pytest.mark.parametrize("prepared", [video_plan, question_plan, receipts])
def test_millions_of_objects_are_not_looked_through_while_they_are_made(
    tmp_path: Path, searches: list[int], prepared: Callable[[Path], Callable[[], object]]
) -> None:
    """Each search over all that lives: ten times the videos took 19 times as long to plan."""
    steps = prepared(tmp_path)
    searches.clear()
    kept = steps()
    # Between the steps it is on again.
    assert kept and len(searches) < 5
    assert gc.isenabled()


def test_it_is_on_again_after_an_error_and_left_as_it_was() -> None:
    with pytest.raises(KeyError), no_search_for_cycles():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_search_for_cycles():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
