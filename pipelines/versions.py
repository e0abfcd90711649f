"""Which software made a shard: for people who compare two stores, never for the store's bytes."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("echoprune", "torch", "transformers", "ray", "pyarrow", "decord2", "av")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
