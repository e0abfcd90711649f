from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from echoprune.dtype import codec
from echoprune.errors import NoSuchVideoError, StoreError, StoreMismatchError
from echoprune.storage import Storage
from echoprune.store import TokenStore, create_store, open_store
from tests.stores import Clip, clip, file_of, settings, small_store, write_shard


def assert_same(store: TokenStore, made: Clip) -> None:
    """The store gives back the clip's kept tokens, bit for bit (int8: to half a step)."""
    read = store.tokens(made.video_id)
    dtype = store.settings.dtype
    expected = made.tokens[made.kept]
    if dtype == "int8":
        assert read.tokens.dtype == torch.float32
        assert bool(((read.tokens - expected).abs() <= expected.abs().amax(dim=1, keepdim=True) / 250).all())
    else:
        assert torch.equal(read.tokens, expected)
    assert read.flat_index.tolist() == made.kept.tolist() and read.grid_thw == made.grid_thw
    assert torch.equal(read.correspondence, made.correspondence[made.kept])
    assert torch.equal(read.echo, made.echo[made.kept])
    cell = read.positions[:, 0].numpy()
    assert read.times_s.tolist() == made.time_s[cell].tolist() and read.times_s.dtype == torch.float64
    assert read.anchor.tolist() == made.anchor[cell].tolist()
    if made.deepstack is None:
        assert read.deepstack is None
    else:
        assert read.deepstack is not None
        stored = made.deepstack[:, made.kept]
        if dtype == "int8":
            assert torch.allclose(read.deepstack, stored, atol=0.03)
        else:
            assert torch.equal(read.deepstack, codec(dtype).rounded(stored))


@pytest.mark.parametrize("layers", [0, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
def test_what_was_written_is_read(tmp_path: Path, dtype: str, layers: int) -> None:
    made_with = settings(dtype=dtype, deepstack_layers=layers)
    _, clips = small_store(tmp_path, made_with)
    store = open_store(tmp_path)
    assert store.settings == made_with
    for made in clips:
        assert_same(store, made)
        cells = store.cells(made.video_id)
        assert cells["t"].to_pylist() == list(range(made.grid_thw[0]))
        assert set(cells["video_id"].to_pylist()) == {made.video_id}
        per_cell = np.bincount(made.kept // 15, minlength=made.grid_thw[0])
        assert cells["kept"].to_pylist() == per_cell.tolist()
        assert cells["time_s"].to_pylist() == made.time_s.tolist()


def test_videos_over_many_groups_and_files_are_read_whole(tmp_path: Path) -> None:
    made_with = settings()
    storage = create_store(tmp_path, made_with)
    clips = [
        clip(f"/{i}.mp4", made_with, cells=n, keep=0.9, seed=i) for i, n in enumerate((3, 400, 1, 90, 700))
    ]
    limits = {"row_group_bytes": 100 * 112, "file_bytes": 90_000}
    written = write_shard(storage, made_with, clips, **limits)
    assert len(written.files_of("tokens")) > 5
    for made in clips:
        assert_same(open_store(tmp_path), made)
        assert len(open_store(tmp_path).cells(made.uri)) == made.grid_thw[0]


def test_only_the_needed_row_groups_are_read(tmp_path: Path) -> None:
    made_with = settings(dim=512)
    storage = create_store(tmp_path, made_with)
    clips = [clip(f"/{i}.mp4", made_with, cells=10, keep=2.0, seed=i) for i in range(10)]
    write_shard(storage, made_with, clips, row_group_bytes=150 * (2048 + 16))
    name = file_of(tmp_path, "tokens")
    path = tmp_path / name
    group = pq.read_metadata(path).row_group(0)
    (column,) = (group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "emb")
    # Damage within the first video's vectors does not touch the others, and is seen in the first.
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    assert_same(open_store(tmp_path), clips[5])
    with pytest.raises(
        StoreError, match=r"tokens/a1-0000-\w+\.parquet is damaged .*remove receipts/a1-\*\.json"
    ):
        open_store(tmp_path).tokens(clips[0].uri)
    assert open_store(tmp_path).verify() == [f"{name} differs from its receipt"]


def test_a_video_that_keeps_nothing_has_an_empty_set(tmp_path: Path) -> None:
    made_with = settings(deepstack_layers=1, dtype="bf16")
    storage = create_store(tmp_path, made_with)
    made = clip("/still.mp4", made_with, keep=-1.0)
    write_shard(storage, made_with, [made])
    assert len(open_store(tmp_path).tokens("/still.mp4")) == 0
    assert len(open_store(tmp_path).cells("/still.mp4")) == 4


def test_videos_are_named_by_id_uri_path_or_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, clips = small_store(tmp_path, settings())
    write_shard(storage, settings(), [clip("/other/ä clip 3.mp4", settings())], shard_id="c3")
    store = open_store(tmp_path)
    assert store.videos()["uri"].to_pylist() == sorted(store.videos()["uri"].to_pylist())
    monkeypatch.chdir("/")
    for name in (
        clips[0].video_id,
        clips[0].uri,
        "ä clip 0.mp4",
        "archive/ä clip 0.mp4",
        "/x/../archive/ä clip 0.mp4",
    ):
        assert store.resolve(name) == clips[0].video_id
    with pytest.raises(StoreError, match=r"2 videos are named ä clip 3\.mp4, such as /archive/"):
        store.resolve("ä clip 3.mp4")
    with pytest.raises(StoreError, match="give an id of 20 hex digits, a uri or a file name, such as"):
        store.resolve("nothing.mp4")
    with pytest.raises(StoreError, match=r"bad\.mp4 failed at probe \(missing\)"):
        store.tokens("bad.mp4")
    assert len(store.cells("bad.mp4")) == 0
    assert store.failures()["class"].to_pylist() == ["missing"]


def test_an_empty_store_has_empty_tables(tmp_path: Path) -> None:
    create_store(tmp_path, settings())
    store = open_store(tmp_path)
    assert len(store.videos()) == len(store.failures()) == 0
    assert store.videos().schema.names[0] == "video_id" and "_cell_row" not in store.videos().schema.names
    assert store.sql_views() == "" and store.verify() == []
    with pytest.raises(StoreError, match="among the 0"):
        store.resolve("x")


def test_settings_hold_for_the_life_of_a_store(tmp_path: Path) -> None:
    create_store(tmp_path, settings())
    create_store(tmp_path, settings())
    with pytest.raises(StoreMismatchError, match=r"give --keep 0\.25"):
        create_store(tmp_path, settings(keep="all"))


def test_missing_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(StoreError, match=r"holds holiday\.mp4 but no store\.json"):
        create_store(tmp_path, settings())
    with pytest.raises(StoreError, match="is no store"):
        open_store(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    storage, clips = small_store(tmp_path, settings())
    other, _ = small_store(tmp_path / "other", settings(keep="all"))
    storage.write_bytes(file_of(storage, "videos"), other.read_bytes(file_of(other, "videos")))
    with pytest.raises(StoreError, match=r"videos/a1-\w+\.parquet is damaged \(its columns or metadata"):
        open_store(tmp_path).videos()
    storage, clips = small_store(tmp_path / "cut", settings())
    name = file_of(storage, "tokens", "b2")
    storage.write_bytes(name, storage.read_bytes(name)[:-100])
    with pytest.raises(StoreError, match=r"b2-0000-\w+\.parquet is damaged"):
        open_store(tmp_path / "cut").tokens(clips[3].uri)
    storage.remove(name)
    with pytest.raises(StoreError, match=r"b2-0000-\w+\.parquet"):
        open_store(tmp_path / "cut").tokens(clips[3].uri)
    assert open_store(tmp_path / "cut").verify() == [f"{name} is missing"]
    storage.write_bytes(file_of(storage, "cells", "b2"), storage.read_bytes(file_of(storage, "cells")))
    with pytest.raises(StoreError, match=r"rows of .* are not where its videos row says"):
        open_store(tmp_path / "cut").cells(clips[2].uri)


def test_duckdb_and_pyarrow_read_the_same_rows(tmp_path: Path) -> None:
    root = tmp_path / "it's a store"
    storage, clips = small_store(root, settings(dtype="bf16"))
    store = open_store(root)
    (root / ".tmp").mkdir(exist_ok=True)
    (root / ".tmp" / "half.parquet").write_bytes(b"half a file")
    with duckdb.connect() as db:
        db.execute(store.sql_views())
        for made in clips:
            rows = db.execute(
                "SELECT t, h, w, correspondence, emb FROM tokens JOIN videos USING (video_id) WHERE uri = ? ORDER BY t, h, w",
                [made.uri],
            ).fetchall()
            read = store.tokens(made.uri)
            assert [row[:3] for row in rows] == [tuple(place) for place in read.positions.tolist()]
            assert [row[3] for row in rows] == read.correspondence.tolist()
            raw = b"".join(row[4] for row in rows)
            assert raw == read.tokens.view(torch.uint8).numpy().tobytes()
        glob = str(root / "tokens" / "*.parquet").replace("'", "''")
        (total,) = db.execute(f"SELECT count(*) FROM '{glob}'").fetchone() or (0,)
        assert total == sum(len(made.kept) for made in clips)
    table = ds.dataset(root / "cells", format="parquet").to_table(
        filter=ds.field("video_id") == clips[1].video_id
    )
    assert table.equals(store.cells(clips[1].video_id))
    # What no receipt covers is in no view.
    storage.write_bytes("tokens/zz-0000.parquet", storage.read_bytes(file_of(storage, "tokens")))
    assert "zz-0000" not in open_store(root).sql_views()


def test_a_store_in_s3_reads_the_same(tmp_path: Path, s3_url: str) -> None:
    local, clips = small_store(tmp_path, settings())
    remote = Storage(s3_url)
    for name in local.names():
        remote.write_bytes(name, local.read_bytes(name))
    store = open_store(remote.url)
    for made in clips:
        assert_same(store, made)
    assert store.videos().equals(open_store(tmp_path).videos()) and store.verify() == []


def test_a_bare_name_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that two videos share is ambiguous also where one of them lies in the current folder."""
    made_with = settings()
    storage = create_store(tmp_path / "store", made_with)
    write_shard(storage, made_with, [clip(f"/{folder}/park.mp4", made_with) for folder in "ab"])
    store = open_store(tmp_path / "store")
    for folder in ("/a", "/b", "/"):
        monkeypatch.setattr("os.getcwd", lambda folder=folder: folder)
        with pytest.raises(NoSuchVideoError, match=r"2 videos are named park\.mp4"):
            store.resolve("park.mp4")
    assert store.resolve("./a/park.mp4") == store.resolve("/a/park.mp4")
