"""Clips rendered side by side in processes of their own, which end with their parent and leave no half file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from echoprune.clip_file import Encoding, frame_times, write_video
from echoprune.errors import EchoPruneError
from echoprune.scene import Scene


@dataclass(frozen=True)
class Job:
    """One clip to render: `scene` as `encoding` says to `path`. `chance`: seeds its frame times. `comment`: in the file."""

    path: Path
    scene: Scene
    encoding: Encoding
    chance: tuple[int, ...]
    comment: str


class StoppedError(EchoPruneError):
    """A clip was left unfinished, since nobody waits for it any more."""


@contextmanager
def rendering(jobs: Sequence[Job], *, workers: int) -> Iterator[Iterator[int]]:
    """The index of each job when its file is whole, in the order in which they end.

    With one worker, or one job, it is done in this process; otherwise in spawned ones. However the block is left, none of
    them is running afterwards, and what they were writing is gone. Raises EchoPruneError if one of them dies.
    """
    if min(workers, len(jobs)) <= 1:
        yield _one_by_one(jobs)
        return
    # Spawned, not forked: the caller may have threads, of torch or of Ray.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start, initargs=(stop,)
    )
    try:
        yield _side_by_side(pool, jobs)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _one_by_one(jobs: Sequence[Job]) -> Iterator[int]:
    for index, job in enumerate(jobs):
        _render(job)
        yield index


def _side_by_side(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> Iterator[int]:
    try:
        futures = {pool.submit(_render_here, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise EchoPruneError(
            "a rendering process died, perhaps for want of memory; take fewer workers, and run it again"
        ) from error


def _render(job: Job, on_frame: Callable[[], None] = lambda: None) -> None:
    times_s = frame_times(
        np.random.default_rng(job.chance), seconds=job.scene.duration_s, encoding=job.encoding
    )
    write_video(
        job.path, job.scene, times_s=times_s, encoding=job.encoding, comment=job.comment, on_frame=on_frame
    )


# Set in rendering processes alone.
_stop: list[Event] = []


def _start(stop: Event) -> None:
    """Readies a rendering process: Ctrl-C is its parent's business, and it ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop.append(stop)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _render_here(job: Job) -> None:
    def check() -> None:
        if _stop[0].is_set():
            raise StoppedError(f"{job.path} was left unfinished; run it again")

    _render(job, check)
