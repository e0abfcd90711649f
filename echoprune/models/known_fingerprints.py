"""Fingerprints that were worked out before on this machine, of folders whose files have not changed since.

To work one out takes the library's class of the model, which knows today's names of weights (3 s to import), and all vision
weights (1.4 GB of a 7B model): each command, and each worker that answers, did both before anything else. A file counts as
unchanged while its name, size, time of change and number on its disk are the same, as build tools and git have it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from echoprune.own_folder import own_cache

log = logging.getLogger(__name__)

# To be raised whenever a fingerprint comes out otherwise for the same files.
_RULE = 1
# A file that changed so few seconds ago may change again without its time telling: clocks of some disks go by seconds.
_SETTLED_S = 3.0


def remembered(folder: Path, work_out: Callable[[], str]) -> str:
    """What `work_out()` gives for the checkpoint in `folder`, or gave before; raises what it raises.

    Where nothing can be kept it is worked out each time.
    """
    key = _key(folder)
    place = None if key is None else _place(key)
    if place is None:
        return work_out()
    try:
        known = place.read_text(encoding="ascii")
    except (OSError, ValueError):
        known = ""
    if re.fullmatch(r"[0-9a-f]{64}", known):
        return known
    found = work_out()
    # A file that came or changed meanwhile may be in it or not.
    if _is_settled(folder) and _key(folder) == key:
        _keep(place, found)
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))


def _key(folder: Path) -> str | None:
    """A name for the state of all files in `folder` that a fingerprint may depend on."""
    try:
        states = [(path.name, *_state(path.stat())) for path in _files(folder)]
        where = str(folder.resolve())
        made_by = [_RULE, version("transformers")]
    except (OSError, PackageNotFoundError):
        return None
    return hashlib.sha256(json.dumps([made_by, where, states]).encode()).hexdigest()


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino


def _is_settled(folder: Path) -> bool:
    try:
        latest = max(max(path.stat().st_mtime, path.stat().st_ctime) for path in _files(folder))
    except (OSError, ValueError):
        return False
    return latest < time.time() - _SETTLED_S


def _place(key: str) -> Path | None:
    try:
        return own_cache() / "fingerprints" / key
    except (OSError, RuntimeError):
        return None


def _keep(place: Path, found: str) -> None:
    unfinished = place.with_suffix(f".{os.getpid()}")
    try:
        place.parent.mkdir(exist_ok=True)
        unfinished.write_text(found, encoding="ascii")
        unfinished.replace(place)
    except OSError as error:
        log.debug("the fingerprint is not kept: %s", error)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
