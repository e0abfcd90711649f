"""Python's search for cycles of objects that nothing else refers to, left out where there can be none.

It looks at every object that lives, again and again as more are made: a third of the time that a million planned videos
took, and more than in proportion to their number.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """No such search within the block, or the function that it decorates: for what makes many objects, and no cycle of them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
