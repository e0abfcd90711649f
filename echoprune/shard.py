"""Building the files of one shard on local disk, and committing them to a store.

Bytes depend on the rows alone: not on how they were cut into chunks, on the machine, or on the time. Reading
is in store.py, the columns in schema.py. numpy and pyarrow only: no torch, no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from echoprune.receipt import Receipt
from echoprune.row_groups import FILE_BYTES, FOOTER_BYTES, ROW_GROUP_BYTES, BuiltFile, GroupedTable
from echoprune.schema import STATUSES, StoreSettings, table_schema, token_rows_dtype
from echoprune.storage import Storage, checked_name, store_errors

TokenChunk = tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]

# Cells made into a table at a time: 4 MB of pooled vectors of 3,584-wide tokens.
_CELL_CHUNK = 512
# The videos row's columns that the writer fills from the tokens and cells themselves.
_COUNTED = ("tokens", "kept", "anchors", "token_row")
_CELL_COLUMNS = ("time_s", "end_s", "pts_s", "anchor", "mean_novelty", "pooled", "radius")


class CellColumn(Protocol):
    """A column of the cells table: an array, or one in a file that is read slice by slice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T,) or (T, bytes)."""

    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]:
        """The rows of a slice."""


class ShardWriter:
    """The files of one shard, built in a local folder.

    Call `add_video` for every video of the shard in the plan's order (a failed one without tokens), and
    `add_failure` for every failed attempt, then `close`. After an exception the writer is of no use: build the
    shard again. Memory: one row group, and one chunk of the caller's.
    """

    def __init__(
        self,
        folder: Path,
        settings: StoreSettings,
        shard_id: str,
        *,
        generation: int = 0,
        row_group_bytes: int = ROW_GROUP_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        if file_bytes < row_group_bytes + FOOTER_BYTES:
            raise ValueError(f"file_bytes {file_bytes} cannot hold a row group of {row_group_bytes}")
        # The id may come from the plan of a store that somebody else wrote.
        stem = checked_name(f"{shard_id}.g{generation}" if generation else shard_id)
        self._folder = folder
        self._settings = settings
        self._rows_dtype = token_rows_dtype(settings)
        self._stem = stem
        self._tokens = GroupedTable(
            folder,
            (f"tokens/{stem}-{n:04d}.parquet" for n in count()),
            table_schema("tokens", settings),
            group_rows=max(1, row_group_bytes // (self._rows_dtype.itemsize + 8)),
            file_bytes=file_bytes,
            compression=settings.compression,
        )
        self._cells = GroupedTable(
            folder,
            (f"cells/{stem}-{n:04d}.parquet" for n in count()),
            table_schema("cells", settings),
            group_rows=max(1, row_group_bytes // (2 * settings.dim + 40)),
            file_bytes=file_bytes,
            compression=settings.compression,
        )
        self._videos: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []

    @property
    def outcomes(self) -> Counter[str]:
        """How many videos were added, by status."""
        return Counter(str(row["status"]) for row in self._videos)

    def add_video(
        self,
        video: Mapping[str, Any],
        cells: Mapping[str, CellColumn] | None = None,
        token_chunks: Iterable[TokenChunk] = (),
    ) -> None:
        """Add one video with its cells and kept tokens.

        `video`: its row of the videos table without `tokens`, `kept`, `anchors`, `token_row`, which are
        counted here; columns left out are null. `cells`: arrays (T,) `time_s`, `end_s`, `pts_s`, `anchor`,
        `mean_novelty`, `radius` and `pooled` (T, 2 D) uint8, which may be spilled, T = `video["cells"]`; None for
        a failed video.
        `token_chunks`: pairs of flat indices (n,) into the T x grid_h x grid_w grid, ascending over all
        chunks, and rows (n,) of `token_rows_dtype(settings)`. Raises ValueError where these do not fit
        together, StoreError when the disk does not take them.
        """
        row = self._video_row(video)
        cell_count, per_cell = row["cells"], (row.get("grid_h") or 0) * (row.get("grid_w") or 0)
        if (row["status"] == "failed") != (cells is None) or (cells is None and cell_count):
            raise ValueError(
                f"a {row['status']} video of {cell_count} cells does not go with cells = {cells!r:.60}"
            )
        kept_by_cell = np.zeros(cell_count, dtype=np.int64)
        row |= {"token_row": self._tokens.rows, "tokens": cell_count * per_cell, "anchors": 0}
        last = -1
        with store_errors(f"build shard files in {self._folder}"):
            for index, rows in token_chunks:
                if len(index) == 0:
                    continue
                if index[0] <= last or bool((np.diff(index) <= 0).any()) or index[-1] >= row["tokens"]:
                    raise ValueError(f"flat indices must ascend and be below {row['tokens']}")
                last = int(index[-1])
                table = self._token_table(row, index, rows)
                kept_by_cell += np.bincount(index // per_cell, minlength=cell_count)
                self._tokens.push(table)
            self._tokens.settle()
            if cells is not None:
                for table in self._cell_tables(row, cells, kept_by_cell):
                    self._cells.push(table)
                self._cells.settle()
                row["anchors"] = int(cells["anchor"][:].sum())
        row["kept"] = int(kept_by_cell.sum())
        self._videos.append(row)

    def copy_video(
        self, video: Mapping[str, Any], cells: Iterable[pa.Table], tokens: Iterable[pa.Table]
    ) -> None:
        """Add one video as a store holds it already: its whole videos row, its rows of cells and of tokens in order.

        Nothing but `token_row` changes, so that the files are those that `add_video` would have given. Raises ValueError
        where the numbers of rows are not those of the videos row.
        """
        row = _checked_row(video, table_schema("videos", self._settings)) | {"token_row": self._tokens.rows}
        with store_errors(f"build shard files in {self._folder}"):
            for name, table, pieces in (("kept", self._tokens, tokens), ("cells", self._cells, cells)):
                before = table.rows
                for piece in pieces:
                    table.push(piece)
                table.settle()
                if table.rows - before != row[name]:
                    raise ValueError(f"{row['uri']} has {name} = {row[name]}, got {table.rows - before} rows")
        self._videos.append(row)

    def add_failure(self, failure: Mapping[str, Any]) -> None:
        """Add one failed attempt: a row of the failures table (`time`: an aware datetime)."""
        self._failures.append(_checked_row(failure, table_schema("failures", self._settings)))

    def close(self) -> list[BuiltFile]:
        """Finish all files and return them, in the order in which they must be committed, named by their content."""
        with store_errors(f"build shard files in {self._folder}"):
            files = self._tokens.close() + self._cells.close()
            for table, rows in (("failures", self._failures), ("videos", self._videos)):
                if rows:
                    writer = GroupedTable(
                        self._folder,
                        iter([f"{table}/{self._stem}.parquet"]),
                        table_schema(table, self._settings),
                        group_rows=100_000,
                        # A row a video, or a failed attempt: some hundred bytes for each video of a shard.
                        file_bytes=None,
                    )
                    writer.push(pa.Table.from_pylist(rows, schema=table_schema(table, self._settings)))
                    files += writer.close()
        return [file.named_by_content() for file in files]

    def _video_row(self, video: Mapping[str, Any]) -> dict[str, Any]:
        counted = [name for name in _COUNTED if name in video]
        if counted:
            raise ValueError(f"{', '.join(counted)} are counted by the writer, leave them out")
        if video["status"] not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, got {video['status']!r}")
        blank = dict.fromkeys(_COUNTED, 0) | {"cells": 0}
        return _checked_row(blank | dict(video), table_schema("videos", self._settings))

    def _token_table(
        self, video: Mapping[str, Any], index: npt.NDArray[np.int64], rows: npt.NDArray[np.void]
    ) -> pa.Table:
        if rows.dtype != self._rows_dtype or rows.shape != index.shape:
            raise ValueError(
                f"rows must be {index.shape} of {self._rows_dtype}, got {rows.shape} of {rows.dtype}"
            )
        t, place = np.divmod(index, video["grid_h"] * video["grid_w"])
        h, w = np.divmod(place, video["grid_w"])
        columns = {
            "video_id": pa.repeat(pa.scalar(video["video_id"], pa.string()), len(index)),
            "t": pa.array(t.astype(np.int32)),
            "h": pa.array(h.astype(np.int16)),
            "w": pa.array(w.astype(np.int16)),
        }
        for name in rows.dtype.names or ():
            columns[name] = _binary(rows[name]) if rows.dtype[name].kind == "V" else pa.array(rows[name])
        return pa.table([columns[name] for name in self._tokens.schema.names], schema=self._tokens.schema)

    def _cell_tables(
        self, video: Mapping[str, Any], cells: Mapping[str, CellColumn], kept: npt.NDArray[np.int64]
    ) -> Iterator[pa.Table]:
        total = len(kept)
        if set(cells) != set(_CELL_COLUMNS):
            raise ValueError(f"cells must have the columns {_CELL_COLUMNS}, got {tuple(cells)}")
        for name, values in cells.items():
            expected = (total, 2 * self._settings.dim) if name == "pooled" else (total,)
            if values.shape != expected:
                raise ValueError(f"cells[{name!r}] must be {expected}, got {values.shape}")
        schema = self._cells.schema
        for start in range(0, total, _CELL_CHUNK):
            part = slice(start, min(start + _CELL_CHUNK, total))
            columns: dict[str, Any] = {
                "video_id": pa.repeat(pa.scalar(video["video_id"], pa.string()), part.stop - part.start),
                "t": pa.array(np.arange(part.start, part.stop, dtype=np.int32)),
                "kept": pa.array(kept[part].astype(np.int32)),
                "pooled": _binary(cells["pooled"][part]),
            }
            for name in set(_CELL_COLUMNS) - {"pooled"}:
                columns[name] = pa.array(cells[name][part], type=schema.field(name).type)
            yield pa.table([columns[name] for name in schema.names], schema=schema)


def commit(
    storage: Storage, files: Sequence[BuiltFile], receipt: Receipt, *, check_epoch: Callable[[], None]
) -> None:
    """Move a shard's files into the store, the receipt last; until then no reader sees any of them.

    Order: tokens, cells, failures, videos, receipt. `check_epoch` is called before each put, and each attempt at one, and
    raises when another run holds the store. The local files are gone afterwards.
    """
    if tuple(file.entry for file in files) != receipt.files:
        raise ValueError("the receipt does not name the files to be committed")
    for file in files:
        storage.put_file(file.path, file.entry.name, before=check_epoch)
    storage.write_bytes(receipt.name, receipt.to_json().encode(), before=check_epoch)


def _binary(values: npt.NDArray[Any]) -> pa.Array:
    """A fixed_size_binary array over the memory of (n,) void or (n, bytes) uint8 values."""
    flat = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(flat.shape[1]), len(flat), [None, pa.py_buffer(flat)]
    )


def _checked_row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    unknown = sorted(set(row) - set(schema.names))
    missing = [field.name for field in schema if not field.nullable and row.get(field.name) is None]
    if unknown or missing:
        raise ValueError(f"row has unknown columns {unknown} and lacks {missing}")
    return {name: row.get(name) for name in schema.names}
