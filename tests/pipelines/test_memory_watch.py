"""The watch on processes of real memory: one that takes too much is ended, one that shares it is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.decode_process import DecodeProcess
from pipelines.memory_watch import MemoryWatch, private_bytes

OWN = "held = bytearray(b'x' * (300 << 20))"
SHARED = "import mmap; held = mmap.mmap(-1, 300 << 20); held.write(b'x' * (64 << 20)); held.write(b'x' * (64 << 20))"


@contextmanager
def process(script: str) -> Iterator[subprocess.Popen[str]]:
    script += "; print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


def test_only_the_process_that_takes_too_much_is_ended() -> None:
    with process(OWN) as large, process(SHARED) as shared:
        assert private_bytes(large.pid) > 300 << 20 > private_bytes(shared.pid)
        watched = [DecodeProcess(None, each.pid, "") for each in (large, shared)]
        watch = MemoryWatch(250 << 20)
        watch.watched = watched
        assert large.wait(timeout=20) == -9
        time.sleep(0.6)
        watch.close()
        assert shared.poll() is None
        assert [each.swollen for each in watched] == [True, False]
    assert private_bytes(large.pid) == 0
