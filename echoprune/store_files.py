"""Row groups of a store's Parquet files: whole tables one after another, or a stretch of rows read in several threads.

What the rows of a video are is in store.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.ahead import ahead
from echoprune.errors import StoreError
from echoprune.receipt import Receipt, StoredFile
from echoprune.storage import Storage

Taken = TypeVar("Taken")

# A core unpacks 0.3 to 0.6 GB of zstd vectors a second, or copies 1.2 GB of plain ones; a GPU takes more. 320 frames of 256
# tokens, a quarter kept, are 11 row groups: at 8 threads two rounds, at 16 one.
READERS = min(16, os.cpu_count() or 1)
# Row groups that are read at once take no more than this, unpacked: those of older stores have 48 MB.
READ_BYTES = 256 << 20
# Tables of one row each that wait to be made one: each takes 45 KB, whatever is in it (pyarrow 26).
TOGETHER = 256


@dataclass(frozen=True)
class RowGroup:
    """A row group of a store's file: rows [first, first + rows) of its table in its shard."""

    name: str
    index: int
    first: int
    rows: int


@dataclass(frozen=True)
class StoreFiles:
    """The table files that receipts cover. Damage is a StoreError that names the file and the cure."""

    storage: Storage
    receipts: Mapping[str, Receipt]

    def row_groups(self, table: str, shard_id: str) -> list[RowGroup]:
        """The row groups of a table of one shard, in the order in which its rows count; reads footers only."""
        groups: list[RowGroup] = []
        first = 0
        for file in self.receipts[shard_id].files_of(table):
            with self.damage(file.name), self.open(file.name) as parquet:
                for index in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(index).num_rows
                    groups.append(RowGroup(file.name, index, first, rows))
                    first += rows
        return groups

    def read_groups(
        self, groups: Iterable[RowGroup], columns: Sequence[str]
    ) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Each row group with its rows, of the named columns; a file is opened once for groups that follow."""
        for name, of_file in groupby(groups, key=lambda group: group.name):
            with self.damage(name), self.open(name) as parquet:
                for group in of_file:
                    yield group, parquet.read_row_group(group.index, columns=list(columns))

    def rows(
        self,
        table: str,
        shard_id: str,
        first: int,
        count: int,
        *,
        columns: Sequence[str],
        take: Callable[[pa.Table, int], Taken],
    ) -> Iterator[Taken]:
        """`take(rows, place)` of rows [first, first + count) of a table of one shard, a row group at a time, in order.

        `place`: of the first of these rows within the stretch. Row groups are read, and `take` is called, in up to READERS
        threads at once. Fewer rows come where the table ends early.
        """
        begin, stop = 0, first + count
        for file in self.receipts[shard_id].files_of(table):
            if begin < stop and begin + file.rows > first:
                with self.damage(file.name), _Reader(self, file) as reader:
                    yield from reader.take(first - begin, stop - begin, columns, take)
            begin += file.rows

    @contextmanager
    def open(self, name: str, *, metadata: pq.FileMetaData | None = None) -> Iterator[Any]:
        """The file as a pyarrow ParquetFile that checks its pages. Raises StoreError where it is gone.

        `metadata`: what its footer was found to say before, which is then not read again.
        """
        try:
            opened = self.storage.open_input(name)
        except StoreError:
            if self.storage.exists(name):
                raise
            raise StoreError(
                f"{self.storage.url_of(name)} is gone: retry, forget or compact wrote its shard again since the store was opened, "
                "so open it again; if that does not help, `echoprune verify` says what is missing"
            ) from None
        with opened as source:
            yield pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)

    @contextmanager
    def damage(self, name: str) -> Iterator[None]:
        """Turns what pyarrow says of a damaged file within the block into a StoreError."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            shard_id = Path(name).name.split(".")[0].split("-")[0]
            raise StoreError(
                f"{self.storage.url_of(name)} is damaged ({reason}): remove receipts/{shard_id}-*.json and run index "
                "again, which redoes that shard"
            ) from error


@dataclass(frozen=True)
class _Part:
    """Rows [begin, stop) of a row group; `place`: of the first of them within the stretch that is read."""

    index: int
    begin: int
    stop: int
    place: int


class _Reader:
    """One file, opened once for each thread that reads from it at the same time."""

    def __init__(self, files: StoreFiles, file: StoredFile) -> None:
        self._files, self._name = files, file.name
        self._opened = ExitStack()
        self._idle: list[Any] = []
        self._metadata: pq.FileMetaData | None = None

    def __enter__(self) -> _Reader:
        parquet = self._open()
        self._metadata = parquet.metadata
        self._idle.append(parquet)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def take(
        self, first: int, stop: int, columns: Sequence[str], take: Callable[[pa.Table, int], Taken]
    ) -> Iterator[Taken]:
        """As `StoreFiles.rows`, of rows [first, stop) counted from the file's first, those before and behind it left out."""
        parts = self._parts(first, stop)

        def read(part: _Part) -> Taken:
            group = self._read(part.index, columns, alone=len(parts) == 1)
            return take(group.slice(part.begin, part.stop - part.begin), part.place)

        if len(parts) == 1:
            yield read(parts[0])
            return
        assert self._metadata is not None
        largest = max((self._metadata.row_group(part.index).total_byte_size for part in parts), default=1)
        yield from ahead(read, parts, threads=max(1, min(READERS, READ_BYTES // largest)))

    def _parts(self, first: int, stop: int) -> list[_Part]:
        assert self._metadata is not None
        parts, at = [], 0
        for index in range(self._metadata.num_row_groups):
            rows = self._metadata.row_group(index).num_rows
            begin, end = max(0, first - at), min(rows, stop - at)
            if begin < end:
                parts.append(_Part(index, begin, end, at + begin - first))
            at += rows
        return parts

    def _read(self, index: int, columns: Sequence[str], *, alone: bool) -> pa.Table:
        # Both are atomic, and a file that two threads have open twice costs no more than that.
        parquet = self._idle.pop() if self._idle else self._open()
        try:
            # Columns of a lone row group are what else there is to share out.
            return parquet.read_row_group(index, columns=list(columns), use_threads=alone)
        finally:
            self._idle.append(parquet)

    def _open(self) -> Any:
        return self._opened.enter_context(self._files.open(self._name, metadata=self._metadata))


def in_one(tables: Iterable[pa.Table], *, promote: str = "none") -> pa.Table | None:
    """All rows of the tables, which come one by one and are not kept; None of none. `promote`: how schemas may differ."""
    parts, fresh = list[pa.Table](), list[pa.Table]()
    for table in tables:
        fresh.append(table)
        if len(fresh) == TOGETHER:
            parts.append(pa.concat_tables(fresh, promote_options=promote).combine_chunks())
            fresh.clear()
    return pa.concat_tables([*parts, *fresh], promote_options=promote) if parts or fresh else None


def column_values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """(n,) values, or (n, bytes) uint8 of a fixed_size_binary column, without a Python object per row.

    The memory is the column's own where that is in one piece.
    """
    # combine_chunks copies a single piece too: 0.1 s for 550 MB.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not pa.types.is_fixed_size_binary(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width).reshape(
        -1, width
    )
