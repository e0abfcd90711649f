"""The files below one local folder, as `Storage` wants them: built in `<root>/.tmp`, synced, and renamed."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

TMP_DIR = ".tmp"


class LocalFiles:
    """The files below a folder, which is made by the first write. Raises OSErrors as they come."""

    is_local = True

    def __init__(self, folder: str) -> None:
        self.url = str(Path(folder.removeprefix("file://")).expanduser().absolute())

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return Path(self._path(name)).is_file()

    def require_bucket(self) -> None:
        """Nothing: a folder that is missing is made by the first write."""

    def names(self, prefix: str) -> list[str]:
        """Names of all files below a folder."""
        base = len(self.url.rstrip("/")) + 1
        return [name[base:] for name in _walk(self._path(prefix) if prefix else self.url)]

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all files below a folder by name."""
        found: dict[str, int] = {}
        for name in self.names(prefix):
            with suppress(FileNotFoundError):
                found[name] = Path(self.url, name).lstat().st_size
        return found

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return Path(self._path(name)).read_bytes()

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of several files by name."""
        return {name: self.read(name) for name in names}

    def write(self, name: str, data: bytes, *, before: Callable[[], None] | None) -> None:
        """One rename."""
        if before is not None:
            before()
        self._place(data, lambda temporary: _replace(temporary, self._path(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Whether this call made the file."""
        try:
            self._place(data, lambda temporary: self._link(temporary, self._path(name), data))
        except FileExistsError:
            return False
        return True

    def put_file(self, path: str | os.PathLike[str], name: str, *, before: Callable[[], None] | None) -> None:
        """Moves a file, over from another disk if need be."""
        target = self._path(name)
        _sync(path)
        if before is not None:
            before()
        try:
            _replace(os.fspath(path), target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            temporary = self._temporary_path()
            shutil.copyfile(path, temporary)
            _sync(temporary)
            _replace(temporary, target)
            Path(path).unlink()

    def remove(self, name: str) -> None:
        """Removes a file if it is there; of a link the link."""
        folder, _, file = name.rpartition("/")
        Path(self._path(folder) if folder else self.url, file).unlink(missing_ok=True)

    def open_input(self, name: str) -> pa.NativeFile:
        """A pyarrow input file."""
        # Not a memory map: a file that shrinks under one kills the process instead of raising.
        return pa.OSFile(self._path(name), "rb")

    def build_parent(self) -> Path:
        """`<root>/.tmp`: on the same disk, so that `put_file` is a rename, and no table lists it."""
        root = Path(self.url, TMP_DIR)
        _refuse_link(str(root))
        root.mkdir(parents=True, exist_ok=True)
        return root

    def unfinished(self) -> tuple[int, int]:
        """How many files lie in `<root>/.tmp`, and their bytes."""
        sizes: list[int] = []
        for name in _walk(str(Path(self.url, TMP_DIR))):
            with suppress(FileNotFoundError):
                sizes.append(Path(name).stat().st_size)
        return len(sizes), sum(sizes)

    def clear_unfinished(self) -> None:
        """Removes `<root>/.tmp`."""
        shutil.rmtree(Path(self.url, TMP_DIR), ignore_errors=True)

    def _path(self, name: str) -> str:
        """The path of a name. OSError where it, or a folder on the way, is a link: it may lead out of the store."""
        path = self.url.rstrip("/")
        for part in name.split("/"):
            path = f"{path}/{part}"
            _refuse_link(path)
        return path

    def _place(self, data: bytes, put: Callable[[str], None]) -> None:
        """Calls `put` with the path of a new file in `.tmp`; again where that is gone.

        The holder of the lease clears `.tmp` when it begins and ends, whatever its own heartbeat and those who look whether
        it still lives have there for a moment.
        """
        for left in (2, 1, 0):
            try:
                put(self._temporary(data))
            except FileNotFoundError:
                if not left:
                    raise
            else:
                return

    def _temporary_path(self) -> str:
        return str(self.build_parent() / uuid.uuid4().hex)

    def _temporary(self, data: bytes) -> str:
        path = self._temporary_path()
        try:
            # Not tempfile: its mode 0600 would survive the rename and lock other readers out.
            with Path(path).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
        return path

    def _link(self, temporary: str, path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            # A hard link appears with its content; open(O_EXCL) would show an empty file for a moment.
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:
            # File systems without hard links.
            with Path(path).open("xb") as file:
                file.write(data)
                os.fsync(file.fileno())
        finally:
            Path(temporary).unlink(missing_ok=True)
        _sync(Path(path).parent)


def _refuse_link(path: str) -> None:
    if os.path.islink(path):  # noqa: PTH114  (5x faster than Path, and asked for every name)
        raise OSError(errno.ELOOP, f"{path} is a symbolic link, and a store holds none", path)


def _walk(folder: str) -> list[str]:
    if Path(folder).is_file():
        return [folder]

    def fail(error: OSError) -> None:
        # os.walk is silent by default; a folder without read permission must not look empty.
        if not isinstance(error, FileNotFoundError):
            raise error

    found: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.extend(f"{parent}/{file}" for file in files)
    return found


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(temporary: str, path: str) -> None:
    parent = Path(path).parent
    parent.mkdir(parents=True, exist_ok=True)
    Path(temporary).replace(path)
    _sync(parent)
