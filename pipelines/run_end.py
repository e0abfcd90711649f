"""What index and answer runs do at their end, under the lease: what dead workers left goes, and the report is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from echoprune.backoff import hurried
from echoprune.errors import EchoPruneError
from echoprune.lease import PARTING_S, Lease, check, current_epoch
from echoprune.receipt import sweep
from echoprune.storage import Storage

log = logging.getLogger(__name__)

REPORT_FILE = "run_report.json"


def reported(
    storage: Storage, lease: Lease, work: Callable[[], object], report: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Does `work`, then returns the report of it, which is written to the store whatever ends the work.

    An error of the work is raised, and one of its report is then no more than a warning.
    """
    try:
        work()
    except BaseException:
        try:
            with hurried(PARTING_S):
                _write(storage, lease, report())
        except EchoPruneError as error:
            log.warning("there is no report of this run: %s", error)
        raise
    done = report()
    _write(storage, lease, done)
    return done


def _write(storage: Storage, lease: Lease, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2) + "\n"
    storage.write_bytes(f"runs/{lease.holder.run_id}.json", text.encode())
    # Not over the report of a run that has taken the store over meanwhile.
    if current_epoch(storage) == lease.epoch:
        storage.write_bytes(REPORT_FILE, text.encode())


def sweep_leftovers(storage: Storage, lease: Lease, *, deaths: int, rewritten: bool) -> None:
    """Removes what no receipt counts once all shards are committed, so that a glob over the tables reads each row once.

    There is such a thing where `deaths` of this run's workers ended in the midst of a commit, where shards were `rewritten`,
    and where a worker of the run before went on for a while. Otherwise nothing is looked at.
    """
    if deaths:
        # A machine that Ray took for lost may go on: what its worker puts from now on fails, instead of being swept from
        # under a receipt that it is about to put.
        lease.renew()
    if deaths or rewritten or lease.took_over:
        sweep(storage, check_epoch=partial(check, storage, lease.epoch))
