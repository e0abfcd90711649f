"""What follows the encoder's work on a video, done in turn: by threads beside it, or at once.

The process that asks a GPU for the next segment is to do nothing else: choosing among tokens and copying their rows takes 9 ms a
segment of a core, and a minute of video 75 ms more to be written (`benchmarks.beside`), in which a GPU with 23 ms a segment had
nothing to do. One thread for both took 31 ms a segment on a machine whose GPU took 22: each has its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class InTurn:
    """Calls done one after another in each of some lanes, in the order of asking. `start`: called first in each lane's thread.

    `lanes`: how many calls of each are not done at most. `beside`: a thread for each; else they are done by whoever asks, before
    `ask` returns. A call of one lane may wait for one of a lane before it. After a call that raised no other one is done in any
    lane: whoever asks again gets what it raised.
    """

    def __init__(
        self, lanes: Mapping[str, int], *, beside: bool, start: Callable[[], object] = lambda: None
    ) -> None:
        self._pools = {
            lane: ThreadPoolExecutor(1, f"in-turn-{lane}", initializer=start) for lane in lanes if beside
        }
        self._room = {lane: threading.Semaphore(most) for lane, most in lanes.items()}
        # The first one, and what it was raised for: set once, together.
        self._raised: tuple[BaseException, str] | None = None
        self._raising = threading.Lock()

    @property
    def raised_for(self) -> str | None:
        """What the call was for that raised, if one did."""
        return None if self._raised is None else self._raised[1]

    def ask(self, lane: str, call: Callable[[], T], *, of: str = "") -> Future[T]:
        """`call` will be done, for `of`; waits while too many others of `lane` are not done. Raises what one raised before."""
        self._check()
        if not self._pools:
            done: Future[T] = Future()
            done.set_result(call())
            return done
        self._room[lane].acquire()
        return self._pools[lane].submit(self._do, lane, call, of)

    def _check(self) -> None:
        """Raises what a call raised, if one did."""
        if self._raised is not None:
            raise self._raised[0]

    def _do(self, lane: str, call: Callable[[], T], of: str) -> T:
        try:
            self._check()
            return call()
        except BaseException as error:
            with self._raising:
                self._raised = self._raised or (error, of)
            raise
        finally:
            self._room[lane].release()

    def close(self) -> None:
        """Returns when the calls that are being done have ended; those that wait are not done."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools.values():
            pool.shutdown()
