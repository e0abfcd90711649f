from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from echoprune.errors import StoreError
from echoprune.store import create_store, open_store
from echoprune.store_files import column_values
from tests.stores import clip, settings, small_store, write_shard


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
        with pytest.raises(StoreError, match=r"damaged .*remove receipts/b2\.json"):
            read()
