"""What the rows of a committed shard must be like: counts, order, places, and numbers that are numbers."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from echoprune.dtype import codec
from echoprune.receipt import Receipt
from echoprune.schema import STATUSES, VALUE_BYTES, StoreSettings, table_schema
from echoprune.sources import video_id
from echoprune.store_files import StoreFiles, column_values

# Rows of vectors made into numbers at a time: 60 MB as float32 at 3,584 values.
_VECTOR_ROWS = 4096


def check_rows(
    files: StoreFiles, settings: StoreSettings, receipt: Receipt, *, vectors: bool
) -> Generator[str, None, list[str]]:
    """Yields a line for each finding in the rows of a shard; returns the ids of its videos, in order.

    `vectors`: whether `emb`, `deepstack_<i>` and `pooled` are read too. Memory: the videos of the shard, and a row group.
    Raises StoreError where a file cannot be read.
    """
    shard = _Shard(files, settings, receipt, vectors=vectors)
    videos = [row for table in shard.groups("videos") for row in table.to_pylist()]
    yield from _check_videos(videos, receipt)
    ids = [row["video_id"] for row in videos]
    for table in shard.groups("failures"):
        for stray in sorted(set(table["video_id"].to_pylist()) - set(ids)):
            yield f"shard {receipt.shard_id}: failures are about video {stray}, which it does not hold"
    kept = yield from _check_cells(shard, videos)
    yield from _check_tokens(shard, videos, kept)
    return ids


@dataclass(frozen=True)
class _Shard:
    files: StoreFiles
    settings: StoreSettings
    receipt: Receipt
    vectors: bool

    def groups(self, table: str) -> Iterator[pa.Table]:
        """The row groups of a table in order; its vectors only where they are to be read."""
        schema = table_schema(table, self.settings)
        names = [
            field.name for field in schema if self.vectors or not pa.types.is_fixed_size_binary(field.type)
        ]
        for file in self.receipt.files_of(table):
            with self.files.damage(file.name), self.files.open(file.name) as parquet:
                if not parquet.schema_arrow.equals(schema, check_metadata=True):
                    raise pa.ArrowInvalid("its columns or metadata are not those of this store")
                for index in range(parquet.num_row_groups):
                    yield parquet.read_row_group(index, columns=names)

    def rows_of(
        self, table: str, videos: list[dict[str, Any]], counts: list[int]
    ) -> Iterator[tuple[int, int, pa.Table]]:
        """The rows of each video as pieces: its place among `videos`, the rows of it before, the piece.

        Rows beyond the sum of `counts` come with the place len(videos).
        """
        place, done = 0, 0
        for group in self.groups(table):
            start = 0
            while start < len(group):
                while place < len(videos) and done == counts[place]:
                    place, done = place + 1, 0
                left = counts[place] - done if place < len(videos) else len(group)
                piece = group.slice(start, min(left, len(group) - start))
                yield place, done, piece
                start += len(piece)
                done += len(piece)


def _check_videos(videos: list[dict[str, Any]], receipt: Receipt) -> Iterator[str]:
    for status in STATUSES:
        count = sum(row["status"] == status for row in videos)
        if count != getattr(receipt, status):
            yield f"{receipt.name} counts {getattr(receipt, status)} {status} videos, videos has {count}"
    token_row = 0
    for row in videos:
        if row["video_id"] != video_id(row["uri"]):
            yield f"video {row['uri']}: its video_id {row['video_id']} is not that of its uri"
        if row["status"] not in STATUSES:
            yield f"video {row['uri']}: status {row['status']!r} is none of {', '.join(STATUSES)}"
        if row["token_row"] != token_row:
            yield f"video {row['uri']}: token_row is {row['token_row']}, {token_row} tokens come before it"
        if row["tokens"] != row["cells"] * (row["grid_h"] or 0) * (row["grid_w"] or 0):
            yield f"video {row['uri']}: tokens {row['tokens']} are not cells x grid_h x grid_w"
        if (row["status"] == "failed") != (row["cells"] == 0) or row["kept"] > row["tokens"]:
            yield f"video {row['uri']}: {row['status']} with {row['cells']} cells and {row['kept']} kept tokens"
        token_row += row["kept"]


def _check_cells(
    shard: _Shard, videos: list[dict[str, Any]]
) -> Generator[str, None, list[npt.NDArray[np.int64]]]:
    """Yields findings; returns the kept tokens of each cell of each video as the cells table says."""
    counts = [int(row["cells"]) for row in videos]
    kept = [np.zeros(count, np.int64) for count in counts]
    anchors = [0] * len(videos)
    last = [-np.inf] * len(videos)
    total = 0
    for place, done, piece in shard.rows_of("cells", videos, counts):
        total += len(piece)
        if place == len(videos):
            continue
        uri = videos[place]["uri"]
        if not _all_of(piece, videos[place]):
            yield f"cells of {uri}: rows of another video among them"
            continue
        part = slice(done, done + len(piece))
        kept[place][part] = column_values(piece["kept"])
        anchors[place] += int(pc.sum(piece["anchor"]).as_py() or 0)
        if not np.array_equal(column_values(piece["t"]), np.arange(part.start, part.stop)):
            yield f"cells of {uri}: t does not count from {part.start} to {part.stop - 1}"
        times = column_values(piece["time_s"])
        if not bool((np.diff(times, prepend=last[place]) > 0).all()):
            yield f"cells of {uri}: time_s does not ascend"
        last[place] = float(times[-1])
        for name in ("time_s", "end_s", "pts_s", "mean_novelty", "radius"):
            if not np.isfinite(column_values(piece[name])).all():
                yield f"cells of {uri}: {name} is not finite"
        if shard.vectors and not _finite(piece["pooled"], None, "bf16"):
            yield f"cells of {uri}: pooled is not finite"
    if total != sum(counts):
        yield f"shard {shard.receipt.shard_id} has {total} cells, its videos say {sum(counts)}"
    for row, of_video, count in zip(videos, kept, anchors, strict=True):
        if int(of_video.sum()) != row["kept"]:
            yield f"video {row['uri']}: kept is {row['kept']}, its cells say {int(of_video.sum())}"
        if count != row["anchors"]:
            yield f"video {row['uri']}: anchors is {row['anchors']}, {count} of its cells are anchors"
    return kept


def _check_tokens(
    shard: _Shard, videos: list[dict[str, Any]], kept: list[npt.NDArray[np.int64]]
) -> Iterator[str]:
    counts = [int(row["kept"]) for row in videos]
    found = [np.zeros(len(cells), np.int64) for cells in kept]
    last = [-1] * len(videos)
    total = 0
    for place, _, piece in shard.rows_of("tokens", videos, counts):
        total += len(piece)
        if place == len(videos):
            continue
        row = videos[place]
        if not _all_of(piece, row):
            yield f"tokens of {row['uri']}: rows of another video among them"
            continue
        t, h, w = (column_values(piece[name]).astype(np.int64) for name in ("t", "h", "w"))
        grid = (row["cells"], row["grid_h"], row["grid_w"])
        if any(((axis < 0) | (axis >= size)).any() for axis, size in zip((t, h, w), grid, strict=True)):
            yield f"tokens of {row['uri']}: places outside of its {' x '.join(map(str, grid))} grid"
            continue
        flat = (t * grid[1] + h) * grid[2] + w
        if not bool((np.diff(flat, prepend=last[place]) > 0).all()):
            yield f"tokens of {row['uri']}: places do not ascend"
        last[place] = int(flat[-1])
        found[place] += np.bincount(t, minlength=len(found[place]))
        yield from _check_values(shard, piece, row["uri"])
    if total != sum(counts):
        yield f"shard {shard.receipt.shard_id} has {total} tokens, its videos say {sum(counts)}"
    for row, here, said in zip(videos, found, kept, strict=True):
        wrong = np.flatnonzero(here != said)
        if len(wrong):
            cell = int(wrong[0])
            yield (
                f"video {row['uri']}: {len(wrong)} cells have other numbers of tokens than they say, such as cell {cell}: "
                f"{said[cell]} kept, {here[cell]} stored"
            )


def _check_values(shard: _Shard, piece: pa.Table, uri: str) -> Iterator[str]:
    """Scores, scales and vectors of stored tokens: all finite."""
    for name in piece.column_names:
        kind = piece.schema.field(name).type
        if pa.types.is_floating(kind) and not np.isfinite(column_values(piece[name])).all():
            yield f"tokens of {uri}: {name} is not finite"
        elif pa.types.is_fixed_size_binary(kind):
            scale = "scale" if name == "emb" else f"{name}_scale"
            scales = piece[scale] if shard.settings.dtype == "int8" else None
            if not _finite(piece[name], scales, shard.settings.dtype):
                yield f"tokens of {uri}: {name} is not finite"


def _finite(column: pa.ChunkedArray, scales: pa.ChunkedArray | None, dtype: str) -> bool:
    """Whether all values of a column of vectors are finite."""
    assert column.type.byte_width % VALUE_BYTES[dtype] == 0
    for start in range(0, len(column), _VECTOR_ROWS):
        rows = column_values(column.slice(start, _VECTOR_ROWS)).copy()
        scale = None if scales is None else column_values(scales.slice(start, _VECTOR_ROWS)).copy()
        values = codec(dtype).decode(rows, scale)
        if not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
            return False
    return True


def _all_of(piece: pa.Table, video: dict[str, Any]) -> bool:
    return bool(pc.all(pc.equal(piece["video_id"], video["video_id"])).as_py())
