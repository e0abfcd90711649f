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
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import ray

from echoprune.errors import ConfigError

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

    Raises ConfigError when the cluster at `address` does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "echoprune"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 warns about a default that it will change; both settings mean the same to actors that ask for GPUs.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None or address == "local":
        ray.init(address="local", include_dashboard=False, object_store_memory=object_store_bytes, **quiet)
    else:
        _require_listener(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"no Ray cluster answers at {address!r} ({first}); check --address or RAY_ADDRESS"
            ) from error
    # Ray puts a handler in its place that prints a stack and exits with 1, or aborts (measured, 2.60).
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        # Ray prints the death of each worker to standard output, whatever `log_to_driver` says.
        with redirect_stdout(_LogLines()):
            yield
    finally:
        ray.shutdown()


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
