"""A disk that is really full: wherever a run meets it, one line says so, nothing half-written counts, and it goes on later."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from echoprune.errors import StoreError
from echoprune.lease import Lease, current_epoch
from echoprune.receipt import read_receipts
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from pipelines.config import IndexConfig
from tests.clips import Clip, even, write
from tests.pipelines import in_process
from tests.pipelines.conftest import RUN_LIMIT_S, call, start, tables

pytestmark = pytest.mark.usefixtures("shared_ray")

DISK_KB = 32 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with DISK_KB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(folder)]
    program = shutil.which("mount")
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if program else None
    if done is None or done.returncode:
        pytest.skip(f"a small disk of its own needs the right to mount one: {done.stderr if done else ''}")
    yield folder
    # Ray's processes may hold it for a moment longer.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(5):
        write(Clip(f"{number}.mp4", even(40 + 8 * number)), folder)
    return folder


def leave(disk: Path, kilobytes: int) -> None:
    """Fills the disk but for so much, whatever was there before."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free - (kilobytes << 10)
    with ballast.open("wb") as file:
        file.write(bytes(free))


def index(store: Path, clips: Path, tiny: Path) -> None:
    config = IndexConfig(
        store=str(store), model=str(tiny), paths=(str(clips),), shard_videos=2, segment_cells=2
    )
    in_process.index(config)


def test_whatever_does_not_fit(clips: Path, tiny: Path, disk: Path, tmp_path: Path) -> None:
    index(tmp_path / "clean", clips, tiny)
    expected = tables(tmp_path / "clean")
    needed = shutil.disk_usage(disk).total >> 10
    stopped, left_kb = [], 0
    while True:
        store = disk / "store"
        shutil.rmtree(store, ignore_errors=True)
        leave(disk, left_kb)
        try:
            index(store, clips, tiny)
        except StoreError as error:
            text = str(error)
            assert "No space left on device; free space " in text and "\n" not in text
            stopped.append(text)
        else:
            break
        # The ballast goes, as a person frees space; the same command again.
        if (store / "store.json").exists():
            before = len(open_store(store).videos())
            assert before == sum(each.videos for each in read_receipts(Storage(store)).values())
        (disk / "ballast").unlink()
        index(store, clips, tiny)
        assert tables(store) == expected and list(verify(store)) == [], stopped[-1]
        assert not list((store / ".tmp").glob("*"))
        # A page at a time where the small files come, then in larger steps.
        left_kb += 4 if left_kb < 24 else 16
        assert left_kb < needed
    assert tables(disk / "store") == expected
    # The disk was full at the settings, at the lease, at the plan, and while a shard was built.
    for part in ("store.json", "lease/", "plan/", "build shard files"):
        assert any(part in text for text in stopped), (part, stopped)


def test_a_heartbeat_that_finds_no_space_is_made_up_for(disk: Path) -> None:
    storage = Storage(disk / "store")
    lease = Lease.acquire(storage, run_id="mine")
    leave(disk, 0)
    with pytest.raises(StoreError, match="No space left on device"):
        lease.heartbeat()
    # The lease is as it was: nobody else gets it, and the next heartbeat passes.
    assert current_epoch(storage) == lease.epoch
    with pytest.raises(StoreError, match="held by run mine"):
        Lease.acquire(storage, run_id="other")
    (disk / "ballast").unlink()
    lease.heartbeat()
    lease.release()


def test_the_command(clips: Path, tiny: Path, disk: Path, tmp_path: Path) -> None:
    command = ("index", clips, "--model", tiny, "--shard-videos", "2", "--segment-cells", "2")
    index(tmp_path / "clean", clips, tiny)
    size = sum(path.stat().st_size for path in (tmp_path / "clean").rglob("*") if path.is_file())
    leave(disk, size // 2 >> 10)
    process = start(*command, "--store", disk / "store")
    _, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == 1, err
    *progress, last = err.strip().splitlines()
    assert last.startswith("echoprune: ") and "No space left on device; free space " in last
    assert all(line.startswith('{"event"') for line in progress), err
    (disk / "ballast").unlink()
    call(*command, "--store", disk / "store", "--decoders-per-gpu", "0")
    assert tables(disk / "store") == tables(tmp_path / "clean") and list(verify(disk / "store")) == []
