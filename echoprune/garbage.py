"""Files of a store, or of a folder of answers, that nothing counts: found and removed.

They are what killed runs left behind, generations that a newer receipt superseded, and unfinished files in `.tmp`. No
reader of receipts sees any of them; a glob over a table does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from echoprune.receipt import what_counts
from echoprune.storage import Storage


@dataclass(frozen=True)
class Garbage:
    """`files`: bytes of each table file without a receipt, and of receipts that do not count, by name; `unfinished`: how many files of `.tmp`, and bytes."""

    files: dict[str, int]
    unfinished: tuple[int, int]

    @property
    def count(self) -> int:
        """How many files."""
        return len(self.files) + self.unfinished[0]

    @property
    def size_bytes(self) -> int:
        """Their bytes."""
        return sum(self.files.values()) + self.unfinished[1]


def find_garbage(storage: Storage) -> Garbage:
    """What `collect_garbage` would remove. While a run is writing, the files of its open shards are among it.

    Raises StoreError where a receipt is damaged: what it covers is not known then.
    """
    names = what_counts(storage).left
    sizes = storage.sizes() if names else {}
    return Garbage({name: sizes[name] for name in names if name in sizes}, storage.unfinished())


def collect_garbage(storage: Storage, *, check_epoch: Callable[[], None]) -> Garbage:
    """What was removed. Only for the holder of the lease, which `check_epoch` makes sure of before each file."""
    found = find_garbage(storage)
    for name in found.files:
        check_epoch()
        storage.remove(name)
    check_epoch()
    storage.clear_tmp()
    return found
