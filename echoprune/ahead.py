"""Work done ahead in threads, a bounded number of items at a time, its results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Of all calls of a process together: four that read a store with 16 each.
THREADS_AT_MOST = 64


def ahead(call: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """`call(item)` of each item, in the order of `items`, which the reader's thread walks through.

    At most `threads` results are under way or wait to be taken, beside the one that was taken last. What `call` raises is
    raised where its result would have come; calls that have not begun by then, or when the iterator is closed, never do, and
    none is under way any more. `call` must not do work ahead itself: its threads are those of all.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    source, process = iter(items), os.getpid()
    waiting: deque[Future[Result]] = deque()
    try:
        waiting.extend(_threads().submit(call, item) for item in islice(source, threads))
        while waiting:
            # Taken out when it is there: an interrupt meanwhile leaves it to the end below.
            result = waiting[0].result()
            waiting.popleft()
            waiting.extend(_threads().submit(call, item) for item in islice(source, 1))
            yield result
    finally:
        under_way = [each for each in waiting if not each.cancel()]
        # In a process that was forked meanwhile they are under way for ever.
        if os.getpid() == process:
            wait(under_way)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that stay: one that starts waits for those that run Python, 3 ms each when 9 began for one question."""
    return ThreadPoolExecutor(THREADS_AT_MOST, thread_name_prefix="ahead")


# A process that was forked has none of its parent's threads.
os.register_at_fork(after_in_child=_threads.cache_clear)
