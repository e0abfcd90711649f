"""Errors of disks and services, in the words of a store."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from echoprune.backoff import OutOfPatienceError
from echoprune.errors import StoreError, StoreUnavailableError

_CURES = {
    errno.ENOSPC: "free space on that disk, or choose another --store",
    errno.EDQUOT: "free space in that quota, or choose another --store",
    errno.EACCES: "grant this user access, or choose another --store",
    errno.EPERM: "grant this user access, or choose another --store",
    errno.EROFS: "choose a --store on a disk that can be written",
    errno.ELOOP: "put the folder or file itself there",
    errno.ENOENT: "check the path",
}


@contextmanager
def store_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the block into a one-line StoreError with a cure; `action` is what was being done."""
    try:
        yield
    except OutOfPatienceError as error:
        raise StoreUnavailableError(
            f"cannot {action}: {error}; check the network and the service, then run the same command again"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        # What s3fs makes of a refusal has no number.
        number = errno.EACCES if isinstance(error, PermissionError) else error.errno or 0
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else number
        cure = _CURES.get(number, "check that disk or service and run again")
        raise StoreError(f"cannot {action}: {' '.join(reason.split())}; {cure}") from error
