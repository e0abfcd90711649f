"""Videos that are written beside the encoder: the same store, each video told of once, and nobody blamed for another."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echoprune.errors import StoreError
from echoprune.index import VideoIndexing
from echoprune.plan import Shard, extend_plan
from echoprune.segment import Begun
from echoprune.sources import list_sources
from echoprune.storage import Storage
from pipelines import index_worker, video_runs
from pipelines.events import Event, ShardCommitted, VideoDone, VideoStarted, in_hand
from pipelines.index_worker import IndexWorker
from pipelines.open_shard import OpenShard
from tests.clips import Clip, cut, even, write
from tests.pipelines.conftest import tables
from tests.pipelines.test_retry import worker


class Beside(video_runs.VideoRuns):
    """As on a GPU, on any machine."""

    def __post_init__(self) -> None:
        self.beside = True
        super().__post_init__()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.index_worker.VideoRuns", Beside)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good ones, one that breaks off, one that is none, and one of a single frame."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((60, 30, 90, 45, 1)):
        write(Clip(f"{number}.mp4", even(frames)), folder)
    cut(write(Clip("5.mkv", even(80)), folder), folder / "6.mkv", keep=0.6)
    (folder / "7.mp4").write_bytes(os.urandom(5000))
    return folder


def shard_of(store: Path, tiny: Path, videos: Path) -> tuple[IndexWorker, Shard]:
    made = worker(store, tiny, run_id="run")
    (shard,) = extend_plan(Storage(store), list_sources([str(videos)]), shard_bytes=1 << 40, shard_videos=99)
    return made, shard


def ended(events: list[Event]) -> list[tuple[str, str, str]]:
    return [(event.video_id, event.status, event.error) for event in events if isinstance(event, VideoDone)]


def test_the_store_and_what_is_told_are_those_of_a_worker_that_does_it_at_once(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shard = shard_of(tmp_path / "at_once", tiny, videos)
    at_once = list(made.run_shard(shard, {}))
    assert {status for _, status, _ in ended(at_once)} == {"ok", "partial", "failed"}
    monkeypatch.setattr("pipelines.index_worker.VideoRuns", Beside)
    # Written late, so that each is told of when the next one, or the one after that, has begun.
    store = OpenShard.store

    def late(self: OpenShard, *arguments: Any) -> VideoDone:
        time.sleep(0.2)
        return store(self, *arguments)

    monkeypatch.setattr(OpenShard, "store", late)
    take, by = VideoIndexing.take, set()

    def noted(self: VideoIndexing, begun: Begun) -> None:
        by.add(threading.get_ident())
        take(self, begun)

    monkeypatch.setattr(VideoIndexing, "take", noted)
    made, shard = shard_of(tmp_path / "beside", tiny, videos)
    events = list(made.run_shard(shard, {}))
    assert len(by) == 1
    assert threading.get_ident() not in by
    assert ended(events) == ended(at_once)
    assert tables(tmp_path / "beside") == tables(tmp_path / "at_once")
    assert isinstance(events[-1], ShardCommitted)
    names = [event.video_id for event in events if isinstance(event, VideoStarted)]
    assert list(dict.fromkeys(names)) == [source.video_id for source in shard.sources]
    assert len(names) > len(shard.sources), "no video ended while another one was in hand"


def test_in_hand_is_the_video_that_is_encoded_and_at_the_end_the_last_one(
    beside: None, tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    held: tuple[str, ...] = ()
    begin = VideoIndexing.begin

    def noted(self: VideoIndexing, frames: Any) -> Begun:
        taken.extend(held)
        return begin(self, frames)

    monkeypatch.setattr(VideoIndexing, "begin", noted)
    made, shard = shard_of(tmp_path / "store", tiny, videos)
    finished: set[str] = set()
    for event in made.run_shard(shard, {}):
        if isinstance(event, VideoDone):
            finished.add(event.video_id)
        now = in_hand(event)
        held = held if now is None else now
        assert not finished & set(held)
    assert finished == {source.video_id for source in shard.sources}
    # In whose name segments were encoded: each video's that has any, in order.
    order = [source.video_id for source in shard.sources]
    assert list(dict.fromkeys(taken)) == [each for each in order if each in taken]
    assert len(set(taken)) >= len(order) - 2


def test_while_a_video_is_written_the_next_ones_are_chosen_among(
    beside: None, tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, take = OpenShard.store, VideoIndexing.take
    taken = threading.Semaphore(0)
    waited: list[bool] = []

    def noted(self: VideoIndexing, begun: Begun) -> None:
        take(self, begun)
        taken.release()

    def late(self: OpenShard, *arguments: Any) -> VideoDone:
        if not waited:
            # None of its own, which were all before this.
            while taken.acquire(blocking=False):
                pass
            waited.append(all(taken.acquire(timeout=20) for _ in range(2)))
        return store(self, *arguments)

    monkeypatch.setattr(VideoIndexing, "take", noted)
    monkeypatch.setattr(OpenShard, "store", late)
    made, shard = shard_of(tmp_path / "store", tiny, videos)
    assert isinstance(list(made.run_shard(shard, {}))[-1], ShardCommitted)
    assert waited == [True]


def test_while_a_video_is_alone_nothing_is_written_and_one_segment_encoded_at_a_time(
    beside: None, tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: dict[int, int] = {}
    most: dict[int, int] = {}
    begin, take = VideoIndexing.begin, VideoIndexing.take
    last: dict[int, weakref.ref[Begun]] = {}
    held: dict[int, int] = {}

    def begun(self: VideoIndexing, frames: Any) -> Begun:
        if id(self) in last and last[id(self)]() is not None:
            held[self._grid.frames] = held.get(self._grid.frames, 0) + 1
        made = begun_as_ever(self, frames)
        last[id(self)] = weakref.ref(made)
        return made

    def begun_as_ever(self: VideoIndexing, frames: Any) -> Begun:
        under_way[id(self)] = under_way.get(id(self), 0) + 1
        most[self._grid.frames] = max(most.get(self._grid.frames, 0), under_way[id(self)])
        return begin(self, frames)

    def slow(self: VideoIndexing, segment: Begun) -> None:
        time.sleep(0.05)
        take(self, segment)
        under_way[id(self)] -= 1

    monkeypatch.setattr(VideoIndexing, "begin", begun)
    monkeypatch.setattr(VideoIndexing, "take", slow)
    made, shard = shard_of(tmp_path / "store", tiny, videos)
    names = [Path(source.uri).name for source in shard.sources]
    alone = shard.sources[names.index("2.mp4")].video_id
    events = list(made.run_shard(shard, {}, frozenset({alone})))
    told = [event for event in events if isinstance(event, VideoStarted | VideoDone)]
    begins = next(i for i, event in enumerate(told) if event.video_id == alone)
    ends = next(i for i, event in enumerate(told) if isinstance(event, VideoDone) and event.video_id == alone)
    before = [source.video_id for source in shard.sources[: names.index("2.mp4")]]
    assert {event.video_id for event in told[:begins] if isinstance(event, VideoDone)} == set(before)
    assert ends == begins + 1
    # 2.mp4 has 8 sampled frames, 5.mkv has 7: two segments each.
    assert most[8] == 1
    assert most[7] == 2
    # No tokens of the segment before lie on the GPU when the next one is asked for.
    assert 8 not in held
    assert held[7] == 1


@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize("where", ["take", "finish"])
def test_an_error_that_nobody_foresaw_is_told_of_in_the_name_of_its_video(
    where: str,
    number: int,
    beside: None,
    tiny: Path,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, shard = shard_of(tmp_path / "store", tiny, videos)
    bad = [
        source
        for source in shard.sources
        if Path(source.uri).name in ("0.mp4", "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    ][number]
    store, called = OpenShard.store, getattr(VideoIndexing, where)
    grids: dict[int, str] = {}
    opened = video_runs.VideoRuns._encode

    def encoded(self: Any, source: Any, found: Any, video: Any, *, alone: bool) -> Iterator[Event]:
        grids[id(found.grid)] = source.video_id
        yield from opened(self, source, found, video, alone=alone)

    def late(self: OpenShard, *arguments: Any) -> VideoDone:
        time.sleep(0.1)
        return store(self, *arguments)

    def broken(self: VideoIndexing, *arguments: Any) -> Any:
        if grids[id(self._grid)] == bad.video_id:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return called(self, *arguments)

    monkeypatch.setattr(video_runs.VideoRuns, "_encode", encoded)
    monkeypatch.setattr(OpenShard, "store", late)
    monkeypatch.setattr(VideoIndexing, where, broken)
    held: tuple[str, ...] = ()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        for event in made.run_shard(shard, {}):
            now = in_hand(event)
            held = held if now is None else now
    assert held == (bad.video_id,)


def test_a_full_disk_while_tokens_are_chosen_ends_the_worker_and_leaves_nothing(
    beside: None, tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = VideoIndexing.take
    calls: list[int] = []

    def full(self: VideoIndexing, begun: Begun) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise StoreError("cannot write in the spill folder") from OSError(errno.ENOSPC, "full")
        take(self, begun)

    monkeypatch.setattr(VideoIndexing, "take", full)
    made, shard = shard_of(tmp_path / "store", tiny, videos)

    def events() -> Iterator[Event]:
        yield from made.run_shard(shard, {})

    with pytest.raises(StoreError, match="spill folder"):
        list(events())
    assert len(calls) == 3
    assert not list((tmp_path / "store" / ".tmp").glob("build-*"))


def test_decode_actors_start_while_the_model_is_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = worker(tmp_path / "store", tiny, run_id="run")
    done: list[str] = []
    load_encoder = index_worker.load_encoder

    def loaded(*arguments: Any, **named: Any) -> Any:
        done.append("model")
        return load_encoder(*arguments, **named)

    monkeypatch.setattr(IndexWorker, "_decode_pool", lambda self: done.append("decoders"))
    monkeypatch.setattr(index_worker, "load_encoder", loaded)
    made.load()
    assert done == ["decoders", "model"]
