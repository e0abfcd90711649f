"""The videos of questions, read by a thread of their own while the questions before them are answered.

A question has its video once that is open: what else its prompt needs is done while its tokens are being read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice

import torch

from echoprune.errors import StoreError, UnanswerableError
from echoprune.prepare import open_video
from echoprune.question import Question
from echoprune.store import TokenStore
from echoprune.stored_video import CACHED_BYTES, StoredVideo

# Twice a batch of 16: the next one is read while the model is at work on one.
AHEAD_QUESTIONS = 32
# Beside the video in use. A video that does not fit is read when its turn comes.
AHEAD_BYTES = CACHED_BYTES


def videos_ahead(
    questions: Iterable[Question],
    store: TokenStore,
    *,
    device: torch.device,
    on_question: Callable[[Question], None] | None = None,
) -> Iterator[tuple[Question, Callable[[], StoredVideo]]]:
    """Each question with a function that gives its video, or raises what opening it raised (`open_video`).

    `on_question` is called with a question before its turn, and before anything is read for the first one. Up to
    AHEAD_QUESTIONS after it are taken from `questions`, and the tokens of their videos read as far as AHEAD_BYTES go. What
    goes wrong with tokens read ahead does so again when the question needs them.
    """
    source = iter(questions)
    reader = _Reader(store, device)
    with ThreadPoolExecutor(1, thread_name_prefix="videos-ahead") as thread:
        waiting: deque[tuple[Question, Future[StoredVideo]]] = deque()

        def begin(question: Question) -> None:
            opened = thread.submit(reader.open, question)
            thread.submit(reader.read, opened)
            waiting.append((question, opened))

        def ask(count: int) -> None:
            for each in islice(source, count):
                begin(each)

        try:
            for first in source:
                if on_question is not None:
                    on_question(first)
                begin(first)
                ask(AHEAD_QUESTIONS)
                while waiting:
                    question, video = waiting.popleft()
                    if question is not first and on_question is not None:
                        on_question(question)
                    yield question, partial(reader.take, video)
                    ask(1)
        finally:
            for _, video in waiting:
                video.cancel()


class _Reader:
    """Opens videos one after another, the same one again for questions that follow, and knows what is read ahead."""

    def __init__(self, store: TokenStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._video: StoredVideo | None = None
        self._wanted = False
        # Bytes of videos that no question has taken yet.
        self._held: dict[StoredVideo, int] = {}
        self._changing = threading.Lock()

    def open(self, question: Question) -> StoredVideo:
        """In the reader's thread: the question's video, whose tokens `read` is to read if there is room."""
        before, self._video = self._video, None
        video = self._video = open_video(question, self._store, before)
        with self._changing:
            room = AHEAD_BYTES - sum(self._held.values())
            self._wanted = video is not before and video.cached_bytes <= room
            if self._wanted:
                self._held[video] = video.cached_bytes
        return video

    def read(self, opened: Future[StoredVideo]) -> None:
        """In the reader's thread, right after `open`: its tokens are in memory from then on."""
        # What goes wrong is raised where the question needs its video, or its tokens.
        with suppress(StoreError, UnanswerableError, CancelledError):
            video = opened.result()
            if self._wanted:
                video.read(self._device)

    def take(self, video: Future[StoredVideo]) -> StoredVideo:
        """In the thread of the questions."""
        found = video.result()
        with self._changing:
            self._held.pop(found, None)
        return found
