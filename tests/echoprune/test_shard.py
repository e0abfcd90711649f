from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from echoprune import shard
from echoprune.errors import StoreError
from echoprune.receipt import read_receipts, what_counts
from echoprune.schema import StoreSettings, token_rows_dtype
from echoprune.shard import ShardWriter, commit
from echoprune.spill import SpilledColumn
from echoprune.storage import Storage
from echoprune.store import create_store, open_store
from tests.stores import add_clip, add_failed, clip, receipt, settings, small_store, write_shard

# A row group of 1,000 rows of 24 float32 values, 4 bytes of scores each, and 8 bytes of place.
ROW_BYTES = 24 * 4 + 8 + 8
GROUP_BYTES = 1000 * ROW_BYTES


def build(
    folder: Path, made: StoreSettings, cells: list[int], *, chunk: int = 7, file_bytes: int = 1 << 30
) -> list[Path]:
    """The token files of one shard whose videos have 10 kept tokens per cell."""
    writer = ShardWriter(folder, made, "a1", row_group_bytes=GROUP_BYTES, file_bytes=file_bytes)
    for i, count in enumerate(cells):
        add_clip(
            writer, made, clip(f"/{i}.mp4", made, cells=count, grid_hw=(2, 5), keep=2.0, seed=i), chunk=chunk
        )
    files = writer.close()
    for file in files:
        data = file.path.read_bytes()
        assert file.entry.size_bytes == len(data) and file.entry.sha256 == hashlib.sha256(data).hexdigest()
        assert file.entry.rows == pq.read_metadata(file.path).num_rows
    return [file.path for file in files if file.entry.table == "tokens"]


def groups(path: Path) -> list[list[str]]:
    """The distinct videos of each row group."""
    parquet = pq.ParquetFile(path)
    tables = [parquet.read_row_group(i, columns=["video_id"]) for i in range(parquet.num_row_groups)]
    return [table["video_id"].unique().to_pylist() for table in tables]


def sizes(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def test_row_groups_hold_whole_videos(tmp_path: Path) -> None:
    (path,) = build(tmp_path, settings(), [30, 40, 50, 10, 60])
    assert sizes(path) == [700, 600, 600]
    assert [len(videos) for videos in groups(path)] == [2, 2, 1]


def test_a_long_video_is_cut_at_the_limit(tmp_path: Path) -> None:
    (path,) = build(tmp_path, settings(), [20, 250, 30])
    assert sizes(path) == [200, 1000, 1000, 800]
    assert [len(videos) for videos in groups(path)] == [1, 1, 1, 2]


def test_files_stay_below_their_limit_and_videos_go_on_in_the_next(tmp_path: Path) -> None:
    limit = 400_000
    paths = build(tmp_path, settings(), [200, 1200, 5], file_bytes=limit)
    assert [path.name for path in paths] == [f"a1-{n:04d}.parquet" for n in range(len(paths))]
    assert len(paths) > 3 and all(path.stat().st_size <= limit for path in paths)
    assert sum(sum(sizes(path)) for path in paths) == 14050


def test_a_file_that_cannot_hold_a_row_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold a row group"):
        ShardWriter(tmp_path, settings(), "a1", row_group_bytes=100, file_bytes=100)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_bytes_depend_on_the_rows_alone(tmp_path: Path, dtype: str) -> None:
    made = settings(dtype=dtype, deepstack_layers=1)
    one = build(tmp_path / "one", made, [20, 250, 300], chunk=7, file_bytes=250_000)
    other = build(tmp_path / "other", made, [20, 250, 300], chunk=999, file_bytes=250_000)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet"))
    assert len(one) == len(other) > 1 and len(names) == len(one) + 2
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_cells_may_be_spilled_and_are_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, video = settings(), clip("/0.mp4", settings(), cells=50)
    built = []
    for name, rows in (("whole", 1024), ("parts", 7)):
        monkeypatch.setattr(shard, "_CELL_CHUNK", rows)
        (tmp_path / name).mkdir()
        with SpilledColumn(tmp_path / name, 2 * made.dim) as column:
            writer = ShardWriter(tmp_path / name, made, "a1")
            add_clip(writer, made, video, spilled=column if name == "parts" else None)
            built.append([(file.entry, file.path.read_bytes()) for file in writer.close()])
    assert built[0] == built[1]
    assert [entry.rows for entry, _ in built[0] if entry.table == "cells"] == [50]


def test_scalars_have_statistics_and_vectors_none(tmp_path: Path) -> None:
    made = settings(dtype="int8", deepstack_layers=1)
    (path,) = build(tmp_path, made, [5])
    group = pq.read_metadata(path).row_group(0)
    for i in range(group.num_columns):
        column = group.column(i)
        vector = column.path_in_schema in ("emb", "deepstack_0")
        assert column.is_stats_set != vector, column.path_in_schema
        assert column.compression == "ZSTD"
        if vector:
            assert not any("DICTIONARY" in encoding for encoding in column.encodings)


def test_vectors_may_be_left_as_they_are(tmp_path: Path) -> None:
    made = settings(dim=3584, dtype="bf16", compression="none", deepstack_layers=1)
    storage = create_store(tmp_path, made)
    video = clip("/0.mp4", made, cells=40)
    write_shard(storage, made, [video])
    for table, vectors in (("tokens", {"emb", "deepstack_0"}), ("cells", {"pooled"})):
        (name,) = open_store(tmp_path).files(table)
        group = pq.read_metadata(tmp_path / name).row_group(0)
        for i in range(group.num_columns):
            column = group.column(i)
            packed = "UNCOMPRESSED" if column.path_in_schema in vectors else "ZSTD"
            assert column.compression == packed, column.path_in_schema
    (name,) = open_store(tmp_path).files("tokens")
    payload = 2 * 2 * 3584 * len(video.kept)
    assert payload < (tmp_path / name).stat().st_size < 1.02 * payload
    read = open_store(tmp_path).tokens("/0.mp4")
    assert torch.equal(read.tokens, video.tokens[video.kept])
    assert open_store(tmp_path).settings.compression == "none"


def test_counted_columns_come_from_the_rows(tmp_path: Path) -> None:
    made = settings()
    storage, clips = small_store(tmp_path, made)
    videos = {row["video_id"]: row for row in open_store(tmp_path).videos().to_pylist()}
    row = 0
    for one in clips[:2]:
        video = videos[one.video_id]
        assert (video["token_row"], video["kept"]) == (row, len(one.kept))
        assert video["tokens"] == len(one.tokens) and video["anchors"] == int(one.anchor.sum())
        row += len(one.kept)
    (file,) = read_receipts(storage)["a1"].files_of("tokens")
    assert file.name == f"tokens/a1-0000-{file.sha256[:8]}.parquet" and storage.exists(file.name)


@pytest.mark.parametrize("steps", range(1, 5))
def test_a_commit_that_is_cut_short_leaves_nothing_visible(tmp_path: Path, steps: int) -> None:
    made = settings()
    storage, _ = small_store(tmp_path, made)
    before = open_store(tmp_path).videos()
    left = steps

    def check_epoch() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreError("another run took over")

    with storage.tmp_dir() as folder:
        writer = ShardWriter(folder, made, "c3")
        add_clip(writer, made, clip("/archive/late.mp4", made))
        add_failed(writer, "/archive/none.mp4")
        files = writer.close()
        assert [file.entry.table for file in files] == ["tokens", "cells", "failures", "videos"]
        with pytest.raises(StoreError, match="took over"):
            commit(storage, files, receipt(writer, files, "c3"), check_epoch=check_epoch)
    assert len(what_counts(storage).left) == steps
    after = open_store(tmp_path)
    assert after.videos().equals(before) and list(after.receipts) == ["a1", "b2"]
    write_shard(storage, made, [clip("/archive/late.mp4", made)], shard_id="c3", failed=["/archive/none.mp4"])
    assert len(open_store(tmp_path).videos()) == len(before) + 2


def test_a_commit_needs_a_receipt_of_its_files(tmp_path: Path) -> None:
    made = settings()
    storage = Storage(tmp_path / "store")
    writer = ShardWriter(tmp_path, made, "c3")
    add_clip(writer, made, clip("/late.mp4", made))
    files = writer.close()
    with pytest.raises(ValueError, match="does not name the files"):
        commit(storage, files, receipt(writer, files[1:], "c3"), check_epoch=lambda: None)
    assert storage.names() == []


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = settings()
    base = clip("/x.mp4", made)
    rows = np.zeros(2, token_rows_dtype(made))
    video = {"video_id": base.video_id, "uri": base.uri, "status": "ok", "cells": 2, "grid_h": 1, "grid_w": 2}
    cells = {name: np.zeros(2) for name in ("time_s", "end_s", "pts_s")} | {
        "anchor": np.zeros(2, bool), "mean_novelty": np.zeros(2, np.float32), "radius": np.zeros(2, np.float32),
        "pooled": np.zeros((2, 48), np.uint8),
    }  # fmt: skip
    wrong = [
        (video, cells, [(np.array([1, 0]), rows)], "must ascend"),
        (video, cells, [(np.array([1, 1]), rows)], "must ascend"),
        (video, cells, [(np.array([2, 4]), rows)], "below 4"),
        (video, cells, [(np.array([0, 1]), rows), (np.array([1, 2]), rows)], "must ascend"),
        (video, cells, [(np.array([0, 1]), np.zeros(2, [("emb", "V4")]))], "rows must be"),
        (video, cells, [(np.array([0, 1]), rows[:1])], "rows must be"),
        (video | {"cells": 3}, cells, [], "must be"),
        (video, {"time_s": np.zeros(2)}, [], "must have the columns"),
        (video, None, [], "does not go with"),
        (video | {"status": "failed"}, cells, [], "does not go with"),
        (video | {"status": "done"}, cells, [], "status must be"),
        (video | {"kept": 2}, cells, [], "counted by the writer"),
        (video | {"hue": 2}, cells, [], "unknown columns"),
        (video | {"uri": None}, cells, [], "lacks"),
    ]
    for i, (row, columns, chunks, message) in enumerate(wrong):
        writer = ShardWriter(tmp_path / str(i), made, "a1")
        with pytest.raises(ValueError, match=message):
            writer.add_video(row, columns, chunks)


def test_a_shard_of_failures_has_no_token_files(tmp_path: Path) -> None:
    made = settings()
    storage, _ = small_store(tmp_path, made)
    written = write_shard(storage, made, [], shard_id="d4", failed=["/archive/none.mp4"])
    assert [file.table for file in written.files] == ["failures", "videos"]
    assert open_store(tmp_path).resolve("none.mp4")
