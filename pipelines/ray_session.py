"""Starting or joining Ray.

A private local Ray is started unless an address is given: joining "whatever runs" waits over 60 s on the remains
of a killed driver (measured, Ray 2.60).
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from types import FrameType
from typing import Any

import ray

from echoprune.errors import ConfigError, EchoPruneError
from pipelines.private_ray import closed

log = logging.getLogger(__name__)

CONNECT_S = 10.0
# Where Ray's object store lies if it has room there.
SHARED_MEMORY = "/dev/shm"
# A private Ray that did not start is started once more.
_STARTS = 2


@contextmanager
def session(address: str | None, *, object_store_bytes: int) -> Iterator[None]:
    """A connected Ray for the time of the block. `object_store_bytes` sizes a private one.

    Within such a block another one shares its Ray: a job that is made of several runs starts one.

    Raises ConfigError when the cluster at `address` does not answer or the private one would take too much memory,
    EchoPruneError when the private one cannot be started.
    """
    if ray.is_initialized():
        yield
        return
    private = not joins(address)
    address = address or os.environ.get("RAY_ADDRESS") or None
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "echoprune"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 warns about a default that it will change; both settings mean the same to actors that ask for GPUs.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None or private:
        # Frames that were encoded leave shared memory at once, not by the hundred or each second: 9.6 MB of a segment in memory that was
        # used before cost 4 ms of CPU to hand over, and 11 to 13 in pages that were not (benchmarks.handed_over). One machine has nobody else to tell.
        os.environ.setdefault("RAY_free_objects_batch_size", "1")
        _require_memory(object_store_bytes)
        _warn_of_files(object_store_bytes)
        start = partial(_start_private, object_store_memory=object_store_bytes, **quiet)
    else:
        _require_listener(address)
        start = partial(_join, address, **quiet)
    # Ray prints the death of each worker to standard output, whatever `log_to_driver` says.
    guard, starts = (closed(), _STARTS) if private else (nullcontext(), 1)
    with guard, _started(start, starts=starts), redirect_stdout(_LogLines()):
        yield


def joins(address: str | None) -> bool:
    """Whether `session` joins a cluster, to which nodes may come, rather than start a Ray of its own."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def _start_private(**options: Any) -> None:
    try:
        ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:
        # Ray has no class of its own for this: what it raises after 30 s without an answer of the new node is a bare
        # Exception (2.60). A folder that is full, cannot be written, or has a path too long for sockets: OSError, ValueError.
        raise EchoPruneError(
            f"a private Ray cannot be started ({_first_line(error)}); see to it that {_ray_folder()} can be written "
            "and has space, or name another short path in RAY_TMPDIR; on a busy machine run the same command again"
        ) from error


def _may_pass(cause: BaseException | None) -> bool:
    """Whether another start may do better: Ray's processes look for free ports and wait for each other."""
    if cause is None or isinstance(cause, ray.exceptions.RayError | TimeoutError | ConnectionError):
        return cause is not None
    return not isinstance(cause, OSError | ValueError)


def _join(address: str, **options: Any) -> None:
    try:
        ray.init(address=address, **options)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"the Ray cluster at {address!r} and this command do not agree about the token ({_first_line(error)}); "
            "give both the same one, or neither (RAY_AUTH_MODE)"
        ) from error
    except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        raise ConfigError(
            f"the Ray cluster at {address!r} cannot be joined ({_first_line(error)}); check --address or RAY_ADDRESS, "
            "that both run the same version of Ray, and that both have the same token or none (RAY_AUTH_MODE)"
        ) from error


@contextmanager
def _started(start: Callable[[], None], *, starts: int) -> Iterator[None]:
    """A Ray that `start` brings up, for the time of the block; raises what the last of `starts` attempts raises.

    Ctrl-C and SIGTERM while it starts neither cut it short nor get lost: they arrive once it is up. Cut short it left
    with exit code 15 or 134 (measured, 2.60).
    """
    up, done, over = Future[None](), threading.Event(), threading.Event()
    try:
        with _held_signals(done) as held:
            for left in reversed(range(starts)):
                up = _in_thread(start, over)
                wait([up])
                cause = getattr(up.exception(), "__cause__", None)
                if held or not left or not _may_pass(cause):
                    break
                log.warning("a private Ray did not start (%s): trying again", _first_line(cause))
                ray.shutdown()
            done.set()
        up.result()
        yield
    finally:
        if done.is_set():
            ray.shutdown()
        over.set()


def _in_thread(start: Callable[[], None], over: threading.Event) -> Future[None]:
    """What is done when `start` has ended, in a thread of its own, which lives on until `over` if it went well.

    Of its own, since Ray puts its own handler of SIGTERM into the main thread. Ray's processes die with the thread that
    started them: those of an attempt that failed at once.
    """
    up: Future[None] = Future()

    def live() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            up.set_exception(error)
        else:
            up.set_result(None)
            over.wait()

    threading.Thread(target=live, name="ray", daemon=True).start()
    return up


@contextmanager
def _held_signals(done: threading.Event) -> Iterator[list[int]]:
    """Holds Ctrl-C and SIGTERM back until the block ends, in a list; a second one, until `done` is set, comes through."""
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return

    def hold(signum: int, frame: FrameType | None) -> None:
        held.append(signum)
        if len(held) > 1 and not done.is_set():
            let_go()
            signal.raise_signal(signum)

    # What is ignored stays ignored: a shell starts its background jobs so.
    before = {
        signum: handler
        for signum in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(signum)) not in (signal.SIG_IGN, None)
    }

    def let_go() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    for signum in before:
        signal.signal(signum, hold)
    try:
        yield held
    finally:
        let_go()
    if held:
        signal.raise_signal(held[0])


def _require_memory(object_store_bytes: int) -> None:
    """Raises ConfigError if decoded frames could take more than half of this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if object_store_bytes > memory // 2:
        raise ConfigError(
            f"--in-flight-mb asks for {object_store_bytes / 1e9:,.1f} GB of shared memory, this machine has "
            f"{memory / 1e9:.1f} GB in all: lower it until that is at most half"
        )


def _warn_of_files(object_store_bytes: int) -> None:
    """Warns where Ray, whose own warning is among those that are turned off, will keep shared memory in files."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return  # not Linux
    free = found.f_bavail * found.f_frsize
    if free <= object_store_bytes:
        log.warning(
            "%s has %d MB free, %d MB are needed: what processes exchange goes through files in %s, which is slow; start the container with "
            "more shared memory (docker run --shm-size=%dm)",
            SHARED_MEMORY,
            free >> 20,
            object_store_bytes >> 20,
            _ray_folder(),
            (object_store_bytes >> 20) + 1,
        )


def _ray_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _LogLines(io.TextIOBase):
    """A text stream whose lines become log records."""

    def write(self, text: str) -> int:
        """Logs each line of `text`; returns its length."""
        for line in filter(None, map(str.strip, text.splitlines())):
            log.info("%s", line)
        return len(text)


def _require_listener(address: str) -> None:
    """Raises ConfigError if nobody listens at HOST:PORT: Ray itself would try for ten minutes and more."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto", or a name that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({reason}); check --address or RAY_ADDRESS"
        ) from error
