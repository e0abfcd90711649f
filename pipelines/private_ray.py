"""A private Ray that nobody else can use: it listens on this machine alone, and asks for a token that only this run knows.

Left to itself Ray 2.60 binds the ports of a local instance on every interface, and guards them with a token that it writes
to ~/.ray/auth_token, readable by every user of the machine (measured: mode 0644). Whoever has both can run code as the user.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ray import _raylet
from ray._private import ray_constants

# Ray's switch for systems where it has no clusters: the node's address is then 127.0.0.1, and servers bind to that.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_CONSTANT = "ENABLE_RAY_CLUSTER"


@contextmanager
def closed() -> Iterator[None]:
    """For the time of the block a Ray that is started is closed to others, whatever the environment says of clusters.

    Its processes inherit the token in their environment, which only the same user can read. Nothing is written.
    """
    # Unset, the mode becomes "token" when Ray starts; set, Ray may have read an older value already.
    ours = {
        "RAY_AUTH_MODE": None,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_TOKEN_PATH": None,
        _CLUSTERS: "0",
    }
    before = {name: os.environ.get(name) for name in ours}
    # Read when Ray is imported, which was long ago.
    clusters = getattr(ray_constants, _CONSTANT, True)
    _set(ours)
    setattr(ray_constants, _CONSTANT, False)
    _forget_token()
    try:
        yield
    finally:
        setattr(ray_constants, _CONSTANT, clusters)
        _set(before)
        _forget_token()


def _forget_token() -> None:
    """Makes this process read its token anew: it keeps what it has read. Versions of Ray without tokens keep none."""
    loader = getattr(_raylet, "AuthenticationTokenLoader", None)
    if loader is not None:
        loader.instance().reset_cache()


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
