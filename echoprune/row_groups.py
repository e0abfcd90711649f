"""One Parquet table written as row groups of whole videos, over one or more files of limited size.

How rows become columns is in shard.py. Bytes depend on the rows and on where videos end, on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.receipt import StoredFile

# Uncompressed. Row groups are what threads share out when they read: a question about five minutes of 3,584-wide tokens at
# 64 a cell reads 17 of these, and read 3 of the 48 MB that they had before. One video of many is read in 5 ms from groups
# of 1,000 rows (7 MB) and in 195 ms from 98,000.
ROW_GROUP_BYTES = 8 << 20
FILE_BYTES = 1 << 30
# Of a file: its schema, and the headers of a row group's pages; and of each column of a row group in the footer, which takes
# 100 bytes.
FOOTER_BYTES = 64 << 10
_COLUMN_BYTES = 200
# 20,000 x 3,584 Gaussian bf16 values, write / read MB/s and size on 2 cores: none 829 / 3857, 1.00; zstd 1
# 573 / 1699, 0.78; zstd 3 510 / 1439, 0.78; zstd 6 90 / 572, 0.78. Byte stream split with zstd 1 gives 0.77 at
# 244 / 673. Page checksums cost 0 to 25 % and find damage. The whole ShardWriter
# does 250 MB/s on 2 cores; 691 frames/s of a 7B model (one H200) at 64 tokens a cell are 158 MB/s.
_ZSTD_LEVEL = 1


@dataclass(frozen=True)
class BuiltFile:
    """A finished file on local disk and what the receipt will say of it."""

    path: Path
    entry: StoredFile

    def named_by_content(self) -> BuiltFile:
        """The same file, the first 8 digits of its sha256 at the end of its name in the store.

        Whoever else writes that shard, such as a worker that lost the store and does not know it yet, writes the same file
        under that name, or another one under another.
        """
        stem, _, suffix = self.entry.name.rpartition(".")
        name = f"{stem}-{self.entry.sha256[:8]}.{suffix}"
        return replace(self, entry=replace(self.entry, name=name))


class GroupedTable:
    """One table of a shard, written as row groups that do not cut a video which would fit into one.

    A longer video is cut every `group_rows` rows, wherever its chunks end. A file that would grow beyond
    `file_bytes` is closed and the next one of `names` begun. `compression` is that of vectors, "zstd" or "none"; other columns
    are packed by zstd.
    """

    def __init__(
        self,
        folder: Path,
        names: Iterator[str],
        schema: pa.Schema,
        *,
        group_rows: int,
        file_bytes: int | None,
        compression: str = "zstd",
    ) -> None:
        self.schema = schema
        self.rows = 0
        self._compression = compression
        self._folder = folder
        self._names = names
        self._group_rows = group_rows
        self._file_bytes = file_bytes
        self._settled: list[pa.Table] = []
        self._current: list[pa.Table] = []
        self._name = ""
        self._file_rows = self._file_groups = 0
        self._sink: Any = None
        self._writer: Any = None
        self._built: list[BuiltFile] = []

    def push(self, table: pa.Table) -> None:
        """Add rows of the current video."""
        self.rows += table.num_rows
        self._current.append(table)
        while _rows(self._settled) + _rows(self._current) > self._group_rows:
            if self._settled:
                self._write(pa.concat_tables(self._settled))
                self._settled = []
            else:
                whole = pa.concat_tables(self._current)
                self._write(whole.slice(0, self._group_rows))
                self._current = [whole.slice(self._group_rows)]

    def settle(self) -> None:
        """Say that the current video has no more rows."""
        self._settled += self._current
        self._current = []

    def close(self) -> list[BuiltFile]:
        """Write what is left; the finished files in order, none if there was no row."""
        self.settle()
        if _rows(self._settled):
            self._write(pa.concat_tables(self._settled))
            self._settled = []
        self._finish_file()
        return self._built

    def _write(self, group: pa.Table) -> None:
        # One chunk per column: page boundaries would otherwise follow the caller's chunks.
        group = group.combine_chunks()
        # Values that do not compress grow by less than 1 %.
        worst = group.nbytes + group.nbytes // 100 + FOOTER_BYTES
        worst += (self._file_groups + 1) * len(self.schema) * _COLUMN_BYTES
        if self._writer is not None and self._file_bytes and self._sink.tell() + worst > self._file_bytes:
            self._finish_file()
        if self._writer is None:
            self._begin_file()
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._file_rows += group.num_rows
        self._file_groups += 1

    def _begin_file(self) -> None:
        self._name = next(self._names)
        path = self._folder / self._name
        path.parent.mkdir(parents=True, exist_ok=True)
        scalars = [field.name for field in self.schema if not pa.types.is_fixed_size_binary(field.type)]
        repeated = [name for name in scalars if not pa.types.is_floating(self.schema.field(name).type)]
        packed = self.schema.names if self._compression == "zstd" else scalars
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(
            self._sink,
            self.schema,
            compression={name: "zstd" if name in packed else "none" for name in self.schema.names},
            compression_level=dict.fromkeys(packed, _ZSTD_LEVEL),
            use_dictionary=repeated,
            write_statistics=scalars,
            write_page_checksum=True,
        )

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._sink.close()
        path = self._folder / self._name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._built.append(
            BuiltFile(path, StoredFile(self._name, self._file_rows, path.stat().st_size, digest))
        )
        self._writer = self._sink = None
        self._file_rows = self._file_groups = 0


def _rows(tables: Sequence[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)
