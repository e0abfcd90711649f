"""Row groups of a store's Parquet files, for readers that go through whole tables; one video is read by store.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.errors import StoreError
from echoprune.receipt import Receipt
from echoprune.storage import Storage


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

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """The file as a pyarrow ParquetFile that checks its pages."""
        with self.storage.open_input(name) as source:
            yield pq.ParquetFile(source, page_checksum_verification=True)

    @contextmanager
    def damage(self, name: str) -> Iterator[None]:
        """Turns what pyarrow says of a damaged file within the block into a StoreError."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            shard_id = Path(name).name.split(".")[0].split("-")[0]
            raise StoreError(
                f"{self.storage.url_of(name)} is damaged ({reason}): remove receipts/{shard_id}.json and run index "
                "again, which redoes that shard"
            ) from error


def column_values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """(n,) values, or (n, bytes) uint8 of a fixed_size_binary column, without a Python object per row."""
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_binary(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    width = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width).reshape(
        -1, width
    )
