"""A disk that is really full: wherever a run meets it, one line says so, nothing half-written counts, and it goes on later."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from echoprune.errors import StoreError
from echoprune.index import sampling_of
from echoprune.lease import Lease, current_epoch
from echoprune.models import model_settings
from echoprune.plan import extend_plan, load_plan, pending
from echoprune.receipt import committed, read_receipts, sweep
from echoprune.sources import list_sources
from echoprune.storage import Storage
from echoprune.store import create_store, open_store
from echoprune.verify import verify
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from pipelines.decode_actor import VideoOpener
from pipelines.index import store_settings
from pipelines.index_worker import IndexJob, IndexWorker
from pipelines.ray_session import session
from tests.clips import Clip, even, write
from tests.pipelines.conftest import RUN_LIMIT_S, call, start, tables

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
    """What an index run does to a store, in this process: the lease, the plan, each shard, the end of the lease."""
    config = IndexConfig(store=str(store), model=str(tiny), segment_cells=2)
    model = model_settings(str(tiny), max_pixels=config.max_pixels)
    settings = store_settings(config, model)
    storage = create_store(store, settings)
    with Lease.acquire(storage, run_id=str(time.monotonic_ns())) as lease:
        sweep(storage)
        extend_plan(storage, list_sources([str(clips)]), shard_bytes=1 << 30, shard_videos=2)
        job = IndexJob(
            config=config,
            settings=settings,
            opener=VideoOpener(model.layout, sampling_of(settings), settings.segment_cells),
            crew=Crew(encoders=1, decoders=0, gpus_each=0, threads=1),
            store=storage.url,
            run_id=lease.holder.run_id,
            lease_epoch=lease.epoch,
        )
        worker = IndexWorker(job)
        worker.load()
        for shard in pending(load_plan(storage), committed(read_receipts(storage))):
            for _ in worker.run_shard(shard, {}):
                pass


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


@pytest.fixture
def ray() -> Iterator[None]:
    with session(None, object_store_bytes=100 << 20):
        yield


def test_the_command(ray: None, clips: Path, tiny: Path, disk: Path, tmp_path: Path) -> None:
    command = ("index", clips, "--model", tiny, "--shard-videos", "2", "--segment-cells", "2", "--store")
    call(*command, tmp_path / "clean")
    size = sum(path.stat().st_size for path in (tmp_path / "clean").rglob("*") if path.is_file())
    leave(disk, size // 2 >> 10)
    process = start(*command, disk / "store")
    _, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == 1, err
    *progress, last = err.strip().splitlines()
    assert last.startswith("echoprune: ") and "No space left on device; free space " in last
    assert all(line.startswith('{"event"') for line in progress), err
    (disk / "ballast").unlink()
    call(*command, disk / "store")
    assert tables(disk / "store") == tables(tmp_path / "clean") and list(verify(disk / "store")) == []
