"""Ends decode processes that take too much memory, while their pool waits or encodes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress

from pipelines.decode_process import DecodeProcess, private_bytes

log = logging.getLogger(__name__)

# decord grew by 0.33 GB a second at 1920x1080: between two looks by 0.1 GB.
_EVERY_S = 0.25


class MemoryWatch:
    """A thread that kills each process of `watched` above `limit_bytes`, and notes that it was `swollen`.

    It touches nothing else: the pool finds its calls unanswered, as after any death, and replaces it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.watched: Sequence[DecodeProcess] = ()
        self._limit_bytes = limit_bytes
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="memory-watch", daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_S):
            for process in tuple(self.watched):
                taken = private_bytes(process.pid) if process.pid and not process.swollen else 0
                if taken > self._limit_bytes:
                    log.warning("decode process %d took %d MB: killed", process.pid, taken >> 20)
                    process.swollen = True
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
