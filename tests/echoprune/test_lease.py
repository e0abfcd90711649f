from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echoprune import lease as lease_module
from echoprune.errors import ConfigError, StoreError
from echoprune.lease import Lease, check, current_epoch
from echoprune.storage import Storage

HOLD = """
import sys, time
from echoprune.lease import Lease
from echoprune.storage import Storage
lease = Lease.acquire(Storage(sys.argv[1]), run_id=sys.argv[2])
lease.start()
print(lease.epoch, flush=True)
time.sleep(60)
"""
RACE = """
import sys
from echoprune.errors import StoreError
from echoprune.lease import Lease
from echoprune.storage import Storage
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = Lease.acquire(Storage(sys.argv[1]), run_id="race")
except StoreError:
    print("refused", flush=True)
else:
    print("won", lease.epoch, flush=True)
sys.stdin.readline()
"""


def elsewhere(storage: Storage, lease: Lease) -> Lease:
    """The same lease as if another machine held it."""
    holder = replace(lease.holder, host="far-away", machine="another", pid=4242, process_start="1")
    moved = Lease(storage, lease.epoch, holder)
    moved.heartbeat()
    return moved


def hold(root: Path, run_id: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), run_id], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as said:
        return process, int(said.readline())


def test_epochs_count_up_over_releases(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert current_epoch(storage) == 0
    for epoch in (1, 2, 3):
        with Lease.acquire(storage, run_id="r") as lease:
            assert lease.epoch == epoch == current_epoch(storage)
            check(storage, epoch)
    assert len(storage.names("lease")) == 1


def test_a_living_process_here_is_refused_and_a_killed_one_followed_at_once(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    process, epoch = hold(tmp_path, "first")
    try:
        with pytest.raises(
            StoreError, match=rf"run first on .*, pid {process.pid}, last heartbeat \d+ s ago"
        ):
            Lease.acquire(storage, run_id="second")
    finally:
        os.kill(process.pid, signal.SIGKILL)
    # Dead, but not collected: a zombie holds nothing.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    begun = time.monotonic()
    lease = Lease.acquire(storage, run_id="second")
    assert time.monotonic() - begun < 10 and lease.epoch == epoch + 1
    process.wait()
    with pytest.raises(StoreError, match="another run took over"):
        check(storage, epoch)


def test_a_reused_pid_is_not_the_holder(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    lease = Lease.acquire(storage, run_id="r")
    lease.holder = replace(lease.holder, process_start="1")
    lease.heartbeat()
    assert Lease.acquire(storage, run_id="s").epoch == 2


def test_two_leases_in_one_process_are_refused(tmp_path: Path) -> None:
    Lease.acquire(Storage(tmp_path), run_id="r")
    with pytest.raises(StoreError, match=f"pid {os.getpid()}"):
        Lease.acquire(Storage(tmp_path), run_id="s")


def test_a_holder_elsewhere_is_waited_out(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    far = elsewhere(storage, Lease.acquire(storage, run_id="r"))
    begun = time.monotonic()
    assert Lease.acquire(storage, run_id="s", stale_after_s=0.5).epoch == 2
    assert time.monotonic() - begun >= 0.5
    with pytest.raises(StoreError, match="another run took over"):
        far.heartbeat()


def test_a_beating_holder_elsewhere_is_refused(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    far = elsewhere(storage, Lease.acquire(storage, run_id="r"))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            far.heartbeat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoreError, match="far-away, pid 4242"):
            Lease.acquire(storage, run_id="s", stale_after_s=5)
    finally:
        stop.set()
        thread.join()
    assert current_epoch(storage) == 1


def test_a_holder_elsewhere_that_releases_is_followed(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    far = elsewhere(storage, Lease.acquire(storage, run_id="r"))
    timer = threading.Timer(0.2, far.release)
    timer.start()
    begun = time.monotonic()
    assert Lease.acquire(storage, run_id="s", stale_after_s=20).epoch == 2
    assert time.monotonic() - begun < 10
    timer.join()


def test_of_racing_processes_one_wins(tmp_path: Path) -> None:
    dead, _ = hold(tmp_path, "dead")
    dead.kill()
    dead.wait()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]

    def line_of_each() -> list[str]:
        return [racer.stdout.readline().strip() for racer in racers if racer.stdout]

    def tell_each() -> None:
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()

    assert line_of_each() == ["ready"] * 4
    tell_each()
    said = sorted(line_of_each())
    # The winner holds the lease until all have tried.
    tell_each()
    for racer in racers:
        racer.communicate(timeout=60)
    assert said == ["refused", "refused", "refused", "won 2"]


def test_heartbeats_are_written_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    storage = Storage(tmp_path)
    with Lease.acquire(storage, run_id="r") as lease:
        deadline = time.monotonic() + 10
        while lease.holder.beats < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert lease.holder.beats >= 3 and lease.holder.released


def test_release_after_a_takeover_changes_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    far = elsewhere(storage, Lease.acquire(storage, run_id="r"))
    after = Lease.acquire(storage, run_id="s", stale_after_s=0.1)
    far.release()
    with pytest.raises(StoreError, match="run s"):
        Lease.acquire(storage, run_id="t")
    check(storage, after.epoch)


def test_a_renewed_lease_is_still_held_and_shuts_out_who_writes_under_the_old_one(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with Lease.acquire(storage, run_id="r") as lease:
        before = lease.epoch
        lease.renew()
        with pytest.raises(StoreError, match="another run took over"):
            check(storage, before)
        check(storage, lease.epoch)
        lease.heartbeat()
        with pytest.raises(StoreError, match="held by run r"):
            Lease.acquire(storage, run_id="s")
        assert storage.names("lease") == [f"lease/{before + 1:08d}.json"]
    # One that has lost the store does not get it back so.
    with Lease.acquire(storage, run_id="s"), pytest.raises(StoreError, match="another run took over"):
        lease.renew()


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("lease/00000001.json", b"{}")
    with pytest.raises(StoreError, match=r"00000001\.json is damaged"):
        Lease.acquire(storage, run_id="r")


def test_a_held_lease_names_the_option_of_its_folder(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with Lease.acquire(storage, run_id="one"):
        with pytest.raises(StoreError, match="use another --store"):
            Lease.acquire(storage, run_id="two")
        with pytest.raises(StoreError, match="use another --out"):
            Lease.acquire(storage, run_id="two", option="--out")


def test_in_s3_one_run_holds_it_and_a_late_one_puts_nothing(s3_url: str) -> None:
    storage = Storage(s3_url)
    first = Lease.acquire(storage, run_id="first")
    with pytest.raises(StoreError, match="is held by run first"):
        Lease.acquire(storage, run_id="second")
    first.heartbeat()
    first.release()
    with Lease.acquire(storage, run_id="second") as second:
        assert second.epoch == 2 and current_epoch(storage) == 2
        with pytest.raises(StoreError, match="another run took over"):
            storage.write_bytes("receipts/a.json", b"", before=lambda: check(storage, first.epoch))
        assert storage.names("receipts") == []
        storage.write_bytes("receipts/a.json", b"", before=lambda: check(storage, second.epoch))
    assert storage.names("receipts") == ["receipts/a.json"] and len(storage.names("lease")) == 1


def test_a_heartbeat_that_fails_for_any_reason_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that cannot be had for a moment are a ConfigError."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    failed = []

    class Failing(Storage):
        def write_bytes(self, name: str, data: bytes, **more: Any) -> None:
            if b'"beats": 1,' in data and not failed:
                failed.append(name)
                raise ConfigError("no credentials")
            super().write_bytes(name, data, **more)

    with Lease.acquire(Failing(tmp_path), run_id="a") as lease:
        deadline = time.monotonic() + 60
        while lease.holder.beats < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lease.holder.beats >= 3 and failed
