from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune import store_files
from echoprune.errors import StoreError
from echoprune.plan import Source, extend_plan
from echoprune.storage import Storage
from echoprune.store import create_store, open_store
from echoprune.store_files import TOGETHER, column_values, in_one
from echoprune.verify import verify
from pipelines.maintain import run_forget
from tests.stores import clip, file_of, settings, small_store, write_shard


def test_row_groups_are_the_whole_table_in_order(tmp_path: Path) -> None:
    made_with = settings()
    storage = create_store(tmp_path, made_with)
    clips = [clip(f"/v/{n}.mp4", made_with, cells=6, seed=n) for n in range(3)]
    write_shard(storage, made_with, clips, row_group_bytes=1900, file_bytes=72_000)
    tables = open_store(tmp_path).tables
    groups = tables.row_groups("tokens", "a1")
    assert len(groups) > 4
    stops = [group.first + group.rows for group in groups]
    assert [group.first for group in groups] == [0, *stops[:-1]] and stops[-1] == sum(
        len(c.kept) for c in clips
    )
    pieces = list(tables.read_groups(groups, ["t", "h"]))
    assert [group for group, _ in pieces] == groups
    assert pieces[0][1].schema.names == ["t", "h"]
    t = np.concatenate([column_values(table["t"]) for _, table in pieces])
    assert t.tolist() == np.concatenate([made.kept // 15 for made in clips]).tolist()
    # In any order, and one alone.
    some = [groups[3], groups[0]]
    assert [len(table) for _, table in tables.read_groups(some, ["emb"])] == [g.rows for g in some]
    assert tables.row_groups("failures", "a1") == []


def test_the_cells_of_long_videos_go_on_in_further_files(tmp_path: Path) -> None:
    """As tokens do, also where a shard is written again; each reader finds all of them."""
    made_with, limit = settings(), 70_000
    storage = create_store(tmp_path, made_with)
    clips = {
        each.uri: each for each in (clip(f"/v/{n}.mp4", made_with, cells=n, keep=0.1) for n in (900, 5, 700))
    }
    sources = [Source(uri, 1000) for uri in clips]
    (shard,) = extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=3)
    ordered = [clips[source.uri] for source in shard.sources]
    limits = {"row_group_bytes": 1900, "file_bytes": limit}
    written = write_shard(storage, made_with, ordered, shard_id=shard.shard_id, **limits)
    files = written.files_of("cells")
    assert len(files) > 2 and all(file.size_bytes <= limit for file in files)
    assert sum(file.rows for file in files) == 1605 and list(verify(tmp_path)) == []
    for _ in range(2):
        store = open_store(tmp_path)
        for each in ordered:
            cells = store.cells(each.uri)
            assert cells["t"].to_pylist() == list(range(each.grid_thw[0]))
            assert set(cells["video_id"].to_pylist()) == {each.video_id}
            assert np.array_equal(store.tokens(each.uri).flat_index, each.kept)
        if len(ordered) == 3:
            run_forget(tmp_path, [ordered.pop().uri])
    assert list(verify(tmp_path)) == []


@pytest.mark.parametrize("readers", [1, 4])
def test_a_stretch_of_rows_is_read_in_order_by_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    monkeypatch.setattr(store_files, "READERS", readers)
    made_with = settings()
    storage = create_store(tmp_path, made_with)
    clips = [clip(f"/v/{n}.mp4", made_with, cells=60, seed=n) for n in range(3)]
    written = write_shard(storage, made_with, clips, row_group_bytes=1900, file_bytes=90_000)
    assert len(written.files_of("tokens")) > 1
    tables = open_store(tmp_path).tables
    whole = np.concatenate([made.kept for made in clips])
    opened: Counter[str] = Counter()
    plain_open = Storage.open_input
    monkeypatch.setattr(
        Storage, "open_input", lambda self, name: (opened.update([name]), plain_open(self, name))[1]
    )

    def place(rows: pa.Table, at: int) -> tuple[int, list[int]]:
        t, h, w = (column_values(rows[name]).astype(int) for name in "thw")
        return at, (t * 15 + h * 5 + w).tolist()

    for first, count in [(0, len(whole)), (3, 1), (17, 900), (len(whole) - 2, 2), (5, 0)]:
        pieces = list(tables.rows("tokens", "a1", first, count, columns=["t", "h", "w"], take=place))
        assert [at for at, _ in pieces] == np.cumsum([0, *(len(kept) for _, kept in pieces[:-1])]).tolist()[
            : len(pieces)
        ]
        assert [kept for _, part in pieces for kept in part] == whole[first : first + count].tolist()
    assert max(opened.values()) <= 5 * readers


def test_damage_that_a_thread_meets_is_named(tmp_path: Path) -> None:
    made_with = settings(dim=512)
    storage = create_store(tmp_path, made_with)
    write_shard(storage, made_with, [clip("/a.mp4", made_with, cells=60)], row_group_bytes=100_000)
    name = file_of(storage, "tokens")
    group = pq.read_metadata(tmp_path / name).row_group(3)
    at = group.column(group.num_columns - 1).data_page_offset + 1000
    data = bytearray((tmp_path / name).read_bytes())
    data[at] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StoreError, match=r"a1-0000-\w+\.parquet is damaged .*remove receipts/a1-\*\.json"):
        open_store(tmp_path).tokens("/a.mp4")
    read = open_store(tmp_path).token_chunks("/a.mp4")
    assert len(next(read)) and len(next(read)) and len(next(read))
    with pytest.raises(StoreError, match=r"a1-0000-\w+\.parquet is damaged"):
        next(read)


def test_a_column_in_one_piece_is_not_copied() -> None:
    column = pa.chunked_array([pa.array([b"ab", b"cd", b"ef"], pa.binary(2))])
    values = column_values(column)
    assert values.tolist() == [[97, 98], [99, 100], [101, 102]]
    assert values.ctypes.data == column.chunk(0).buffers()[1].address
    twice = pa.chunked_array([column.chunk(0), column.chunk(0)])
    assert column_values(twice.slice(2, 2)).tolist() == [[101, 102], [97, 98]]
    assert column_values(column.slice(3)).shape == (0, 2)


def test_rows_of_one_video(tmp_path: Path) -> None:
    _, clips = small_store(tmp_path, settings())
    store = open_store(tmp_path)
    for made in clips:
        pieces = list(store.video_rows("tokens", made.video_id, ["w", "t"]))
        assert {tuple(piece.schema.names) for piece in pieces} == {("w", "t")}
        assert np.concatenate([column_values(p["w"]) for p in pieces]).tolist() == (made.kept % 5).tolist()
        (cells,) = store.video_rows("cells", made.video_id, ["t"])
        assert cells["t"].to_pylist() == list(range(made.grid_thw[0]))


def test_bytes_keep_their_rows(tmp_path: Path) -> None:
    _, clips = small_store(tmp_path, settings())
    tables = open_store(tmp_path).tables
    ((_, table),) = tables.read_groups(tables.row_groups("tokens", "a1")[:1], ["emb"])
    expected = clips[0].tokens[clips[0].kept].numpy()
    values = column_values(table["emb"].slice(3, 4))
    assert values.shape == (4, 96) and values.view("<f4").tolist() == expected[3:7].tolist()


def test_damage_is_named(tmp_path: Path) -> None:
    small_store(tmp_path, settings())
    store = open_store(tmp_path)
    name = store.files("tokens")[1]
    groups = store.tables.row_groups("tokens", "b2")
    (tmp_path / name).write_bytes(b"PAR1")
    for read in (
        lambda: store.tables.row_groups("tokens", "b2"),
        lambda: list(store.tables.read_groups(groups, ["t"])),
    ):
        with pytest.raises(StoreError, match=r"damaged .*remove receipts/b2-\*\.json"):
            read()


def test_a_table_of_many_small_ones_is_made_without_keeping_them() -> None:
    """Ten thousand shards of a video each took `status` 460 MB: every one's own table was kept until the last was read."""
    gone: list[int] = []
    most = 0

    def read() -> Iterator[pa.Table]:
        nonlocal most
        for number in range(4 * TOGETHER + 3):
            table = pa.table({"number": [number], "text": [str(number)]})
            weakref.finalize(table, gone.append, number)
            most = max(most, number + 1 - len(gone))
            yield table

    found = in_one(read())
    assert found is not None and found["number"].to_pylist() == list(range(4 * TOGETHER + 3))
    assert found["number"].num_chunks == 4 + 3
    assert most <= TOGETHER + 2


def test_no_tables_are_none_and_columns_that_some_lack_are_null() -> None:
    assert in_one(iter(())) is None
    tables = [pa.table({"a": [1]}), pa.table({"a": [2], "b": ["x"]})]
    found = in_one(tables, promote="permissive")
    assert found is not None and found.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
