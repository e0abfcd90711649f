"""Files of a store, on local disk or on any fsspec file system.

A `Storage` knows one root and the names below it. A name appears whole or not at all: on local disk a file is
built in `<root>/.tmp`, synced and renamed; on an object store it is one put. Names cannot leave the root.
Which files make a store, and in which order they are written, is not known here.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from echoprune.errors import StoreError

TMP_DIR = ".tmp"
_PART = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*")


@contextmanager
def store_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the block into a one-line StoreError with a cure; `action` is what was being done."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        cures = {
            errno.ENOSPC: "free space on that disk, or choose another --store",
            errno.EDQUOT: "free space in that quota, or choose another --store",
            errno.EACCES: "grant this user access, or choose another --store",
            errno.EPERM: "grant this user access, or choose another --store",
            errno.EROFS: "choose a --store on a disk that can be written",
            errno.ENOENT: "check the path",
        }
        cure = cures.get(error.errno or 0, "check that disk or service and run again")
        raise StoreError(f"cannot {action}: {' '.join(reason.split())}; {cure}") from error


class Storage:
    """The files below one root: a local folder, or a URL such as s3://bucket/store.

    Picklable: another process opens the same root anew. A local folder is made by the first write.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        if not text:
            raise StoreError("the store path is empty: name a folder or a URL such as s3://bucket/store")
        self.is_local = "://" not in text or text.startswith("file://")
        if self.is_local:
            self.url = str(Path(text.removeprefix("file://")).expanduser().absolute())
            self._base = self.url
        else:
            self.url = text.rstrip("/")
            try:
                self._fs, self._base = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as error:
                raise StoreError(
                    f"cannot use {self.url} as a store: {error}; use a local folder or s3://"
                ) from error

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def url_of(self, name: str) -> str:
        """Absolute path or URL of a name, as Parquet readers take it."""
        return f"{self.url}/{_checked(name)}"

    def exists(self, name: str) -> bool:
        """Whether a file of this name is there."""
        path = self._path(name)
        with store_errors(f"look for {self.url_of(name)}"):
            if self.is_local:
                return Path(path).is_file()
            self._fs.invalidate_cache()
            return bool(self._fs.isfile(path))

    def names(self, prefix: str = "") -> list[str]:
        """All names below a folder, sorted, without hidden files; empty where the folder is not there."""
        path = self._path(prefix) if prefix else self._base
        with store_errors(f"list {self.url}/{prefix}"):
            if self.is_local:
                found = _walk(path)
            else:
                # A cached listing would hide another process's lease or receipt.
                self._fs.invalidate_cache()
                found = [str(name) for name in self._fs.find(path)]
        base = len(self._base.rstrip("/")) + 1
        names = [name[base:] for name in found]
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def read_bytes(self, name: str) -> bytes:
        """The content of one file. Raises StoreError where it is missing or cannot be read."""
        path = self._path(name)
        with store_errors(f"read {self.url_of(name)}"):
            return Path(path).read_bytes() if self.is_local else bytes(self._fs.cat_file(path))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of several files by name; object stores are asked for all of them at once."""
        if self.is_local or not names:
            return {name: self.read_bytes(name) for name in names}
        paths = [self._path(name) for name in names]
        with store_errors(f"read {len(names)} files of {self.url}"):
            content = self._fs.cat(paths)
        if isinstance(content, bytes):
            return {names[0]: content}
        # fsspec keys by its own spelling of the path, which may differ by a leading slash.
        by_path = {str(path).lstrip("/"): value for path, value in content.items()}
        return {name: bytes(by_path[path.lstrip("/")]) for name, path in zip(names, paths, strict=True)}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file whole, replacing what was there."""
        path = self._path(name)
        with store_errors(f"write {self.url_of(name)}"):
            if self.is_local:
                _replace(self._temporary(data), path)
            else:
                self._fs.pipe_file(path, data)

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """True if this call made the file, False if it was there already; of two racing calls one wins.

        Local disk: exact. Object stores: exact where fsspec's mode="create" is a conditional put (AWS S3);
        elsewhere it looks first and then writes, so that two writers within that moment may both win.
        """
        path = self._path(name)
        with store_errors(f"create {self.url_of(name)}"):
            try:
                if self.is_local:
                    self._link(self._temporary(data), path, data)
                else:
                    self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
        return True

    def put_file(self, local_path: str | os.PathLike[str], name: str) -> None:
        """Move a finished local file into the store under `name`, replacing what was there."""
        path = self._path(name)
        with store_errors(f"write {self.url_of(name)}"):
            if self.is_local:
                _sync(local_path)
                try:
                    _replace(os.fspath(local_path), path)
                    return
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                temporary = self._temporary_path()
                shutil.copyfile(local_path, temporary)
                _sync(temporary)
                _replace(temporary, path)
            else:
                self._fs.put_file(os.fspath(local_path), path)
            Path(local_path).unlink()

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens if it is not there."""
        path = self._path(name)
        with store_errors(f"remove {self.url_of(name)}"):
            try:
                if self.is_local:
                    Path(path).unlink()
                else:
                    self._fs.rm_file(path)
            except FileNotFoundError:
                return

    def open_input(self, name: str) -> Any:
        """A seekable pyarrow input file."""
        path = self._path(name)
        with store_errors(f"open {self.url_of(name)}"):
            # Not a memory map: a file that shrinks under one kills the process instead of raising.
            return (
                pa.OSFile(path, "rb") if self.is_local else pa.PythonFile(self._fs.open(path, "rb"), mode="r")
            )

    @contextmanager
    def tmp_dir(self) -> Iterator[Path]:
        """A new local folder to build files in, removed at the end; beside the store where that is local.

        On local disk it lies in `<root>/.tmp`, so that `put_file` is a rename and tables never list it.
        """
        with store_errors(f"make a temporary folder for {self.url}"):
            parent = self._tmp_root() if self.is_local else None
            folder = Path(tempfile.mkdtemp(prefix="build-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear_tmp(self) -> None:
        """Remove what killed processes left in `<root>/.tmp`. Only for the holder of the lease."""
        if self.is_local:
            shutil.rmtree(Path(self._base, TMP_DIR), ignore_errors=True)

    def _path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{_checked(name)}"

    def _tmp_root(self) -> Path:
        root = Path(self._base, TMP_DIR)
        root.mkdir(parents=True, exist_ok=True)
        return root

    def _temporary_path(self) -> str:
        return str(self._tmp_root() / uuid.uuid4().hex)

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
        except FileExistsError:
            raise
        except OSError:
            # File systems without hard links.
            with Path(path).open("xb") as file:
                file.write(data)
                os.fsync(file.fileno())
        finally:
            Path(temporary).unlink()
        _sync(Path(path).parent)


def _checked(name: str) -> str:
    """The name itself, if every part of it is plain; so it cannot leave the root or hide."""
    if all(_PART.fullmatch(part) for part in name.split("/")):
        return name
    raise StoreError(
        f"{name!r} is not a name inside a store: use parts of letters, digits, _ - . = joined by /"
    )


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
