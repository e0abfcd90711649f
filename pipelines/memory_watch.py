"""Ends decode processes that take too much memory, while their pool waits or encodes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

# Private memory above which a decode actor is ended. It takes 0.5 GB with torch; decord adds at most 0.6 GB for videos
# that "auto" gives it, and grew past 1.3 GB in 4 s at 1920x1080 before that limit; PyAV holds up to 17 pictures: 1.7 GB
# of 7680x4320 in 10 bits. Fifteen actors at the limit are 60 GB of a machine that feeds a GPU.
DECODER_BYTES = 4 * 2**30

# decord grew by 0.33 GB a second at 1920x1080: between two looks by 0.1 GB.
_EVERY_S = 0.25


class Watched(Protocol):
    """A process under watch. `home`: it runs on this machine; one elsewhere watches itself."""

    pid: int
    home: bool
    swollen: bool


class MemoryWatch:
    """A thread that kills each process of `watched` above `limit_bytes`, and notes that it was `swollen`.

    It touches nothing else: the pool finds its calls unanswered, as after any death, and replaces it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.watched: Sequence[Watched] = ()
        self._limit_bytes = limit_bytes
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="memory-watch", daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_S):
            for process in tuple(self.watched):
                watched = process.home and process.pid and not process.swollen
                taken = private_bytes(process.pid) if watched else 0
                if taken > self._limit_bytes:
                    log.warning("decode process %d took %d MB: killed", process.pid, taken >> 20)
                    process.swollen = True
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with nobody; 0 where it has ended, or the system does not tell (no /proc)."""
    try:
        # Frames lie in Ray's shared memory, and libraries in files: both are resident too, and no decoder's fault.
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
