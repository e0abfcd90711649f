"""The files below one s3:// URL, as `Storage` wants them, and reading one of them here and there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from echoprune.s3_client import S3Client, s3_client
from echoprune.s3_objects import S3Part
from echoprune.s3_options import S3Options, S3Place, s3_place
from echoprune.store_errors import store_errors

# A Parquet file of scalar columns is read whole by its first request; of others the footer is in it.
TAIL_BYTES = 64 << 10
# Columns of a row group lie side by side: small ones come with the one before.
AHEAD_BYTES = 256 << 10


class ObjectFiles:
    """The objects below `url`. Nothing is cached: what another process wrote a moment ago is seen."""

    is_local = False

    def __init__(self, url: str, options: S3Options) -> None:
        self.url = url.rstrip("/")
        self._options = options
        self._base = s3_place(self.url)

    @property
    def _client(self) -> S3Client:
        return s3_client(self._options)

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self._client.head(self._place(name)) is not None

    def require_bucket(self) -> None:
        """Raises FileNotFoundError where the bucket is missing."""
        next(self._client.below(self._place("")), None)

    def names(self, prefix: str) -> list[str]:
        """Names of all objects below a folder."""
        return list(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects below a folder by name."""
        base = self._place("")
        below = self._place(f"{prefix}/") if prefix else base
        return {
            found.key[len(base.key) :]: found.size_bytes
            for found in self._client.below(below)
            if not found.key.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """The content of one object."""
        return self._client.read(self._place(name)).data

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of several objects by name."""
        return dict(zip(names, self._client.read_many([self._place(name) for name in names]), strict=True))

    def write(self, name: str, data: bytes, *, before: Callable[[], None] | None) -> None:
        """One put."""
        self._client.write(self._place(name), data, before=before)

    def create(self, name: str, data: bytes) -> bool:
        """Whether this call made the object."""
        return self._client.create(self._place(name), data)

    def put_file(self, path: str | os.PathLike[str], name: str, *, before: Callable[[], None] | None) -> None:
        """Moves a local file."""
        self._client.put_file(path, self._place(name), before=before)
        Path(path).unlink()

    def remove(self, name: str) -> None:
        """Removes an object if it is there."""
        self._client.remove(self._place(name))

    def open_input(self, name: str) -> pa.PythonFile:
        """A pyarrow input file that asks for what is read."""
        reader = ObjectReader(self._client, self._place(name))
        reader.fill()
        return pa.PythonFile(reader, mode="r")

    def build_parent(self) -> Path | None:
        """None: a folder of this process on the local disk."""
        return None

    def unfinished(self) -> tuple[int, int]:
        """How many uploads were begun and not ended; their bytes are not known."""
        return len(self._client.unfinished_uploads(self._place(""))), 0

    def clear_unfinished(self) -> None:
        """Removes uploads that were begun and not ended."""
        for key, upload_id in self._client.unfinished_uploads(self._place("")):
            self._client.abort(self._base.bucket, key, upload_id)

    def _place(self, name: str) -> S3Place:
        key = f"{self._base.key}/{name}" if self._base.key else name
        return S3Place(self._base.bucket, key)


class ObjectReader(io.RawIOBase):
    """An object as a seekable file of bytes, each stretch of it asked for when it is read.

    Its end is fetched first, `ahead_bytes` at least with each request, and kept until the next. Raises StoreError where it
    cannot be read, or is another object than when it was opened.
    """

    def __init__(self, client: S3Client, place: S3Place, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        super().__init__()
        self._client, self._place, self._ahead = client, place, ahead_bytes
        self._at = 0
        self._whole: S3Part | None = None
        self._held: list[tuple[int, bytes]] = []

    def fill(self) -> S3Part:
        """Fetches the end of the object, with its size and etag; raises FileNotFoundError and other OSErrors."""
        if self._whole is None:
            tail = self._client.read(self._place, first=-TAIL_BYTES)
            self._whole = S3Part(b"", tail.size_bytes, tail.etag)
            self._held = [(tail.size_bytes - len(tail.data), tail.data), (0, b"")]
        return self._whole

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """The new place, `offset` bytes from the start, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size()}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, all that are left where it is negative; fewer only at the end."""
        left = max(0, self._size() - self._at)
        count = left if size is None or size < 0 else min(size, left)
        data = self._stretch(self._at, count) if count else b""
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """All bytes that are left."""
        return self.read()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Bytes read into `buffer`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _size(self) -> int:
        with store_errors(f"read {self._place.url}"):
            return self.fill().size_bytes

    def _stretch(self, begin: int, count: int) -> bytes:
        for at, data in self._held:
            if at <= begin and begin + count <= at + len(data):
                return data[begin - at : begin - at + count]
        with store_errors(f"read {self._place.url}"):
            whole = self.fill()
            wanted = min(max(count, self._ahead), whole.size_bytes - begin)
            found = self._client.read(self._place, first=begin, count=wanted)
            if (found.etag, found.size_bytes) != (whole.etag, whole.size_bytes) or len(found.data) != wanted:
                raise OSError(f"{self._place.url} was replaced while it was read; open it again")
        self._held[1] = (begin, found.data)
        return found.data[:count]
