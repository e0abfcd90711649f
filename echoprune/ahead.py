"""Work done ahead in threads, a bounded number of items at a time, its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(call: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """`call(item)` of each item, in the order of `items`, which the reader's thread walks through.

    At most `threads` results are under way or wait to be taken, beside the one that was taken last. What `call` raises is
    raised where its result would have come; calls that have not begun by then, or when the iterator is closed, never do.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    source = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            waiting.extend(pool.submit(call, item) for item in islice(source, threads))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(call, item) for item in islice(source, 1))
                yield result
        finally:
            for each in waiting:
                each.cancel()
