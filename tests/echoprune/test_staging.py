"""Videos fetched to the local disk: bounded, in order, checked against the plan, gone after use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from echoprune import staging
from echoprune.errors import ConfigError, MediaError
from echoprune.s3_client import s3_client
from echoprune.s3_options import S3Options, current_s3, s3_place
from echoprune.sources import Source, list_sources
from echoprune.staging import StagedVideos, StagingFolder, local_copy
from tests.s3_servers import FaultProxy

REPOSITORY = Path(__file__).parents[2]
SIZE = 100_000


@pytest.fixture
def sources(s3_url: str) -> list[Source]:
    """Six objects of SIZE random bytes, and one local file among them."""
    for i in range(6):
        s3_client(current_s3()).write(s3_place(f"{s3_url}/{i}.mp4"), os.urandom(SIZE))
    return [*list_sources([f"{s3_url}/"]), Source("/local.mp4", 5)]


@pytest.fixture
def folder(tmp_path: Path, s3_url: str) -> Iterator[StagingFolder]:
    made = StagingFolder(str(tmp_path / "cache"), most_bytes=10 * SIZE)
    yield made
    made.close()
    assert list((tmp_path / "cache").iterdir()) == []


def content(source: Source) -> bytes:
    return s3_client(current_s3()).read(s3_place(source.uri)).data


def held(folder: StagingFolder) -> int:
    return sum(path.stat().st_size for path in folder.path.iterdir())


def test_videos_come_whole_and_go_after_use(folder: StagingFolder, sources: list[Source]) -> None:
    with StagedVideos(folder, sources) as staged:
        for source in sources[:-1]:
            path = Path(staged.path(source.uri))
            assert path.read_bytes() == content(source) and path.suffix == ".mp4"
            staged.release(source.uri)
            assert not path.exists()
        assert staged.is_ready("/local.mp4") and staged.path("/local.mp4") == ""
    assert held(folder) == 0


def test_no_more_disk_than_allowed_and_no_deadlock(sources: list[Source], tmp_path: Path) -> None:
    folder = StagingFolder(str(tmp_path), most_bytes=2 * SIZE + 10)
    with StagedVideos(folder, sources) as staged:
        for i, source in enumerate(sources[:-1]):
            assert Path(staged.path(source.uri)).read_bytes() == content(source)
            assert held(folder) <= 2 * SIZE
            if i + 2 < 6:
                assert not staged.is_ready(sources[i + 2].uri)
            staged.release(source.uri)
    folder.close()


def test_two_lists_share_the_room_of_a_folder_and_the_first_one_is_served_first(
    sources: list[Source], tmp_path: Path
) -> None:
    folder = StagingFolder(str(tmp_path), most_bytes=2 * SIZE + 10)
    with StagedVideos(folder, sources[:4]) as first, StagedVideos(folder, sources[4:6]) as second:
        for i, source in enumerate(sources[:4]):
            assert Path(first.path(source.uri)).read_bytes() == content(source)
            assert held(folder) <= 2 * SIZE
            # While there is one of the first list to come, none of the second is let in.
            assert i > 1 or not any(second.is_ready(source.uri) for source in sources[4:6])
            first.release(source.uri)
        for source in sources[4:6]:
            assert Path(second.path(source.uri)).read_bytes() == content(source)
            assert held(folder) <= 2 * SIZE
    # One that ends before its videos were let in leaves its room, and its place in the row, to the other.
    with StagedVideos(folder, sources[:4]) as first, StagedVideos(folder, sources[4:6]) as second:
        first.path(sources[0].uri)
        first.close()
        assert Path(second.path(sources[5].uri)).read_bytes() == content(sources[5])
    # So does one whose videos are there when it ends, with none of them released.
    with StagedVideos(folder, sources[:2]) as first, StagedVideos(folder, sources[4:6]) as second:
        for source in sources[:2]:
            first.path(source.uri)
        waiting = ThreadPoolExecutor(1).submit(second.path, sources[4].uri)
        time.sleep(0.3)
        assert not waiting.done()
        first.close()
        assert Path(waiting.result(timeout=20)).read_bytes() == content(sources[4])
    assert held(folder) == 0 and folder.used_bytes == 0 and not folder.waiting
    folder.close()


def test_sizes_that_are_not_known_are_found_out(folder: StagingFolder, sources: list[Source]) -> None:
    unknown = [Source(source.uri) for source in sources]
    with StagedVideos(folder, unknown) as staged:
        assert Path(staged.path(sources[0].uri)).read_bytes() == content(sources[0])


def test_leaving_early_leaves_nothing(folder: StagingFolder, sources: list[Source]) -> None:
    with StagedVideos(folder, sources) as staged:
        staged.path(sources[0].uri)
        staged.release(sources[3].uri)
    assert held(folder) == 0


def kind_of(folder: StagingFolder, source: Source) -> str:
    with StagedVideos(folder, [source]) as staged, pytest.raises(MediaError) as caught:
        staged.path(source.uri)
    assert source.uri in str(caught.value) and caught.value.stage == "probe" and held(folder) == 0
    return caught.value.kind


def test_what_is_not_the_object_that_was_planned_has_a_class_of_its_own(
    folder: StagingFolder, sources: list[Source], s3_url: str
) -> None:
    first = sources[0]
    assert kind_of(folder, first._replace(size_bytes=SIZE - 1)) == "source_changed"
    assert kind_of(folder, first._replace(etag="another")) == "source_changed"
    s3_client(current_s3()).write(s3_place(first.uri), os.urandom(SIZE))
    assert kind_of(folder, first) == "source_changed"
    s3_client(current_s3()).remove(s3_place(first.uri))
    assert kind_of(folder, first) == "missing"
    assert kind_of(folder, Source(f"{s3_url}/never.mp4")) == "missing"


def test_replaced_while_it_is_fetched(
    folder: StagingFolder, sources: list[Source], monkeypatch: pytest.MonkeyPatch, moto_endpoint: str
) -> None:
    monkeypatch.setattr(staging, "PIECE_BYTES", SIZE // 4)
    with FaultProxy(moto_endpoint).running() as proxy:
        folder.s3 = S3Options(endpoint=proxy.endpoint, patience_s=20)
        replaced = threading.Event()
        choose = proxy.choose

        def chosen(line: str) -> str:
            if proxy.requests == 2 and not replaced.is_set():
                replaced.set()
                s3_client(current_s3()).write(s3_place(sources[0].uri), os.urandom(SIZE))
            return choose(line)

        monkeypatch.setattr(proxy, "choose", chosen)
        assert kind_of(folder, Source(sources[0].uri)) == "source_changed"


def test_larger_than_the_disk_it_may_take(tmp_path: Path, sources: list[Source]) -> None:
    folder = StagingFolder(str(tmp_path), most_bytes=SIZE - 1)
    assert kind_of(folder, sources[0]) == kind_of(folder, Source(sources[0].uri)) == "larger_than_cache"
    folder.close()


def test_out_of_reach(folder: StagingFolder, sources: list[Source], moto_endpoint: str) -> None:
    with FaultProxy(moto_endpoint, down=True).running() as proxy:
        folder.s3 = S3Options(endpoint=proxy.endpoint, patience_s=0.5)
        assert kind_of(folder, sources[0]) == "source_unreachable"


def test_credentials_that_are_refused_are_no_fault_of_a_video(
    folder: StagingFolder, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
    folder.s3 = S3Options(endpoint=rclone_endpoint, patience_s=17)
    with (
        StagedVideos(folder, [Source("s3://bucket/x.mp4")]) as staged,
        pytest.raises(ConfigError, match="refuses the credentials"),
    ):
        staged.path("s3://bucket/x.mp4")


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp the name of the folder can be guessed, and whoever owns it could put other videos into it."""
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "echoprune-4242").mkdir()
    with pytest.raises(ConfigError, match="belongs to another user"):
        StagingFolder(most_bytes=1)
    assert list((tmp_path / "echoprune-4242").iterdir()) == []


def test_short_bodies_and_refusals_are_never_a_short_video(
    folder: StagingFolder, sources: list[Source], moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PIECE_BYTES", SIZE // 8)
    with FaultProxy(moto_endpoint, rate=0.3, seed=5, slow_s=0.01).running() as proxy:
        folder.s3 = S3Options(endpoint=proxy.endpoint, patience_s=60)
        with StagedVideos(folder, sources) as staged:
            for source in sources[:3]:
                assert Path(staged.path(source.uri)).read_bytes() == content(source)
        assert proxy.injected["truncated"] and proxy.injected["503"]


def test_a_full_disk_is_nobodys_fault(sources: list[Source], tmp_path: Path, moto_endpoint: str) -> None:
    # The process's own file size limit makes the kernel refuse the write, as a full disk does.
    code = """
import resource, signal, sys
from echoprune.errors import StoreError
from echoprune.s3_options import S3Options
from echoprune.sources import Source
from echoprune.staging import StagedVideos, StagingFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = StagingFolder(sys.argv[1], most_bytes=1 << 30, s3=S3Options(endpoint=sys.argv[2], patience_s=20))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with StagedVideos(folder, [Source(sys.argv[3])]) as staged:
    try:
        staged.path(sys.argv[3])
    except StoreError as error:
        print(error)
folder.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path), moto_endpoint, sources[0].uri]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=REPOSITORY)
    assert "File too large" in done.stdout and "--s3-cache-dir" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_copy_for_one_look(sources: list[Source]) -> None:
    with local_copy(sources[0]) as path:
        assert Path(path).read_bytes() == content(sources[0])
    assert not Path(path).exists()
    with local_copy(sources[-1]) as path:
        assert path == ""
