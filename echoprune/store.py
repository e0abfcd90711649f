"""Reading a store: videos, cells, tokens and failures of finished shards; and making a new one.

Only what a receipt covers is seen, as it was when the store was opened. Writing shards is in shard.py, the
columns in schema.py and docs/store.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from echoprune.data import TokenSet
from echoprune.dtype import codec
from echoprune.errors import NotAStoreError, StoreError
from echoprune.receipt import StoredFile, read_receipts
from echoprune.schema import SETTINGS_FILE, TABLES, StoreSettings, table_schema
from echoprune.storage import Storage
from echoprune.store_files import StoreFiles, column_values, in_one
from echoprune.video_names import file_names, find_video

Taken = TypeVar("Taken")

# Where a video's rows are: found while its videos file is read, not columns of the table.
_PLACE = ("_shard_id", "_cell_row")


# What a folder is told that holds something else.
_NO_STORE = {"lacks": "it is no store", "option": "--store"}


def is_new(path: str | os.PathLike[str]) -> bool:
    """Whether `create_store` would make a store at a path or URL; raises StoreError where it could not, for what is there."""
    storage = Storage(path)
    if storage.exists(SETTINGS_FILE):
        return False
    storage.require_empty(SETTINGS_FILE, **_NO_STORE)
    return True


def create_store(path: str | os.PathLike[str], settings: StoreSettings) -> Storage:
    """The storage of a store with these settings, made if it is not there.

    Raises StoreMismatchError if it was made with others, StoreError if the folder holds something else.
    """
    storage = Storage(path)
    storage.claim(SETTINGS_FILE, settings.to_json().encode(), **_NO_STORE)
    read_settings(storage).require_same(settings)
    return storage


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """The store at a local path or URL, as it is now. Raises StoreError where there is none or it is damaged."""
    storage = Storage(path)
    if not storage.exists(SETTINGS_FILE):
        storage.require_bucket()
        raise NotAStoreError(
            f"{storage.url} is no store (it has no {SETTINGS_FILE}): check the path, or make it with index"
        )
    return TokenStore(storage)


class TokenStore:
    """A store opened for reading. `receipts` are those that were there when it was opened.

    A video may be named by its id, by its uri or path (a relative one with a separator, as ./clip.mp4), or by its file
    name where that is unique.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.settings = read_settings(storage)
        self.receipts = read_receipts(storage)
        self.tables = StoreFiles(storage, self.receipts)

    def __repr__(self) -> str:
        return f"TokenStore({self.storage.url!r}, {len(self.receipts)} shards)"

    def files(self, table: str) -> list[str]:
        """Names of the files of a table ("tokens", "cells", "failures" or "videos") that receipts cover."""
        return [file.name for receipt in self.receipts.values() for file in receipt.files_of(table)]

    def videos(self) -> pa.Table:
        """The videos table, one row per video, sorted by uri; failed ones are among them."""
        return self._located.drop_columns(list(_PLACE))

    def failures(self) -> pa.Table:
        """The failures table, one row per failed attempt, sorted by uri and attempt."""
        schema = table_schema("failures", self.settings)
        table = in_one(self._read(name, schema) for name in self.files("failures"))
        table = schema.empty_table() if table is None else table
        return table.sort_by([("uri", "ascending"), ("attempt", "ascending")])

    def resolve(self, video: str) -> str:
        """The id of the video meant. Raises NoSuchVideoError if there is none, or several of that file name."""
        return str(self._find(video)["video_id"])

    def video(self, video: str) -> dict[str, Any]:
        """The videos row of the video meant; errors as `resolve`."""
        row = self._find(video)
        return {name: value for name, value in row.items() if name not in _PLACE}

    def cells(self, video: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The cells of one video, a table of its T rows in order, with all columns or those named; none if it failed."""
        row = self._find(video)
        schema = table_schema("cells", self.settings)
        names = schema.names if columns is None else list(columns)
        read = list(dict.fromkeys([*names, "video_id"]))
        groups = list(
            self._rows("cells", row, row["_cell_row"], row["cells"], columns=read, take=lambda rows, _: rows)
        )
        table = pa.concat_tables(groups).combine_chunks() if groups else schema.empty_table()
        return table.select(names)

    def tokens(
        self, video: str, *, pin_memory: bool = False, cells: Callable[[], pa.Table] | None = None
    ) -> TokenSet:
        """The kept tokens of one video, decoded: in the store's dtype, int8 as float32; on the CPU.

        `pin_memory`: vectors are read into memory that a GPU copies from while others work; torch keeps it for the next ones.
        `cells`: gives its cells with `time_s` and `anchor`, where they are at hand or another thread reads them.
        Raises StoreError for a video that is not there or failed, and where the store is damaged.
        """
        row = self._find_with_tokens(video)
        schema = table_schema("tokens", self.settings)
        names = [name for name in schema.names if name != "video_id"]
        count = row["kept"]
        columns: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            kind = schema.field(name).type
            if pa.types.is_fixed_size_binary(kind):
                columns[name] = _room(count, kind.byte_width, pin_memory=pin_memory)
            else:
                columns[name] = np.empty(count, dtype=kind.to_pandas_dtype())

        def fill(rows: pa.Table, place: int) -> None:
            for name in names:
                columns[name][place : place + len(rows)] = column_values(rows[name])

        for _ in self._rows("tokens", row, row["token_row"], count, columns=schema.names, take=fill):
            pass
        return self._token_set(row, columns, self._its_cells(row, cells))

    def token_chunks(
        self,
        video: str,
        *,
        first: int = 0,
        count: int | None = None,
        cells: Callable[[], pa.Table] | None = None,
    ) -> Iterator[TokenSet]:
        """`tokens(video)` from row `first` on, `count` of them or all, one row group (8 MB, of older stores 48) after another."""
        row = self._find_with_tokens(video)
        names = table_schema("tokens", self.settings).names
        its_cells = self._its_cells(row, cells)
        taken = row["kept"] - first if count is None else count

        def token_set(rows: pa.Table, _: int) -> TokenSet:
            values = {name: column_values(rows[name]) for name in names if name != "video_id"}
            # A tensor over memory that may not be written could be.
            columns = {name: each if each.flags.writeable else each.copy() for name, each in values.items()}
            return self._token_set(row, columns, its_cells)

        yield from self._rows("tokens", row, row["token_row"] + first, taken, columns=names, take=token_set)

    def _its_cells(self, row: dict[str, Any], cells: Callable[[], pa.Table] | None) -> pa.Table:
        return self.cells(row["video_id"], ("time_s", "anchor")) if cells is None else cells()

    def _find_with_tokens(self, video: str) -> dict[str, Any]:
        row = self._find(video)
        if row["status"] == "failed":
            raise StoreError(
                f"video {row['uri']} failed at {row['error_stage']} ({row['error_class']}): it has no tokens"
            )
        return row

    def video_rows(self, table: str, video: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of one video in "cells" or "tokens", the named columns, a row group at a time, in order."""
        row = self._find(video)
        first, count = (
            (row["_cell_row"], row["cells"]) if table == "cells" else (row["token_row"], row["kept"])
        )
        names = list(dict.fromkeys([*columns, "video_id"]))
        yield from self._rows(
            table, row, first, count, columns=names, take=lambda rows, _: rows.select(list(columns))
        )

    def places(self) -> pa.Table:
        """`videos()` with `_shard_id` and `_cell_row`, the row of a video's first cell in its shard's cells."""
        return self._located

    def sql_views(self) -> str:
        """SQL for DuckDB: one view per table over the files that receipts cover (tables without files left out)."""
        views = []
        for table in TABLES:
            urls = [self.storage.url_of(name).replace("'", "''") for name in self.files(table)]
            if urls:
                listed = ", ".join(f"'{url}'" for url in urls)
                views.append(f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM read_parquet([{listed}]);")
        return "\n".join(views)

    def verify(self) -> list[str]:
        """One line for each file that is missing or differs from its receipt; reads every byte of the store."""
        problems = []
        for receipt in self.receipts.values():
            for file in receipt.files:
                if not self.storage.exists(file.name):
                    problems.append(f"{file.name} is missing")
                elif self._sha256(file) != file.sha256:
                    problems.append(f"{file.name} differs from its receipt")
        return problems

    @cached_property
    def _located(self) -> pa.Table:
        schema = table_schema("videos", self.settings)

        def located(shard_id: str, name: str) -> pa.Table:
            table = self._read(name, schema)
            cells = table["cells"].to_numpy().astype(np.int64)
            table = table.append_column("_shard_id", pa.repeat(shard_id, len(table)))
            return table.append_column("_cell_row", pa.array(np.cumsum(cells) - cells))

        found = in_one(
            located(shard_id, file.name)
            for shard_id, receipt in self.receipts.items()
            for file in receipt.files_of("videos")
        )
        if found is None:
            fields = [pa.field("_shard_id", pa.string()), pa.field("_cell_row", pa.int64())]
            return pa.schema([*schema, *fields], metadata=schema.metadata).empty_table()
        return found.sort_by("uri")

    @cached_property
    def _names(self) -> pa.ChunkedArray:
        """The file name of each of `_located`."""
        return file_names(self._located["uri"])

    def _find(self, video: str) -> dict[str, Any]:
        at = find_video(self._located, video, where=self.storage.url, names=lambda: self._names)
        return _row(self._located, at)

    def _rows(
        self,
        table: str,
        video: dict[str, Any],
        first: int,
        count: int,
        *,
        columns: list[str],
        take: Callable[[pa.Table, int], Taken],
    ) -> Iterator[Taken]:
        """`take(rows, place)` of rows [first, first + count) of a shard's table, as StoreFiles.rows; all are the video's."""

        def checked(rows: pa.Table, place: int) -> tuple[int, Taken]:
            if not pc.all(pc.equal(rows["video_id"], video["video_id"])).as_py():
                raise pa.ArrowInvalid(f"rows of {video['uri']} are not where its videos row says")
            return len(rows), take(rows, place)

        done = 0
        for rows, taken in self.tables.rows(
            table, video["_shard_id"], first, count, columns=columns, take=checked
        ):
            done += rows
            yield taken
        if done != count:
            raise StoreError(
                f"{self.storage.url} has {done} of {count} rows of {table} for {video['uri']}: the store is damaged, "
                f"remove receipts/{video['_shard_id']}-*.json and run index again"
            )

    def _token_set(
        self, video: dict[str, Any], columns: dict[str, npt.NDArray[Any]], cells: pa.Table
    ) -> TokenSet:
        store = codec(self.settings.dtype)
        t = columns["t"].astype(np.int64)
        layers = [
            store.decode(columns[f"deepstack_{i}"], columns.get(f"deepstack_{i}_scale"))
            for i in range(self.settings.deepstack_layers)
        ]
        positions = np.stack([t, columns["h"].astype(np.int64), columns["w"].astype(np.int64)], axis=1)
        return TokenSet(
            tokens=store.decode(columns["emb"], columns.get("scale")),
            positions=torch.from_numpy(positions),
            times_s=torch.from_numpy(cells["time_s"].to_numpy()[t]),
            correspondence=torch.from_numpy(columns["correspondence"]),
            echo=torch.from_numpy(columns["echo"]),
            anchor=torch.from_numpy(cells["anchor"].to_numpy()[t]),
            grid_thw=(video["cells"], video["grid_h"], video["grid_w"]),
            deepstack=torch.stack(layers) if layers else None,
        )

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        with self.tables.damage(name), self.tables.open(name) as parquet:
            table = parquet.read()
            if not table.schema.equals(schema, check_metadata=True):
                raise pa.ArrowInvalid("its columns or metadata are not those of this store")
            return table

    def _sha256(self, file: StoredFile) -> str:
        with self.tables.damage(file.name), self.storage.open_input(file.name) as source:
            digest = hashlib.sha256()
            while block := source.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()


def _room(count: int, width: int, *, pin_memory: bool) -> npt.NDArray[np.uint8]:
    if pin_memory:
        return torch.empty((count, width), dtype=torch.uint8, pin_memory=True).numpy()
    # numpy asks the system for large pages, torch does not: 550 MB are filled in 0.15 s, and in 0.55 s.
    return np.empty((count, width), dtype=np.uint8)


def read_settings(storage: Storage) -> StoreSettings:
    """The settings that the store in `storage` was made with."""
    return StoreSettings.from_json(storage.read_bytes(SETTINGS_FILE), where=storage.url_of(SETTINGS_FILE))


def _row(table: pa.Table, at: int) -> dict[str, Any]:
    row: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
    return row
