"""A worker with two shards, as on a GPU: one is encoded while the other one is written and committed; the store is the same."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray

from echoprune.index import VideoIndexing
from echoprune.plan import Shard, extend_plan
from echoprune.segment import Begun
from echoprune.sources import list_sources
from echoprune.storage import Storage
from pipelines import shard_run
from pipelines.at_work import SHARDS_AT_MOST, AtWork
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from pipelines.events import Event, ReadyForNext, ShardCommitted, VideoDone, VideoStarted
from pipelines.index_worker import IndexWorker
from pipelines.open_shard import OpenShard
from tests.clips import Clip, cut, even, write
from tests.pipelines import in_process
from tests.pipelines.conftest import call, report, tables

pytestmark = pytest.mark.usefixtures("shared_ray")

LIMIT_S = 120.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of two: good ones, one that breaks off, one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((60, 90, 75, 45, 60, 30)):
        write(Clip(f"{number}.mp4", even(frames)), folder)
    whole = write(Clip("whole.mkv", even(80)), folder)
    cut(whole, folder / "6.mkv", keep=0.6)
    whole.unlink()
    (folder / "7.mp4").write_bytes(b"not a video" * 400)
    return folder


@pytest.fixture(scope="module")
def plain(tiny: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one shard after another, nothing beside anything."""
    store = tmp_path_factory.mktemp("plain") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_process, "MIN_SHARDS", 1)  # shards of two videos, not 32 if there were as many
        in_process.index(config(store, tiny, videos))
    return store


def config(store: Path, tiny: Path, videos: Path) -> IndexConfig:
    return IndexConfig(
        paths=(str(videos),), store=str(store), model=str(tiny), shard_videos=2, segment_cells=2
    )


def beside(
    store: Path, tiny: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, *, decoders: int
) -> tuple[IndexWorker, list[Shard]]:
    """A worker of this process that does things beside the encoder, and the shards of its store."""
    crew = Crew(encoders=1, decoders=decoders, gpus_each=0, threads=1, share=1 + decoders)
    monkeypatch.setattr(in_process, "ALONE", crew)
    job = in_process.IndexJob
    monkeypatch.setattr(in_process, "IndexJob", lambda **fields: job(**fields, beside=True))
    made = in_process.worker(config(store, tiny, videos), run_id="run")
    return made, extend_plan(Storage(store), list_sources([str(videos)]), shard_bytes=1 << 40, shard_videos=2)


class Calls:
    """Calls of a worker in threads, as Ray makes them, and all that they tell, in its order."""

    def __init__(self, made: IndexWorker) -> None:
        self._made = made
        self.told: queue.SimpleQueue[tuple[str, Event | BaseException | None]] = queue.SimpleQueue()
        self.events: list[tuple[str, Event]] = []

    def begin(self, shard: Shard) -> None:
        def run() -> None:
            try:
                for event in self._made.run_shard(shard, {}):
                    self.told.put((shard.shard_id, event))
            except BaseException as error:  # noqa: BLE001 - shown by whoever waits
                self.told.put((shard.shard_id, error))

        threading.Thread(target=run, daemon=True).start()

    def until(self, what: Callable[[str, Event], bool]) -> None:
        """Takes in what is told until it is `what`."""
        while True:
            shard, event = self.told.get(timeout=LIMIT_S)
            assert not isinstance(event, BaseException), event
            assert event is not None
            self.events.append((shard, event))
            if what(shard, event):
                return

    def run(self, shards: list[Shard]) -> list[tuple[str, Event]]:
        """Does `shards` as a scheduler has them done, which gives a ready worker its next one."""
        left, under_way = list(shards), 0
        ready = True
        while left or under_way:
            if left and ready and under_way < SHARDS_AT_MOST:
                self.begin(left.pop(0))
                under_way, ready = under_way + 1, False
                continue
            self.until(lambda _, event: isinstance(event, ReadyForNext | ShardCommitted))
            ready |= isinstance(self.events[-1][1], ReadyForNext)
            under_way -= isinstance(self.events[-1][1], ShardCommitted)
        return self.events


@pytest.mark.parametrize("decoders", [0, 1])
def test_the_store_is_that_of_one_shard_after_another(
    decoders: int, plain: Path, tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shards = beside(tmp_path, tiny, videos, monkeypatch, decoders=decoders)
    begin, commit, at_encoder = VideoIndexing.begin, OpenShard.commit, set()

    def noted(self: VideoIndexing, frames: Any) -> Begun:
        at_encoder.add(threading.get_ident())
        assert len(at_encoder) == 1
        try:
            return begin(self, frames)
        finally:
            at_encoder.discard(threading.get_ident())

    def slow(self: OpenShard, *arguments: Any, **others: Any) -> Any:
        time.sleep(0.4)
        return commit(self, *arguments, **others)

    monkeypatch.setattr(VideoIndexing, "begin", noted)
    monkeypatch.setattr(OpenShard, "commit", slow)
    begun = time.perf_counter()
    events = Calls(made).run(shards)
    took_s = time.perf_counter() - begun
    assert tables(tmp_path) == tables(plain)
    assert len(shards) == 4
    ids = [shard.shard_id for shard in shards]
    done = [shard for shard, event in events if isinstance(event, ShardCommitted)]
    assert done == ids
    for shard, after in pairwise(ids):
        # Told once; and the next one's first video has ended before this one is committed.
        assert sum(isinstance(event, ReadyForNext) for name, event in events if name == shard) == 1
        committed = events.index(
            next((n, e) for n, e in events if n == shard and isinstance(e, ShardCommitted))
        )
        assert any(name == after for name, _ in events[:committed])
    ends = [event for _, event in events if isinstance(event, ShardCommitted)]
    # Of four commits of 0.4 s those parts are the encoder's time in which nothing was encoded beside them, counted once.
    assert 0.4 <= sum(event.commit_s for event in ends) < 1.4
    assert sum(event.wait_s + event.encode_s + event.commit_s for event in ends) <= took_s
    if made._pool is not None:
        assert made._pool._queue == []
        made._pool.close()


def test_a_shard_is_encoded_while_the_one_before_is_written_and_committed(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shards = beside(tmp_path, tiny, videos, monkeypatch, decoders=0)
    first, second = shards[:2]
    may, store, held = threading.Event(), OpenShard.store, []

    def hold(self: OpenShard, *arguments: Any) -> VideoDone:
        if self._shard_id == first.shard_id and not may.is_set():
            held.append(1)
            assert may.wait(LIMIT_S)
        return store(self, *arguments)

    monkeypatch.setattr(OpenShard, "store", hold)
    calls = Calls(made)
    calls.begin(first)
    calls.until(lambda _, event: isinstance(event, ReadyForNext))
    calls.begin(second)
    # The first shard's last videos are not written yet, the second one is encoded, written and committed.
    calls.until(lambda shard, event: shard == second.shard_id and isinstance(event, ShardCommitted))
    assert held == [1]
    ended = [shard for shard, event in calls.events if isinstance(event, VideoDone)]
    assert ended == [second.shard_id] * 2
    may.set()
    calls.until(lambda shard, event: shard == first.shard_id and isinstance(event, ShardCommitted))


def test_a_shard_behind_one_that_failed_has_no_turn(
    tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shards = beside(tmp_path, tiny, videos, monkeypatch, decoders=0)
    begin, go, asked = VideoIndexing.begin, threading.Event(), []

    def broken(self: VideoIndexing, frames: Any) -> Begun:
        asked.append(1)
        assert go.wait(LIMIT_S)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(VideoIndexing, "begin", broken)
    calls = Calls(made)
    calls.begin(shards[0])
    calls.until(lambda _, event: isinstance(event, VideoStarted))
    calls.begin(shards[1])
    time.sleep(0.3)
    go.set()
    shard, error = calls.told.get(timeout=LIMIT_S)
    assert shard == shards[0].shard_id and isinstance(error, RuntimeError)
    with pytest.raises(queue.Empty):
        calls.told.get(timeout=0.5)
    assert asked == [1]
    monkeypatch.setattr(VideoIndexing, "begin", begin)


class Noted(AtWork):
    """As each worker is; how often one was given a shard beside another."""

    times: int
    kill_at: int

    def start(self, shard: Any, *known: object) -> None:
        super().start(shard, *known)
        if len(self.jobs) > 1:
            Noted.times += 1
            if Noted.times == self.kill_at:
                ray.kill(self.worker.handle)


@pytest.mark.parametrize("kill_at", [0, 2])
def test_a_run_with_shards_beside_each_other_and_with_its_worker_killed_between_two(
    kill_at: int, plain: Path, tiny: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.index.MIN_SHARDS", 1)
    monkeypatch.setattr(shard_run, "works_beside", lambda people: True)
    monkeypatch.setattr("pipelines.schedule.AtWork", Noted)
    Noted.times, Noted.kill_at = 0, kill_at
    command = ("index", videos, "--store", tmp_path / "store", "--model", tiny, "--segment-cells", "2")
    call(*command, "--shard-videos", "2", "--decoders-per-gpu", "1", expect=3)
    assert tables(tmp_path / "store") == tables(plain)
    assert Noted.times >= 2
    found = report(tmp_path / "store")
    assert found["quarantined"] == [] and found["run"]["shards"] == 4
    spent = found["run"]["worker_s"]
    assert 0 < found["run"]["encoder_busy"] <= 1 and sum(spent.values()) <= found["run"]["elapsed_s"]
    assert not list((tmp_path / "store" / ".tmp").glob("*"))
