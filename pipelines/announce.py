"""Telling what is about to happen from deep inside a call, before it happens.

A Ray actor tells its driver by yielding, and what it calls tells it by a callback: the call runs in a thread, and each
thing told is yielded, and taken by the driver, before the callback returns. So a death is blamed on the right item.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Closed(BaseException):
    """Ends the call when nobody listens any more; no `except Exception` on its way may stop it."""


class _Channel(Generic[T]):
    """One slot between the call's thread and the generator."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[tuple[str, T | BaseException | None]] = queue.SimpleQueue()
        self._taken = threading.Semaphore(0)
        self._closed = False

    def tell(self, thing: T) -> None:
        """Returns when `thing` was taken."""
        if self._closed:
            raise _Closed
        self._told.put(("told", thing))
        self._taken.acquire()
        if self._closed:
            raise _Closed

    def run(self, call: Callable[[Callable[[T], None]], None]) -> None:
        """The thread's body."""
        try:
            call(self.tell)
        except BaseException as error:  # noqa: BLE001 - raised in the generator
            self._told.put(("raised", error))
        else:
            self._told.put(("done", None))

    def things(self) -> Generator[T, None, None]:
        """What is told, until the call ends; raises what it raised."""
        while True:
            what, thing = self._told.get()
            if what == "done":
                return
            if isinstance(thing, BaseException):
                raise thing
            assert thing is not None
            yield thing
            self._taken.release()

    def close(self) -> None:
        """The call ends the next time that it tells something."""
        self._closed = True
        self._taken.release()


def told(call: Callable[[Callable[[T], None]], None]) -> Generator[T, None, None]:
    """What `call(tell)` tells, one after another: `tell(x)` returns once the reader asks for what comes after x.

    Raises what `call` raises. If the generator is closed early, the call ends when it next tells something.
    """
    channel: _Channel[T] = _Channel()
    thread = threading.Thread(target=channel.run, args=(call,), name="told", daemon=True)
    thread.start()
    try:
        yield from channel.things()
    finally:
        channel.close()
