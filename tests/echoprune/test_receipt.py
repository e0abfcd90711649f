from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from echoprune.errors import StoreError
from echoprune.receipt import Receipt, read_receipts, sweep, what_counts
from echoprune.storage import Storage
from tests.stores import clip, file_of, settings, small_store, write_shard


def test_a_receipt_survives_json(tmp_path: Path) -> None:
    storage, _ = small_store(tmp_path, settings())
    receipts = read_receipts(storage)
    assert list(receipts) == ["a1", "b2"]
    for receipt in receipts.values():
        assert Receipt.from_json(receipt.to_json(), where="x") == receipt
    assert (receipts["a1"].ok, receipts["a1"].failed) == (2, 1)
    assert {file.table for file in receipts["a1"].files} == {"tokens", "cells", "failures", "videos"}


def test_a_damaged_receipt_is_named(tmp_path: Path) -> None:
    storage, _ = small_store(tmp_path, settings())
    good = json.loads(storage.read_bytes("receipts/a1-1.json"))
    outside = good | {"files": [good["files"][0] | {"name": "secrets/x"}]}
    for text in (
        "",
        "[]",
        "{}",
        json.dumps(good | {"extra": 1}),
        json.dumps(good | {"files": [{}]}),
        json.dumps(outside),
    ):
        storage.write_bytes("receipts/a1-1.json", text.encode())
        with pytest.raises(StoreError, match=r"a1-1\.json is damaged"):
            read_receipts(storage)


def test_a_receipt_of_which_a_word_was_changed_is_damaged_and_one_without_a_digest_is_not(
    tmp_path: Path,
) -> None:
    storage, _ = small_store(tmp_path, settings())
    text = storage.read_bytes("receipts/a1-1.json").decode()
    for before, after in (
        ("2026-05-11T00:00:00", "2027-05-11T00:00:00"),
        ('"here"', '"hers"'),
        ('"generation": 0', '"generation": 1'),
    ):
        storage.write_bytes("receipts/a1-1.json", text.replace(before, after).encode())
        with pytest.raises(StoreError, match="not what its digest says"):
            read_receipts(storage)
    values = json.loads(text)
    del values["digest"]
    storage.write_bytes("receipts/a1-1.json", json.dumps(values).encode())
    assert read_receipts(storage)["a1"] == Receipt.from_json(text, where="x")


def test_a_merge_between_two_pages_of_a_list_hides_nothing(tmp_path: Path) -> None:
    """The list lacks the merged receipt, which came after its page, and what it replaced, which went before theirs."""
    storage, _ = small_store(tmp_path, settings())
    first, second = read_receipts(storage).values()
    merged = replace(first, shard_id="00", ok=4, files=first.files + second.files, replaces=("a1", "b2"))

    class Paged(Storage):
        done = False

        def names(self, prefix: str = "") -> list[str]:
            if not Paged.done and prefix == "receipts":
                Paged.done = True
                storage.write_bytes(merged.name, merged.to_json().encode())
                storage.remove(first.name)
                return [second.name]
            return super().names(prefix)

    assert read_receipts(Paged(tmp_path)) == {"00": merged} and Paged.done


def test_the_newest_generation_replaces_the_others_and_sweep_removes_their_files(tmp_path: Path) -> None:
    made = settings()
    storage, _ = small_store(tmp_path, made)
    before = read_receipts(storage)["b2"]
    write_shard(storage, made, [clip("/archive/new.mp4", made)], shard_id="b2", generation=1)
    receipts = read_receipts(storage)
    assert receipts["b2"].generation == 1 and len(receipts) == 2
    assert file_of(storage, "videos", "b2").startswith("videos/b2.g1-")
    old = sorted(file.name for file in before.files)
    assert sorted(what_counts(storage).left) == old
    assert sorted(sweep(storage).left) == old
    assert sweep(storage).left == []
    assert replace(receipts["b2"], run_id="x") != receipts["b2"]
    assert not (tmp_path / ".tmp").exists()


def test_a_receipt_that_comes_while_its_files_are_swept_goes_too(tmp_path: Path) -> None:
    """A worker of a killed run looked at the lease, and put its receipt after the next run had begun to sweep."""
    storage, _ = small_store(tmp_path, settings())
    late = read_receipts(storage)["b2"]
    storage.remove(late.name)

    class Raced(Storage):
        def remove(self, name: str) -> None:
            super().remove(name)
            if name == late.files[0].name:
                self.write_bytes(late.name, late.to_json().encode())

    swept = sweep(Raced(tmp_path))
    assert late.name in swept.left and list(swept.receipts) == ["a1"]
    assert list(read_receipts(storage)) == ["a1"] and what_counts(storage).left == []


def test_many_receipts_take_little_memory(tmp_path: Path) -> None:
    """Read a thousand at a time, and what all receipts of a run say alike is held once."""
    storage, _ = small_store(tmp_path, settings())
    config = {f"option_{number}": "x" * 40 for number in range(40)}
    alike = replace(read_receipts(storage)["a1"], files=(), config=config, versions={"torch": "2"})
    for number in range(2500):
        Path(storage.url_of(f"receipts/{number:04d}-1.json")).write_text(
            replace(alike, shard_id=f"{number:04d}").to_json()
        )
    tracemalloc.start()
    receipts = read_receipts(storage)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(receipts) == 2502 and receipts["2499"].config == config
    assert receipts["0000"].config is receipts["2499"].config
    # With a config of its own each they took 8 KB apiece, and their texts 3 KB more.
    assert peak_bytes / 2500 < 5000, peak_bytes
