"""What follows the encoder's work on a video, done in turn: by a thread beside it, or at once.

The process that asks a GPU for the next segment is to do nothing else: choosing among tokens and copying their rows takes 9 ms a
segment of a core, and a minute of video 75 ms more to be written (`benchmarks.beside`), in which a GPU with 23 ms a segment had
nothing to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Calls that are not done, at most: while a video is written, the GPU has as many segments to go on with, some 90 ms. Each holds its
# tokens on the GPU, 15 to 75 MB, and more where they are computed in float32.
MOST = 4


class InTurn:
    """Calls done one after another, in the order of asking. `start`: called first in the thread that does them.

    `beside`: in a thread of its own; else by whoever asks, before `ask` returns. After a call that raised no other one is
    done: whoever asks again gets what it raised.
    """

    def __init__(self, *, beside: bool, start: Callable[[], object] = lambda: None) -> None:
        self._pool = ThreadPoolExecutor(1, "in-turn", initializer=start) if beside else None
        self._room = threading.Semaphore(MOST)
        self._raised: BaseException | None = None
        self.raised_for: str | None = None

    def ask(self, call: Callable[[], T], *, of: str = "") -> Future[T]:
        """`call` will be done, for `of`; waits while MOST others are not done. Raises what one before it raised, `raised_for`."""
        self._check()
        if self._pool is None:
            done: Future[T] = Future()
            done.set_result(call())
            return done
        self._room.acquire()
        return self._pool.submit(self._do, call, of)

    def _check(self) -> None:
        """Raises what a call raised, if one did."""
        if self._raised is not None:
            raise self._raised

    def _do(self, call: Callable[[], T], of: str) -> T:
        try:
            self._check()
            return call()
        except BaseException as error:
            if self._raised is None:
                self._raised, self.raised_for = error, of
            raise
        finally:
            self._room.release()

    def close(self) -> None:
        """Returns when the call that is being done has ended; those that wait are not done."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
