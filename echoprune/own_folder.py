"""Folders of one process for files that it needs for a while. What a killed process left is removed by the next on that machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from echoprune.errors import ConfigError

_LOCK = "in-use"
_KINDS = ("videos", "build")


class OwnFolder:
    """A new folder `path` of this process; `close` removes it with all that is in it.

    `kind`: "videos" or "build", the beginning of its name. `parent`: where it is made, "" for a folder of this user in the
    system's folder for temporary files. Folders there whose process has ended go first. Raises OSError; ConfigError where that
    folder is another user's.
    """

    def __init__(self, kind: str, parent: str = "") -> None:
        base = Path(parent).expanduser() if parent else own_base()
        # Its content may be private: nobody else may look into it.
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if base.stat().st_uid != os.getuid() and not parent:
            raise ConfigError(
                f"{base} belongs to another user: name another folder in TMPDIR, or for videos in --s3-cache-dir"
            )
        _remove_abandoned(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=base))
            self._lock = _locked(self.path / _LOCK)
            # Another process may have taken it for abandoned before it was locked.
            if self._lock is not None and self.path.exists():
                break

    def close(self) -> None:
        """Removes the folder."""
        if self._lock is not None:
            self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def own_base() -> Path:
    """The folder of this user in the system's folder for temporary files."""
    return Path(tempfile.gettempdir(), f"echoprune-{os.getuid()}")


def own_cache() -> Path:
    """The folder of this user for what may be removed at any time, made if missing; raises OSError, RuntimeError without a home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "echoprune")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cache


def _locked(path: Path) -> IO[str] | None:
    """The file with a lock on it for as long as this process lives; None if another one has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove_abandoned(base: Path) -> None:
    for folder in (each for kind in _KINDS for each in base.glob(f"{kind}-*")):
        with suppress(OSError):
            lock = _locked(folder / _LOCK) if (folder / _LOCK).exists() else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()
