"""The list of forgotten videos as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from echoprune.errors import StoreError
from echoprune.forgotten import FORGOTTEN_FILE, Tombstone, add_forgotten, read_forgotten
from echoprune.storage import Storage

ONE, TWO = Tombstone("a1", "v1"), Tombstone("b2", "v1")


def test_tombstones_add_up(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert read_forgotten(storage) == set()
    add_forgotten(storage, [TWO])
    first = storage.read_bytes(FORGOTTEN_FILE)
    add_forgotten(storage, [ONE, TWO])
    assert read_forgotten(storage) == {ONE, TWO}
    add_forgotten(storage, [])
    assert len(storage.read_bytes(FORGOTTEN_FILE).splitlines()) == 4 and len(first.splitlines()) == 3


@pytest.mark.parametrize("text", ["", "{}x", '[{"shard_id": "a"}]', "[1]", "3"])
def test_a_damaged_list_is_named_and_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes(FORGOTTEN_FILE, text.encode())
    with pytest.raises(StoreError, match=r"forgotten\.json is damaged"):
        read_forgotten(storage)
