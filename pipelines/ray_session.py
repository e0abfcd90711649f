"""Starting or joining Ray, and how many actors this cluster has room for.

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
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import ray

from echoprune.errors import ConfigError, EchoPruneError

log = logging.getLogger(__name__)

# Decode actors feed one encoder; more than this many were not needed for any encoder measured so far (16 cores of
# software decoding give 3,504 frames/s of 720p, the fastest tower takes 691).
MAX_DECODERS = 15
CONNECT_S = 10.0


@dataclass(frozen=True)
class Crew:
    """How many actors run, and what each is given. `threads`: CPU threads of one encoder."""

    encoders: int
    decoders: int
    gpus_each: int
    threads: int


@contextmanager
def session(address: str | None, *, object_store_bytes: int) -> Iterator[None]:
    """A connected Ray for the time of the block. `object_store_bytes` sizes a private one.

    Raises ConfigError when the cluster at `address` does not answer or the private one would take too much memory,
    EchoPruneError when the private one cannot be started.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "echoprune"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 warns about a default that it will change; both settings mean the same to actors that ask for GPUs.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None or address == "local":
        _require_memory(object_store_bytes)
        start = partial(_start_private, object_store_memory=object_store_bytes, **quiet)
    else:
        _require_listener(address)
        start = partial(_join, address, **quiet)
    # Ray prints the death of each worker to standard output, whatever `log_to_driver` says.
    with _started(start), redirect_stdout(_LogLines()):
        yield


def _start_private(**options: Any) -> None:
    try:
        ray.init(address="local", include_dashboard=False, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        # A folder that is full, cannot be written, or has a path too long for the sockets in it.
        raise EchoPruneError(
            f"a private Ray cannot be started ({_first_line(error)}); see to it that {_ray_folder()} can be written "
            "and has space, or name another short path in RAY_TMPDIR"
        ) from error


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
def _started(start: Callable[[], None]) -> Iterator[None]:
    """A Ray that `start` brings up, for the time of the block; raises what `start` raises.

    Ctrl-C and SIGTERM while it starts neither cut it short nor get lost: they arrive once it is up. Cut short it left
    with exit code 15 or 134 (measured, 2.60).
    """
    up: Future[None] = Future()
    over = threading.Event()

    def live() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            up.set_exception(error)
        else:
            up.set_result(None)
        # Ray's processes die with the thread that started them.
        over.wait()

    # In a thread of its own, since Ray puts its own handler of SIGTERM into the main thread.
    thread = threading.Thread(target=live, name="ray", daemon=True)
    try:
        with _held_signals(up):
            thread.start()
            wait([up])
        up.result()
        yield
    finally:
        if up.done():
            ray.shutdown()
        over.set()


@contextmanager
def _held_signals(up: Future[None]) -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the block ends; a second one, while `up` is not done, comes through."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(signum: int, frame: FrameType | None) -> None:
        held.append(signum)
        if len(held) > 1 and not up.done():
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
        yield
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


def _ray_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _first_line(error: BaseException) -> str:
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


def crew(*, encoders: int | None, decoders: int | None, device: str) -> Crew:
    """The actors that the connected cluster has room for, `None` meaning "as many as make sense".

    With GPUs: an encoder each, the CPU cores shared out as decoders. Without: one encoder, and a decoder for every
    four cores (one on 2 cores, none on 1, where decoding happens in the encoder).
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    use_gpus = device != "cpu" and gpus > 0
    if device == "cuda" and not gpus:
        raise ConfigError("--device cuda, but Ray finds no GPU in this cluster: use --device cpu or auto")
    if use_gpus and encoders is not None and encoders > gpus:
        raise ConfigError(
            f"--encoders is {encoders}, but the cluster has {gpus} GPUs: give at most that many"
        )
    count = encoders or (gpus if use_gpus else 1)
    share = max(1, cpus // count)
    if decoders is None:
        decoders = min(MAX_DECODERS, share - 1) if use_gpus else min(share - 1, max(1, share // 4))
    needed = count * (1 + decoders)
    if needed > cpus:
        raise ConfigError(
            f"{count} encoders with {decoders} decode actors each take {needed} CPU cores, the cluster has {cpus}: "
            "lower --encoders or --decoders-per-encoder"
        )
    threads = 1 if use_gpus else share - decoders
    return Crew(encoders=count, decoders=decoders, gpus_each=int(use_gpus), threads=threads)


def start_worker(worker_class: type[Any], job: object, people: Crew) -> Any:
    """A fresh actor of `worker_class` for `job`, with the cores and GPU of one of `people`. Ray restarts nothing by itself."""
    options = {
        "num_cpus": people.threads,
        "num_gpus": people.gpus_each,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    return ray.remote(worker_class).options(**options).remote(job)
