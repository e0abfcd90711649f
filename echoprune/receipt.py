"""Receipts: the one thing that says a shard is done, and what it consists of.

A receipt is written after all files of its shard. Readers look only at files that a receipt names, so that
whatever a killed run left behind is invisible. A retry writes the shard again under the next generation.

Two writers of one shard, one of which has lost the store and does not know it, do no harm: files are named by their
content, receipts by the lease, and the newest lease counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

from echoprune.cycles import no_search_for_cycles
from echoprune.errors import StoreError
from echoprune.schema import TABLES
from echoprune.storage import Storage, checked_name

RECEIPTS = "receipts"
# The folder of an answer run has receipts of the same form, for one table.
ANSWERS = "answers"
_TABLES = (*TABLES, ANSWERS)
# Texts in memory at once: those of 100,000 receipts would be 250 MB.
_READ_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One committed file: its name in the store, rows, bytes and the sha256 of its content in hex."""

    name: str
    rows: int
    size_bytes: int
    sha256: str

    @property
    def table(self) -> str:
        """The table it belongs to: the first part of its name."""
        return self.name.split("/", 1)[0]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one commit of one shard wrote, and who wrote it when.

    `ok`, `partial`, `failed` count its videos; of an answer run its questions, "empty" ones as partial. Times are ISO 8601, UTC. `versions` and `config` are for people.
    `replaces`: ids of the shards whose videos it holds in their place; their own receipts count no longer.
    """

    shard_id: str
    generation: int
    files: tuple[StoredFile, ...]
    ok: int
    partial: int
    failed: int
    lease_epoch: int
    run_id: str
    host: str
    started_at: str
    finished_at: str
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its own name in the store: of its shard, and of the lease that it was written under.

        So a writer that has lost the store may put its receipt beside its successor's, and never in its place.
        """
        return receipt_name(self.shard_id, lease_epoch=self.lease_epoch)

    @property
    def planned(self) -> tuple[str, ...]:
        """The ids under which its videos are planned, and its own."""
        return (self.shard_id, *self.replaces)

    @property
    def videos(self) -> int:
        """How many videos it holds; of an answer run how many questions."""
        return self.ok + self.partial + self.failed

    @property
    def size_bytes(self) -> int:
        """The bytes of its files."""
        return sum(file.size_bytes for file in self.files)

    def files_of(self, table: str) -> list[StoredFile]:
        """The files of one table, in the order in which their rows count."""
        return sorted((file for file in self.files if file.table == table), key=lambda file: file.name)

    def to_json(self) -> str:
        """The text of the receipt file: its fields, and `digest`, by which damage to them is found."""
        values = asdict(self)
        return json.dumps(values | {"digest": _digest(values)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Receipt:
        """The receipt in a file; StoreError naming `where` if it cannot be one."""
        try:
            values = json.loads(text)
            # Receipts of stores that were made before there was a `digest` or a `replaces` lack them.
            digest = values.pop("digest", None)
            if digest is not None and digest != _digest(values):
                raise ValueError("its content is not what its digest says")
            if set(values) | {"replaces"} != {field.name for field in fields(cls)}:
                raise ValueError(f"it has the fields {sorted(values)}")
            values["replaces"] = tuple(map(str, values.get("replaces", ())))
            for name in ("versions", "config"):
                values[name] = _shared(json.dumps(values[name]))
            values["files"] = tuple(StoredFile(**entry) for entry in values["files"])
            # Ids become names of files.
            for each in (values["shard_id"], *values["replaces"]):
                if not isinstance(each, str) or "/" in checked_name(each):
                    raise ValueError(f"{each!r} is no id of a shard")
            for count in ("generation", "ok", "partial", "failed", "lease_epoch"):
                if not isinstance(values[count], int):
                    raise ValueError(f"{count} is {values[count]!r}")
            for entry in values["files"]:
                if entry.table not in _TABLES or not isinstance(entry.rows, int):
                    raise ValueError(f"{entry.name!r} is no table file")
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError, StoreError) as error:
            raise StoreError(
                f"receipt {where} is damaged ({error}): remove it and run the same command again, which redoes that shard"
            ) from error


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _shared(text: str) -> Any:
    """The value of a JSON text, one object for all receipts that say the same: most of a receipt is its run's config."""
    return json.loads(text)


def receipt_name(shard_id: str, *, lease_epoch: int) -> str:
    """The name of the receipt of a shard that is written under a lease."""
    return f"{RECEIPTS}/{shard_id}-{lease_epoch}.json"


def old_receipt_name(name: str) -> str:
    """What the receipt of that name was called before there was a lease in names."""
    return f"{name.rpartition('-')[0]}.json"


def read_receipt(storage: Storage, name: str) -> Receipt:
    """The receipt of that name as it is now; StoreError where there is none, or it is damaged."""
    if not storage.exists(name) and storage.exists(old_receipt_name(name)):
        name = old_receipt_name(name)
    return Receipt.from_json(storage.read_bytes(name), where=storage.url_of(name))


def read_receipts(storage: Storage) -> dict[str, Receipt]:
    """The receipts of all finished shards by shard id, in order of the id; empty if there are none.

    Of each shard the newest; those that another one replaces are left out.
    """
    return standing(_read_all(storage).values())


@no_search_for_cycles()
def _read_all(storage: Storage) -> dict[str, Receipt]:
    """All receipts that there are, by their names."""
    found: dict[str, Receipt] = {}
    listed = 0
    while True:
        names = receipt_names(storage)
        fresh = [name for name in names if name not in found]
        try:
            for first in range(0, len(fresh), _READ_TOGETHER):
                texts = storage.read_many(fresh[first : first + _READ_TOGETHER])
                for name, text in texts.items():
                    found[name] = Receipt.from_json(text, where=storage.url_of(name))
        except StoreError:
            # One was superseded, and removed, between listing and reading.
            if receipt_names(storage) == names:
                raise
            continue
        listed += 1
        # A list is made piece by piece. A receipt that was removed before its turn, and the one in its place that came after
        # its turn, are both not in it; the latter is in the next list.
        if listed > 1 and not any(found[name].replaces or found[name].generation for name in fresh):
            return found


def receipt_names(storage: Storage) -> list[str]:
    """The names of all receipts, sorted."""
    return [name for name in storage.names(RECEIPTS) if name.endswith(".json")]


@no_search_for_cycles()
def standing(receipts: Iterable[Receipt]) -> dict[str, Receipt]:
    """By shard id, in its order, the newest receipt of each shard; without those that another one replaces."""
    ordered = sorted(receipts, key=lambda each: (each.shard_id, each.lease_epoch, each.generation))
    newest = {receipt.shard_id: receipt for receipt in ordered}
    replaced = {shard_id for receipt in newest.values() for shard_id in receipt.replaces}
    return {shard_id: receipt for shard_id, receipt in newest.items() if shard_id not in replaced}


def committed(receipts: Mapping[str, Receipt]) -> dict[str, Receipt]:
    """The receipts by each id of a shard that they stand for, those of shards that they replace included."""
    return {shard_id: receipt for receipt in receipts.values() for shard_id in receipt.planned}


def table_files(storage: Storage) -> list[str]:
    """The names of all table files, whether anything counts them or not."""
    return [name for table in _TABLES for name in storage.names(table)]


@dataclass(frozen=True)
class Counted:
    """What counts in a store: its receipts by shard id; and the names of receipts and table files that do not, in order."""

    receipts: dict[str, Receipt]
    left: list[str]


def what_counts(storage: Storage) -> Counted:
    """What counts. Left are files of killed runs, of generations that were superseded, and the receipts of those.

    A receipt may come late: its writer had lost the store, and its files were removed by the one that followed. It does
    not count where others hold all of its videos; nor where none of its files is there, while those of others are.
    """
    found = _read_all(storage)
    present = table_files(storage)
    there = set(present)
    whole = [each for each in found.values() if all(file.name in there for file in each.files)]
    held = {shard_id for receipt in whole for shard_id in receipt.planned}

    def is_late(receipt: Receipt) -> bool:
        if all(file.name in there for file in receipt.files):
            return False
        if held.issuperset(receipt.replaces or (receipt.shard_id,)):
            return True
        return bool(whole) and not any(file.name in there for file in receipt.files)

    receipts = standing(receipt for receipt in found.values() if not is_late(receipt))
    counted = {id(receipt) for receipt in receipts.values()}
    covered = {file.name for receipt in receipts.values() for file in receipt.files}
    left = [name for name, receipt in found.items() if id(receipt) not in counted]
    return Counted(receipts, sorted(left) + [name for name in present if name not in covered])


def sweep(storage: Storage, *, check_epoch: Callable[[], None] = lambda: None) -> Counted:
    """What counts, after all else was removed, temporary files too. Only for the holder of the lease.

    Afterwards a plain glob over the tables of a finished store reads the same rows as the receipts give. What is to be done
    must follow from the receipts returned here: one that comes later is a late one. `check_epoch` is called before each
    removal, and raises when another run holds the store: it may have written the same file again, and count it.
    """
    known = receipt_names(storage)
    counted = what_counts(storage)
    left = list(counted.left)
    for name in left:
        check_epoch()
        storage.remove(name)
    # A worker of a killed run may have been about to put its receipt, the lease looked at already; its files are gone now.
    for late in sorted(set(receipt_names(storage)).difference(known, left)):
        if not all(storage.exists(file.name) for file in read_receipt(storage, late).files):
            check_epoch()
            storage.remove(late)
            left.append(late)
    check_epoch()
    storage.clear_tmp()
    return Counted(counted.receipts, left)
