"""The next questions' videos are read while others are answered: how many, when, and that nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echoprune import videos_ahead as module
from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.data import TokenSet
from echoprune.errors import UnanswerableError
from echoprune.models import load_answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Answer, Question
from echoprune.store import TokenStore, create_store, open_store
from echoprune.videos_ahead import videos_ahead
from tests import indexed
from tests.indexed import Footage
from tests.stores import clip, file_of, settings, write_shard

CPU = torch.device("cpu")
WAIT_S = 20.0


class Watched(TokenStore):
    """A store that tells whose tokens are read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read: list[str] = []
        self.changed = threading.Condition()
        # Nothing is read on while this is not set.
        self.open = threading.Event()
        self.open.set()

    def tokens(self, video: str, **how: Any) -> TokenSet:
        with self.changed:
            self.read.append(self.video(video)["uri"])
            self.changed.notify_all()
        assert self.open.wait(WAIT_S)
        return super().tokens(video, **how)

    def wait_for(self, *uris: str) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.read == list(uris), timeout=WAIT_S)


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    made_with = settings()
    storage = create_store(tmp_path, made_with)
    write_shard(storage, made_with, [clip(f"/{name}.mp4", made_with, cells=20) for name in "abcd"])
    return Watched(storage)


def ask(video: str, name: str = "q") -> Question:
    return Question(question_id=name, video=video, question="What moves?")


def test_what_comes_next_is_read_while_one_is_in_hand(store: Watched) -> None:
    told: list[tuple[str, list[str]]] = []
    questions = [
        ask("/a.mp4", "1"),
        ask("/a.mp4", "2"),
        ask("/b.mp4", "3"),
        ask("/nowhere.mp4", "4"),
        ask("/b.mp4", "5"),
    ]
    opened = videos_ahead(
        questions,
        store,
        device=CPU,
        on_question=lambda each: told.append((each.question_id, list(store.read))),
    )
    _, video = next(opened)
    # Nobody has asked for more, and the next video comes all the same.
    assert store.wait_for("/a.mp4", "/b.mp4", "/b.mp4")
    first = video()
    assert first.row["uri"] == "/a.mp4" and first.read(CPU) is first.read(None)
    (_, second), (_, third), (_, gone), (_, last) = opened
    assert second() is first and third().row["uri"] == "/b.mp4"
    with pytest.raises(UnanswerableError, match=r"nowhere\.mp4"):
        gone()
    # What cannot be opened is no video that goes on, as without reading ahead.
    assert last().row["uri"] == "/b.mp4" and last() is not third()
    assert [name for name, _ in told] == ["1", "2", "3", "4", "5"] and told[0][1] == []


def test_a_question_has_its_video_while_the_tokens_are_read(store: Watched) -> None:
    store.open.clear()
    opened = videos_ahead([ask("/a.mp4")], store, device=CPU)
    _, video = next(opened)
    # Open, although nothing of it can be read yet.
    found = video()
    view = found.view(None, None)
    assert view is not None and store.wait_for("/a.mp4")
    store.open.set()
    # Read once: who needs the tokens waits for the thread that is at it.
    stored = found.scores(view, None, reduce="max", device=CPU).stored
    assert len(stored.t) == found.row["kept"] and store.read == ["/a.mp4"]
    opened.close()


def test_memory_and_questions_ahead_are_bounded(store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(4 * 24 * row["kept"] for row in store.videos().to_pylist())
    monkeypatch.setattr(module, "AHEAD_BYTES", 2 * size)
    monkeypatch.setattr(module, "AHEAD_QUESTIONS", 3)
    taken: list[str] = []

    def questions() -> Iterator[Question]:
        for name in "abcdabcd":
            taken.append(name)
            yield ask(f"/{name}.mp4")

    opened = videos_ahead(questions(), store, device=CPU)
    _, first = next(opened)
    assert first().row["uri"] == "/a.mp4" and taken == list("abcd")
    assert store.wait_for("/a.mp4", "/b.mp4")
    # There is room for two that nobody has taken: c came too late for it, and is read when its turn comes.
    found = [video().read(CPU) for _, video in opened]
    assert all(found) and taken == list("abcdabcd") and len(store.read) == 8
    opened = videos_ahead(questions(), store, device=CPU)
    next(opened)
    opened.close()


def test_a_video_that_is_too_long_is_not_read_ahead(store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echoprune.stored_video.CACHED_BYTES", 100)
    for _, video in videos_ahead([ask("/a.mp4"), ask("/b.mp4")], store, device=CPU):
        assert video().read(CPU) is None
    assert store.read == []


@pytest.fixture(scope="module")
def answers_to(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Answer]]:
    folder = tmp_path_factory.mktemp("ahead")
    model = write_tiny_checkpoint("qwen2_5_vl", folder / "model", seed=1)
    for shard, name in enumerate("abc"):
        footage = Footage(f"/{name}.mp4", 6, seed=shard, event=(3, 5))
        indexed.index(folder / "store", model, [footage], shard_id=f"{name}{shard}")
    damaged = folder / "store" / file_of(folder / "store", "tokens", "b1")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    answerer = load_answerer(str(model), device="cpu")
    chosen = AnswerSettings(budget="24", max_new_tokens=4, batch=1)

    def answer(*questions: Question) -> list[Answer]:
        opened = open_store(folder / "store")
        return list(answer_questions(questions, store=opened, answerer=answerer, settings=chosen))

    return answer


def test_a_video_with_damaged_cells_fails_its_questions_alone(tmp_path: Path) -> None:
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", seed=1)
    for shard, name in enumerate("ab"):
        indexed.index(
            tmp_path / "store", model, [Footage(f"/{name}.mp4", 6, seed=shard)], shard_id=f"{name}{shard}"
        )
    damaged = tmp_path / "store" / file_of(tmp_path / "store", "cells", "a0")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    answers = answer_questions(
        [ask("/a.mp4", "1"), ask("/b.mp4", "2"), ask("/a.mp4", "3")],
        store=open_store(tmp_path / "store"),
        answerer=load_answerer(str(model), device="cpu"),
        settings=AnswerSettings(budget="24", max_new_tokens=4),
    )
    found = [(each.error_class, each.uri) for each in answers]
    assert found == [("store_damaged", "/a.mp4"), ("", "/b.mp4"), ("store_damaged", "/a.mp4")]


def test_answers_are_those_of_each_question_alone(answers_to: Callable[..., list[Answer]]) -> None:
    questions = [
        replace(ask(f"/{video}.mp4", f"q{index}"), question=f"What is in corner {index}?", start_s=start_s)
        for index, (video, start_s) in enumerate(
            [
                ("a", None),
                ("a", 2.0),
                ("b", None),
                ("c", None),
                ("a", None),
                ("x", None),
                ("c", 1.0),
                ("b", 3.0),
            ]
        )
    ]
    together = answers_to(*questions)
    alone = [answer for question in questions for answer in answers_to(question)]
    assert [each.error_class for each in together] == [
        "",
        "",
        "store_damaged",
        "",
        "",
        "unknown_video",
        "",
        "store_damaged",
    ]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_equal(one.kept, other.kept)
        assert replace(one, kept=other.kept) == other
    assert together[2].status == "failed" and together[2].uri == "/b.mp4"
