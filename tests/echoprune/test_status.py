"""How a store stands, from stores with known content."""

from __future__ import annotations

from pathlib import Path

import pytest

from echoprune.errors import NotAStoreError, StoreError
from echoprune.schema import SETTINGS_FILE
from echoprune.status import named, store_status
from echoprune.store import create_store, open_store
from tests import stores as made


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    storage, clips = made.small_store(tmp_path / "store", made.settings())
    storage.write_bytes(SETTINGS_FILE, made.settings().to_json().encode())
    found = store_status(tmp_path / "store")
    videos = open_store(tmp_path / "store").videos().to_pylist()
    for status in ("ok", "partial", "failed"):
        assert found["videos"][status] == sum(row["status"] == status for row in videos)
    assert found["tokens_kept"] == sum(row["kept"] for row in videos) > 0
    assert found["tokens_seen"] == sum(row["tokens"] for row in videos) >= found["tokens_kept"]
    assert found["cells"] == sum(row["cells"] for row in videos)
    assert found["errors"] == {"missing": 1}
    assert len(found["failures"]) == sum(row["status"] != "ok" for row in videos)
    on_disk = sum(path.stat().st_size for table in ("videos", "cells", "tokens", "failures")
                  for path in (tmp_path / "store" / table).rglob("*.parquet"))  # fmt: skip
    assert found["bytes"] == on_disk
    assert found["last_run"] is None and clips


def test_an_empty_store(tmp_path: Path) -> None:
    create_store(tmp_path / "store", made.settings())
    found = store_status(tmp_path / "store")
    assert found["videos"] == {"ok": 0, "partial": 0, "failed": 0, "missing": 0}
    assert (found["bytes"], found["tokens_kept"], found["failures"]) == (0, 0, [])


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    create_store(tmp_path / "store", made.settings()).write_bytes("run_report.json", b"{half")
    with pytest.raises(StoreError, match=r"run_report\.json is no report of a run"):
        store_status(tmp_path / "store")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError):
        store_status(tmp_path)


def test_a_failure_on_a_line_names_its_video() -> None:
    short = {"uri": "/a  b.mp4", "message": "frames patched by the decoder: 3"}
    assert named(short) == "/a b.mp4: frames patched by the decoder: 3"
    whole = {"uri": "/a  b.mp4", "message": "/a b.mp4: 0 bytes; copy the file again"}
    assert named(whole) == whole["message"]
