"""Receipts: the one thing that says a shard is done, and what it consists of.

A receipt is written after all files of its shard. Readers look only at files that a receipt names, so that
whatever a killed run left behind is invisible. A retry writes the shard again under the next generation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from echoprune.errors import StoreError
from echoprune.schema import TABLES
from echoprune.storage import Storage

RECEIPTS = "receipts"
# The folder of an answer run has receipts of the same form, for one table.
ANSWERS = "answers"
_TABLES = (*TABLES, ANSWERS)


@dataclass(frozen=True)
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

    @property
    def name(self) -> str:
        """Its own name in the store; the same for every generation, so that the newest replaces the others."""
        return f"{RECEIPTS}/{self.shard_id}.json"

    def files_of(self, table: str) -> list[StoredFile]:
        """The files of one table, in the order in which their rows count."""
        return sorted((file for file in self.files if file.table == table), key=lambda file: file.name)

    def to_json(self) -> str:
        """The text of the receipt file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Receipt:
        """The receipt in a file; StoreError naming `where` if it cannot be one."""
        try:
            values = json.loads(text)
            if set(values) != {field.name for field in fields(cls)}:
                raise ValueError(f"it has the fields {sorted(values)}")
            values["files"] = tuple(StoredFile(**entry) for entry in values["files"])
            for entry in values["files"]:
                if entry.table not in _TABLES or not isinstance(entry.rows, int):
                    raise ValueError(f"{entry.name!r} is no table file")
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"receipt {where} is damaged ({error}): remove it and run the same command again, which redoes that shard"
            ) from error


def read_receipts(storage: Storage) -> dict[str, Receipt]:
    """The receipts of all finished shards by shard id, in order of the id; empty if there are none."""
    names = [name for name in storage.names(RECEIPTS) if name.endswith(".json")]
    texts = storage.read_many(names)
    receipts = (Receipt.from_json(texts[name], where=storage.url_of(name)) for name in names)
    return {receipt.shard_id: receipt for receipt in receipts}


def uncovered_files(storage: Storage, receipts: Iterable[Receipt]) -> list[str]:
    """Names of table files that no receipt covers: left by killed runs and by shards that were retried."""
    covered = {file.name for receipt in receipts for file in receipt.files}
    return [name for table in _TABLES for name in storage.names(table) if name not in covered]


def sweep(storage: Storage) -> list[str]:
    """Names of the uncovered files, which are removed, with all temporary files. Only for the holder of the lease.

    Afterwards a plain glob over the tables of a finished store reads the same rows as the receipts give.
    """
    names = uncovered_files(storage, read_receipts(storage).values())
    for name in names:
        storage.remove(name)
    storage.clear_tmp()
    return names
