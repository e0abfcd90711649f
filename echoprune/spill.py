"""A file of rows of one size: appended, thinned out in place, read by ascending places. No row has a meaning here."""

from __future__ import annotations

import errno
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from echoprune.data import IntArray
from echoprune.errors import StoreError

Rows = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]

# A few MB at a time: sequential speed, whatever the size of a row.
BLOCK_BYTES = 4 << 20


class Closing(ABC):
    """What holds files until its `close`, which the end of a `with` block calls."""

    @abstractmethod
    def close(self) -> None:
        """Give up the files; may be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SpillFile:
    """Rows of one size in a local file that is gone when it is closed or its process dies.

    `folder`: an existing local folder. `rows`: how many the file holds. Raises StoreError, naming the folder, where
    the file cannot be made, written (a full disk) or read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows = 0
        self._row_bytes = 1
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise self._error("create a file", error) from error

    def close(self) -> None:
        """Give up the file; may be called again."""
        self._file.close()

    def append(self, rows: Rows) -> None:
        """Add these opaque rows (n,) at the end of the file."""
        self._row_bytes = rows.itemsize
        self._write(rows, at=self.rows)
        self.rows += len(rows)

    def retain(self, keep: BoolArray) -> None:
        """Drop every row but those of `keep` (rows,), whose order stays."""
        written = 0
        for start in range(0, self.rows, self._block_rows):
            part = keep[start : start + self._block_rows]
            rows = self._read(start, len(part))[part]
            # In place: the write ends at or before the end of what has been read.
            self._write(rows, at=written)
            written += len(rows)
        self._file.truncate(written * self._row_bytes)
        self.rows = written

    def read_at(self, places: IntArray) -> Rows:
        """(m,) opaque rows at the ascending `places` (m,), read in blocks from the first to the last."""
        found = np.empty(len(places), dtype=f"V{self._row_bytes}")
        done = 0
        while done < len(places):
            start = int(places[done])
            end = int(np.searchsorted(places, start + self._block_rows))
            block = self._read(start, int(places[end - 1]) + 1 - start)
            found[done:end] = block[places[done:end] - start]
            done = end
        return found

    @property
    def _block_rows(self) -> int:
        return max(1, BLOCK_BYTES // self._row_bytes)

    def _read(self, start: int, count: int) -> Rows:
        block = np.empty(count, dtype=f"V{self._row_bytes}")
        target = block.view(np.uint8).data
        try:
            self._file.seek(start * self._row_bytes)
            while target:
                got = self._file.readinto(target)
                if got == 0:
                    raise StoreError(
                        f"spill file in {self._folder} ends early; was it cut from outside? Run again"
                    )
                target = target[got:]
        except OSError as error:
            raise self._error("read", error) from error
        return block

    def _write(self, rows: Rows, *, at: int) -> None:
        source = rows.view(np.uint8).data
        try:
            self._file.seek(at * self._row_bytes)
            while source:
                source = source[self._file.write(source) :]
        except OSError as error:
            raise self._error(f"write {len(rows) * self._row_bytes} bytes", error) from error

    def _error(self, action: str, error: OSError) -> StoreError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = "free space there, or choose" if full else "name a local folder that can be written, or choose"
        return StoreError(
            f"cannot {action} in the spill folder {self._folder}: {error.strerror}; {cure} another --store"
        )


class SpilledColumn(Closing):
    """A column (n, `width`) uint8 that grows in a spill file of `folder`; slices of it are read when asked for."""

    def __init__(self, folder: Path, width: int) -> None:
        self._file = SpillFile(folder)
        self._width = width

    def close(self) -> None:
        """Give up the file; may be called again."""
        self._file.close()

    def append(self, values: ByteArray) -> None:
        """Add values (m, width) uint8 at the end."""
        if values.dtype != np.uint8 or values.ndim != 2 or values.shape[1] != self._width:
            raise ValueError(f"values must be uint8 (m, {self._width}), got {values.dtype} {values.shape}")
        self._file.append(np.ascontiguousarray(values).view(f"V{self._width}")[:, 0])

    @property
    def shape(self) -> tuple[int, int]:
        """(n, width)."""
        return self._file.rows, self._width

    def __getitem__(self, part: slice) -> ByteArray:
        """The rows of a slice of step 1, (m, width) uint8, a copy."""
        start, stop, step = part.indices(self._file.rows)
        if step != 1:
            raise ValueError(f"a spilled column is read in steps of 1, got {step}")
        rows = self._file.read_at(np.arange(start, stop))
        return rows.view(np.uint8).reshape(-1, self._width)


def opaque(rows: Rows) -> Rows:
    """(n,) rows as plain bytes of the same size: structured rows would be copied field by field."""
    return np.ascontiguousarray(rows).view(f"V{rows.itemsize}")
