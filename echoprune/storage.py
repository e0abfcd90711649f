"""Files of a store, in a local folder or in S3.

A `Storage` knows one root and the names below it. A name appears whole or not at all: on local disk a file is
built in `<root>/.tmp`, synced and renamed (local_files.py); in S3 it is one put (object_files.py). Names cannot leave the
root. Which files make a store, and in which order they are written, is not known here.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from echoprune.credentials import without_secrets
from echoprune.errors import NotAStoreError, StoreError
from echoprune.local_files import TMP_DIR, LocalFiles
from echoprune.own_folder import OwnFolder
from echoprune.s3_options import S3Options, current_s3, is_s3, require_whole_scheme
from echoprune.store_errors import store_errors

__all__ = ["TMP_DIR", "Files", "Storage", "store_errors"]

_PART = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*")


class Files(Protocol):
    """What a place for files has to do; names are checked before. Errors are OSErrors. See LocalFiles and ObjectFiles.

    `before` is called ahead of each attempt to put a file, and may raise to end it.
    """

    url: str

    def exists(self, name: str) -> bool: ...  # noqa: D102 - as in Storage
    def names(self, prefix: str) -> list[str]: ...  # noqa: D102
    def sizes(self, prefix: str) -> dict[str, int]: ...  # noqa: D102
    def read(self, name: str) -> bytes: ...  # noqa: D102
    def read_many(self, names: Sequence[str]) -> dict[str, bytes]: ...  # noqa: D102
    def write(self, name: str, data: bytes, *, before: Callable[[], None] | None) -> None: ...  # noqa: D102
    def create(self, name: str, data: bytes) -> bool: ...  # noqa: D102
    def put_file(  # noqa: D102
        self, path: str | os.PathLike[str], name: str, *, before: Callable[[], None] | None
    ) -> None: ...
    def remove(self, name: str) -> None: ...  # noqa: D102
    def open_input(self, name: str) -> Any: ...  # noqa: D102
    def build_parent(self) -> Path | None: ...  # noqa: D102
    def unfinished(self) -> tuple[int, int]: ...  # noqa: D102
    def require_bucket(self) -> None: ...  # noqa: D102
    def clear_unfinished(self) -> None: ...  # noqa: D102


class Storage:
    """The files below one root: a local folder, or a URL such as s3://bucket/store.

    `s3`: how to reach it, None for the options of this process. Picklable: another process opens the same root anew, with
    the same options. A local folder is made by the first write.
    """

    def __init__(self, url: str | os.PathLike[str], *, s3: S3Options | None = None) -> None:
        text = os.fspath(url)
        if not text:
            raise StoreError("the store path is empty: name a folder or a URL such as s3://bucket/store")
        require_whole_scheme(text)
        self.is_local = "://" not in text or text.startswith("file://")
        self.s3 = s3 or current_s3()
        if self.is_local:
            self._files: Files = LocalFiles(text)
        elif is_s3(text):
            # Loads s3fs, which takes half a second.
            from echoprune.object_files import ObjectFiles  # noqa: PLC0415

            self._files = ObjectFiles(text, self.s3)
        else:
            raise StoreError(f"cannot use {without_secrets(text)} as a store: use a local folder or s3://")
        self.url = self._files.url

    def __reduce__(self) -> tuple[Any, tuple[str, S3Options]]:
        return (_reopened, (self.url, self.s3))

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def url_of(self, name: str) -> str:
        """Absolute path or URL of a name, as Parquet readers take it."""
        return f"{self.url}/{checked_name(name)}"

    def exists(self, name: str) -> bool:
        """Whether a file of this name is there."""
        with store_errors(f"look for {self.url_of(name)}"):
            return self._files.exists(name)

    def require_bucket(self) -> None:
        """Raises NotAStoreError where the bucket of the root is missing: all that `exists` says of that is False."""
        with store_errors(f"look into {self.url}"):
            try:
                self._files.require_bucket()
            except FileNotFoundError as error:
                reason = " ".join(str(error).split())
                raise NotAStoreError(
                    f"cannot look into {self.url}: {reason}; check the bucket and --s3-endpoint"
                ) from error

    def names(self, prefix: str = "") -> list[str]:
        """All names below a folder, sorted, without hidden files; empty where the folder is not there."""
        with store_errors(f"list {self.url}/{prefix}"):
            found = self._files.names(checked_name(prefix) if prefix else "")
        return sorted(name for name in found if not _hidden(name))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of each of `names(prefix)`; a file that vanishes meanwhile is left out."""
        with store_errors(f"list {self.url}/{prefix}"):
            found = self._files.sizes(checked_name(prefix) if prefix else "")
        return {name: found[name] for name in sorted(found) if not _hidden(name)}

    def unfinished(self) -> tuple[int, int]:
        """How many files are being built, or were left by killed processes, and their bytes.

        On local disk those in `<root>/.tmp`; in S3 uploads in parts, whose bytes are not known and counted as 0.
        """
        with store_errors(f"look for unfinished files of {self.url}"):
            return self._files.unfinished()

    def read_bytes(self, name: str) -> bytes:
        """The content of one file. Raises StoreError where it is missing or cannot be read."""
        with store_errors(f"read {self.url_of(name)}"):
            return self._files.read(name)

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of several files by name; S3 is asked for several at once."""
        for name in names:
            checked_name(name)
        with store_errors(f"read {names[0] if len(names) == 1 else f'{len(names)} files'} of {self.url}"):
            return self._files.read_many(names)

    def write_bytes(self, name: str, data: bytes, *, before: Callable[[], None] | None = None) -> None:
        """Write one file whole, replacing what was there; `before` is called ahead of each attempt, and may raise."""
        with store_errors(f"write {self.url_of(name)}"):
            self._files.write(name, data, before=before)

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """True if this call made the file, False if it was there already; of two racing calls one wins.

        Exact on local disk, and on servers that take conditional puts (AWS S3). On others both may win if one of them
        stands still for more than a second in between, see S3Client.create.
        """
        with store_errors(f"create {self.url_of(name)}"):
            return self._files.create(name, data)

    def claim(self, marker: str, data: bytes, *, lacks: str, option: str) -> bytes:
        """The content of `marker`, by which a folder says what it holds; `data` now, if the folder was empty.

        Raises NotAStoreError if it holds other things: `lacks` says what it is not ("it is no store"), `option` names it.
        """
        if not self.exists(marker):
            self.require_empty(marker, lacks=lacks, option=option)
            self.create_exclusive(marker, data)
        return self.read_bytes(marker)

    def require_empty(self, marker: str, *, lacks: str, option: str) -> None:
        """Raises what `claim` would where there is no `marker`: that something else is there, or no such bucket."""
        self.require_bucket()
        names = self.names()
        # Another process may have made it meanwhile.
        if names and marker not in names:
            raise NotAStoreError(
                f"{self.url} holds {names[0]} but no {marker}, so {lacks}: use an empty or new {option}"
            )

    def put_file(
        self,
        local_path: str | os.PathLike[str],
        name: str,
        *,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Move a finished local file into the store under `name`, replacing what was there; `before` as in write_bytes."""
        with store_errors(f"write {self.url_of(name)}"):
            self._files.put_file(local_path, name, before=before)

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens if it is not there.

        Any of `names()`, also one that is not plain: what people put into a table's folder is in the way of globs too.
        """
        if not _inside(name):
            raise StoreError(f"{name!r} is not a name inside a store")
        with store_errors(f"remove {self.url}/{name}"):
            self._files.remove(name)

    def open_input(self, name: str) -> Any:
        """A seekable pyarrow input file."""
        with store_errors(f"open {self.url_of(name)}"):
            return self._files.open_input(name)

    @contextmanager
    def tmp_dir(self) -> Iterator[Path]:
        """A new local folder to build files in, removed at the end; beside the store where that is local.

        On local disk it lies in `<root>/.tmp`, so that `put_file` is a rename and tables never list it: there `clear_tmp`
        removes what killed processes left. Elsewhere the next process on the machine does, see OwnFolder.
        """
        with store_errors(f"make a temporary folder for {self.url}"):
            parent = self._files.build_parent()
            own = OwnFolder("build") if parent is None else None
            folder = own.path if own else Path(tempfile.mkdtemp(prefix="build-", dir=parent))
        try:
            yield folder
        finally:
            if own:
                own.close()
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def clear_tmp(self) -> None:
        """Remove what killed processes left unfinished, see `unfinished`. Only for the holder of the lease."""
        with store_errors(f"remove unfinished files of {self.url}"):
            self._files.clear_unfinished()


def _reopened(url: str, s3: S3Options) -> Storage:
    return Storage(url, s3=s3)


def checked_name(name: str) -> str:
    """The name itself, if every part of it is plain; so it cannot leave the root or hide."""
    if all(_PART.fullmatch(part) for part in name.split("/")):
        return name
    raise StoreError(
        f"{name!r} is not a name inside a store: use parts of letters, digits, _ - . = joined by /"
    )


def _inside(name: str) -> bool:
    """Whether a name stays below the root and is not hidden, whatever characters it has."""
    return not (_hidden(name) or name.startswith("/") or name.endswith("/") or "\0" in name or not name)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
