from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from echoprune.errors import StoreError
from echoprune.receipt import Receipt, read_receipts, sweep, uncovered_files
from tests.stores import clip, settings, small_store, write_shard


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
    good = json.loads(storage.read_bytes("receipts/a1.json"))
    outside = good | {"files": [good["files"][0] | {"name": "secrets/x"}]}
    for text in (
        "",
        "[]",
        "{}",
        json.dumps(good | {"extra": 1}),
        json.dumps(good | {"files": [{}]}),
        json.dumps(outside),
    ):
        storage.write_bytes("receipts/a1.json", text.encode())
        with pytest.raises(StoreError, match=r"a1\.json is damaged"):
            read_receipts(storage)


def test_the_newest_generation_replaces_the_others_and_sweep_removes_their_files(tmp_path: Path) -> None:
    made = settings()
    storage, _ = small_store(tmp_path, made)
    before = read_receipts(storage)["b2"]
    write_shard(storage, made, [clip("/archive/new.mp4", made)], shard_id="b2", generation=1)
    receipts = read_receipts(storage)
    assert receipts["b2"].generation == 1 and len(receipts) == 2
    assert "videos/b2.g1.parquet" in {file.name for file in receipts["b2"].files}
    old = sorted(file.name for file in before.files)
    assert sorted(uncovered_files(storage, receipts.values())) == old
    assert sorted(sweep(storage)) == old
    assert sweep(storage) == []
    assert replace(receipts["b2"], run_id="x") != receipts["b2"]
    assert not (tmp_path / ".tmp").exists()
