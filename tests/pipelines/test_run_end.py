"""The end of a run: its report goes in nobody's way, neither another run's nor that of what ended it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from echoprune.lease import Lease
from echoprune.receipt import read_receipts
from echoprune.s3_options import S3Options
from echoprune.storage import Storage
from pipelines.run_end import reported
from pipelines.throttle import Throttle
from tests.s3_servers import FaultProxy


def test_a_run_that_lost_the_store_does_not_write_over_the_report_of_its_successor(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    lease = Lease.acquire(storage, run_id="slept")
    storage.write_bytes("lease/00000007.json", b"{}")
    storage.write_bytes("run_report.json", b"{}")
    assert reported(storage, lease, lambda: None, lambda: {"done": 1}) == {"done": 1}
    assert storage.read_bytes("run_report.json") == b"{}" and storage.exists("runs/slept.json")


def test_who_interrupts_a_run_does_not_wait_for_a_store_that_is_away(
    s3_url: str, moto_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultProxy(moto_endpoint).running() as proxy:
        storage = Storage(s3_url, s3=S3Options(endpoint=proxy.endpoint, patience_s=600))

        def interrupted() -> None:
            proxy.down = True
            raise KeyboardInterrupt

        def report() -> dict[str, Any]:
            return {"shards": len(read_receipts(storage))}

        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt), Lease.acquire(storage, run_id="r") as lease:
            reported(storage, lease, interrupted, report)
        # 5 s each for the report and the lease, and what their last requests take.
        assert time.monotonic() - begun < 60
    assert "there is no report of this run" in caplog.text and "could not be given back" in caplog.text
    # Without an error under way there is all the patience that was asked for.
    storage = Storage(s3_url, s3=S3Options(endpoint=moto_endpoint))
    lease = Lease.acquire(storage, run_id="s", stale_after_s=0.1)
    reported(storage, lease, lambda: None, dict)
    assert storage.exists("run_report.json")


def test_snapshots_come_at_most_so_often() -> None:
    now = [0.0]
    snapshots = Throttle(0.25, clock=lambda: now[0])
    due = []
    for step in range(8):
        now[0] = step / 8
        due.append(snapshots.is_due())
    assert due == [True, False] * 4
