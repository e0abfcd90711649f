"""Every kind of damage is found, and a sound store gives no finding."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.errors import NotAStoreError, StoreError
from echoprune.forgotten import Tombstone, add_forgotten
from echoprune.plan import Source, extend_plan, load_plan
from echoprune.receipt import StoredFile, read_receipts
from echoprune.storage import Storage
from echoprune.verify import verify
from tests import answer_folders
from tests import stores as made

BAD = "/archive/bad.mp4"


def edit(storage: Storage, table: str, change: Callable[[pa.Table], pa.Table]) -> str:
    """Writes the first file of a table again with other rows, and a receipt that fits: what only reading the rows can find."""
    receipt = next(r for r in read_receipts(storage).values() if r.files_of(table))
    old = receipt.files_of(table)[0]
    path = Path(storage.url) / old.name
    before = pq.read_table(path)
    after = change(before)
    pq.write_table(after.cast(before.schema), path, write_page_checksum=True)
    data = path.read_bytes()
    new = StoredFile(old.name, len(after), len(data), hashlib.sha256(data).hexdigest())
    files = tuple(new if file == old else file for file in receipt.files)
    storage.write_bytes(receipt.name, replace(receipt, files=files).to_json().encode())
    return old.name


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    at = table.schema.get_field_index(column)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def swapped(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, len(table))])


def raw(value: float, width: int) -> bytes:
    return np.full(width // 4, value, "<f4").tobytes()


ROWS: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "places": ("tokens", swapped, "places do not ascend"),
    "outside": ("tokens", lambda t: with_value(t, "h", 0, 99), "outside of its"),
    "nan score": ("tokens", lambda t: with_value(t, "echo", 3, float("nan")), "echo is not finite"),
    "inf score": (
        "tokens",
        lambda t: with_value(t, "correspondence", 3, float("inf")),
        "correspondence is not finite",
    ),
    "nan vector": (
        "tokens",
        lambda t: with_value(t, "emb", 2, raw(float("nan"), t.schema.field("emb").type.byte_width)),
        "emb is not finite",
    ),
    "lost token": ("tokens", lambda t: t.slice(0, len(t) - 1), "tokens, its videos say"),
    "foreign token": ("tokens", lambda t: with_value(t, "video_id", 1, "f" * 20), "rows of another video"),
    "cell order": ("cells", swapped, "t does not count"),
    "cell kept": ("cells", lambda t: with_value(t, "kept", 0, 99), "its cells say"),
    "cell time": ("cells", lambda t: with_value(t, "time_s", 1, -1.0), "time_s does not ascend"),
    "cell radius": ("cells", lambda t: with_value(t, "radius", 0, float("nan")), "radius is not finite"),
    "anchors": ("cells", lambda t: with_value(t, "anchor", 0, False), "of its cells are anchors"),
    "lost cell": ("cells", lambda t: t.slice(0, len(t) - 1), "cells, its videos say"),
    "status": ("videos", lambda t: with_value(t, "status", 0, "partial"), "partial videos, videos has"),
    "lost video": ("videos", lambda t: t.slice(0, len(t) - 1), "has no row, though its shard"),
    "twice": ("videos", lambda t: pa.concat_tables([t, t.slice(0, 1)]), "has 2 rows in videos"),
    "other id": ("videos", lambda t: with_value(t, "video_id", 0, "e" * 20), "not that of its uri"),
    "token_row": ("videos", lambda t: with_value(t, "token_row", 0, 5), "token_row is 5"),
    "stray failure": ("failures", lambda t: with_value(t, "video_id", 0, "d" * 20), "which it does not hold"),
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
def test_a_sound_store_gives_no_finding(tmp_path: Path, dtype: str) -> None:
    settings = made.settings(dtype=dtype, deepstack_layers=1)
    storage, _ = made.planned_store(tmp_path, settings, failed=[BAD])
    seen = []
    assert list(verify(storage.url, on_shard=lambda done, of: seen.append((done, of)))) == []
    assert list(verify(storage.url, quick=True)) == [] and seen[-1] == (3, 3)


@pytest.mark.parametrize("kind", list(ROWS))
def test_wrong_rows_are_found(tmp_path: Path, kind: str) -> None:
    table, change, says = ROWS[kind]
    storage, _ = made.planned_store(tmp_path, made.settings(), failed=[BAD])
    edit(storage, table, change)
    found = list(verify(storage.url))
    assert any(says in line for line in found), found
    quick = list(verify(storage.url, quick=True))
    assert any(says in line for line in quick) or kind == "nan vector"


def test_damaged_files_are_found_and_hide_nothing_else(tmp_path: Path) -> None:
    storage, _ = made.planned_store(tmp_path, made.settings(), failed=[BAD], shard_videos=2)
    first, second, third, *_ = read_receipts(storage).values()
    flipped = tmp_path / first.files_of("tokens")[0].name
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    (tmp_path / second.files_of("cells")[0].name).unlink()
    cut = tmp_path / third.files_of("videos")[0].name
    cut.write_bytes(cut.read_bytes()[:-10])
    found = list(verify(storage.url))
    assert [line for line in found if "differs from its receipt (sha256)" in line and first.shard_id in line]
    assert [line for line in found if "is missing" in line and second.shard_id in line]
    assert [line for line in found if "its receipt says" in line and third.shard_id in line]
    assert len(found) == 3 and not any("\n" in line for line in found)


def test_what_receipts_and_plan_lack_is_found(tmp_path: Path) -> None:
    storage, _ = made.planned_store(tmp_path, made.settings(), failed=[BAD])
    receipt = next(iter(read_receipts(storage).values()))
    storage.remove(receipt.name)
    found = list(verify(storage.url))
    assert "3 of 7 planned videos are not indexed yet: run index again" in found
    assert sum("has no receipt, and globs read it" in line for line in found) == len(receipt.files)
    storage.write_bytes(receipt.name, b"{half")
    (line,) = verify(storage.url)
    assert "is damaged" in line
    storage.write_bytes(receipt.name, receipt.to_json().encode())
    row = load_plan(storage).table.to_pylist()[0]
    add_forgotten(storage, [Tombstone(row["shard_id"], row["video_id"])])
    assert any("holds a video that is forgotten" in line for line in verify(storage.url))


def test_what_became_of_the_plan_is_found(tmp_path: Path) -> None:
    storage, clips = made.planned_store(tmp_path, made.settings(), failed=[BAD])
    first = storage.read_bytes("plan/part-0000.parquet")
    storage.remove("plan/part-0000.parquet")
    assert "7 videos are stored, and no plan has them: restore plan/" in list(verify(storage.url))
    storage.write_bytes("plan/part-0001.parquet", first)
    (line,) = verify(storage.url)
    assert "part-0000.parquet is missing" in line
    storage.remove("plan/part-0001.parquet")
    table = pq.read_table(pa.BufferReader(first))
    for column, value in (("etag", "other"), ("size_bytes", 7), ("video_id", "c" * 20)):
        with (tmp_path / "plan/part-0000.parquet").open("wb") as file:
            pq.write_table(with_value(table, column, 1, value), file)
        assert any("has other videos than it was planned with" in line for line in verify(storage.url)), (
            column
        )
    storage.write_bytes("plan/part-0000.parquet", first)
    assert list(verify(storage.url)) == []
    add_forgotten(storage, [Tombstone("no shard", "no video")])
    (line,) = verify(storage.url)
    assert "which the plan has not" in line and len(clips) == 6


def test_every_file_cut_flipped_emptied_swapped_and_deleted(tmp_path: Path) -> None:
    """Damage to any file at any place is found, but to the space between the words of JSON.

    And to bytes of the plan that no reader minds, since nothing holds the hash of a part.
    """
    storage, _ = made.planned_store(tmp_path, made.settings(), failed=[BAD], count=3, shard_videos=2)
    files, plan = storage.read_many(storage.names()), load_plan(storage).table
    assert len(files) == 11 and list(verify(storage.url)) == []

    def found() -> bool:
        try:
            return bool(list(verify(storage.url)))
        except StoreError:
            return True

    unseen = []
    for name, data in files.items():
        path = tmp_path / name
        text = name.endswith(".json")
        spots = range(3, len(data) - 1, max(1, len(data) // 20))
        damaged = {f"cut at {at}": data[:at] for at in (0, 1, len(data) // 2, len(data) - 2)}
        damaged |= {
            f"flip {at}": data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            for at in spots
            if not (text and data[at] in b" \n")
        }
        damaged |= {f"is {other}": files[other] for other in files if other != name and files[other] != data}
        for kind, content in damaged.items():
            path.write_bytes(content)
            if not found() and not (name.startswith("plan/") and load_plan(storage).table == plan):
                unseen.append(f"{name} {kind}")
        path.unlink()
        if not found():
            unseen.append(f"{name} deleted")
        path.write_bytes(data)
    assert unseen == [] and list(verify(storage.url)) == []


def test_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="neither a store"):
        list(verify(tmp_path))
    made.create_store(tmp_path / "store", made.settings())
    assert list(verify(tmp_path / "store")) == []
    (tmp_path / "store/store.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(StoreError, match="schema_version 99"):
        list(verify(tmp_path / "store"))


def test_answers_too(tmp_path: Path) -> None:
    rows = [answer_folders.answer(name, "what?", "a cat") for name in ("q1", "q2")]
    answer_folders.write_answers(tmp_path, "a1", rows)
    found = list(verify(tmp_path))
    assert found == ["2 answers for 0 planned questions: run the same command again"]
    answer_folders.write_answers(tmp_path, "b2", rows[:1])
    assert "question q1 has 2 rows" in list(verify(tmp_path))
    (tmp_path / "answers/a1.parquet").write_bytes(b"PAR1")
    assert any("a1.parquet has 4 bytes" in line for line in verify(tmp_path))
    (tmp_path / "answers.json").write_bytes(b"{half")
    with pytest.raises(StoreError, match=r"answers\.json is not JSON"):
        list(verify(tmp_path))


def test_memory_is_that_of_a_row_group(tmp_path: Path) -> None:
    settings = made.settings(dim=256)
    storage = made.create_store(tmp_path, settings)
    clips = [made.clip(f"/{i}.mp4", settings, cells=120, grid_hw=(8, 8), keep=1, seed=i) for i in range(8)]
    sources = [Source(clip.uri, 1000) for clip in clips]
    (shard,) = extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=99)
    made.write_shard(storage, settings, clips, shard_id=shard.shard_id, row_group_bytes=1 << 20)
    before = pa.total_allocated_bytes()
    peak = 0

    def measure(_: int, __: int) -> None:
        nonlocal peak
        peak = max(peak, tracemalloc.get_traced_memory()[1])

    tracemalloc.start()
    try:
        assert list(verify(tmp_path, on_shard=measure)) == []
    finally:
        tracemalloc.stop()
    size = sum(path.stat().st_size for path in tmp_path.rglob("tokens/*"))
    assert size > 50 << 20 and peak < 12 << 20
    assert pa.total_allocated_bytes() - before < 12 << 20
