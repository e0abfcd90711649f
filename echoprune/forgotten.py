"""Videos that were removed from a store on purpose: forgotten.json, which the plan reads.

A tombstone is a row of the plan, a video in a shard, that counts no longer. Parts of the plan are never rewritten. A video
that is brought back is planned anew, in another shard; its tombstone stays with the old one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from echoprune.errors import StoreError
from echoprune.storage import Storage

FORGOTTEN_FILE = "forgotten.json"


class Tombstone(NamedTuple):
    """A video of a shard of the plan that is forgotten."""

    shard_id: str
    video_id: str


def read_forgotten(storage: Storage) -> set[Tombstone]:
    """All tombstones of a store. Raises StoreError where the file cannot be one."""
    if not storage.exists(FORGOTTEN_FILE):
        return set()
    try:
        entries = json.loads(storage.read_bytes(FORGOTTEN_FILE))
        return {Tombstone(str(entry["shard_id"]), str(entry["video_id"])) for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{storage.url_of(FORGOTTEN_FILE)} is damaged ({error!r}): restore it; without it the next run indexes "
            "forgotten videos again"
        ) from error


def add_forgotten(storage: Storage, tombstones: Iterable[Tombstone]) -> None:
    """Adds tombstones, in one put. Only for the holder of the lease."""
    entries = [each._asdict() for each in sorted(read_forgotten(storage).union(tombstones))]
    text = "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"
    storage.write_bytes(FORGOTTEN_FILE, text.encode())
