"""Two shards in the queue of a decode pool, on real Ray and real files: decoded ahead across their border, dropped apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from echoprune.errors import StoreError
from echoprune.sources import Source
from echoprune.staging import StagedVideos
from pipelines.decode_actor import VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.pooled_videos import PooledVideo, PooledVideos
from tests.clips import Clip, even, write
from tests.pipelines.nodes import wait_for
from tests.pipelines.test_decode_pool import Pool, opener

pytestmark = pytest.mark.usefixtures("shared_ray")

__all__ = ["opener"]

COUNT, LOOKAHEAD = 2, 2


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """12, 4 and 4 segments, then one."""
    folder = tmp_path_factory.mktemp("clips")
    return [str(write(Clip(f"{frames}.mp4", even(frames)), folder)) for frames in (300, 100, 101, 25)]


@pytest.fixture(scope="module")
def made(opener: VideoOpener) -> Iterator[Pool]:
    """A pool that no test hurts."""
    pool = Pool(opener, count=COUNT, lookahead=LOOKAHEAD)
    yield pool
    pool.pool.close()


def frames_of(video: PooledVideo) -> np.ndarray:
    video.open()
    return np.concatenate([segment.pixels for segment in video.segments()])


def alone(pool: DecodePool, uri: str) -> np.ndarray:
    (found,) = [frames_of(video) for video in pool.videos([uri], decoder="auto")]
    return found


def asked_for(pool: DecodePool, uri: str) -> int:
    """Segments of a video that are under way or decoded."""
    return sum(len(span.calls) for each in pool._decoders for span in each.spans if span.video.uri == uri)


def nothing_left(pool: DecodePool) -> bool:
    return not pool._queue and not any(each.spans for each in pool._decoders)


def test_the_next_shard_is_decoded_while_the_one_before_is_consumed(made: Pool, uris: list[str]) -> None:
    pool = made.pool
    expected = [alone(pool, uri) for uri in uris]
    # All of the pool is up, so that the bound is that of both.
    wait_for(lambda: pool._crew.look() or pool.decoders == COUNT, "the decoders")
    shards = [pool.videos(uris[:1], decoder="auto"), pool.videos(uris[1:], decoder="auto")]
    found, ahead, ready, warm = [], [], [], []
    for shard in shards:
        for video in shard:
            warm.append(pool._is_warm)
            video.open()
            parts = []
            for segment in video.segments():
                parts.append(segment.pixels.copy())
                if shard is shards[0]:
                    ahead.append(asked_for(pool, uris[1]))
                    ready.append(shard.are_soon_asked)
                loads = [decoder.load for decoder in pool._decoders]
                assert sum(loads) <= COUNT * LOOKAHEAD
                assert max(loads) <= 2 * LOOKAHEAD
            found.append(np.concatenate(parts))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    # That the first frames of a shard are waited for says nothing of the number of decoders, unless they were asked for before.
    assert warm == [False, True, True, True]
    # An actor that has no part of the first one is at the second.
    assert ahead[-1] >= LOOKAHEAD
    # Ready is told when what is left to ask for may be in flight at once, not at the start of a long video.
    assert ready == sorted(ready)
    assert ready.count(True) in range(COUNT * LOOKAHEAD, 2 * COUNT * LOOKAHEAD + 2)
    assert nothing_left(pool)


def test_a_shard_with_a_video_that_is_not_open_yet_is_not_ready(made: Pool, uris: list[str]) -> None:
    shard = made.pool.videos([uris[3], "missing.mp4", uris[3]], decoder="auto")
    assert not shard.are_soon_asked
    list(frames_of(next(shard)))
    wait_for(lambda: made.pool.pump() or shard.are_soon_asked, "all to be opened, or to have failed")
    shard.close()
    assert nothing_left(made.pool)


def test_another_thread_puts_its_shard_behind_at_any_time(made: Pool, uris: list[str]) -> None:
    pool = made.pool
    expected = alone(pool, uris[3])
    later: list[PooledVideos] = []

    def put() -> None:
        for _ in range(20):
            later.append(pool.videos([uris[3]], decoder="auto"))
            time.sleep(0.01)

    first = pool.videos([uris[0]] * 2, decoder="auto")
    thread = threading.Thread(target=put)
    for video in first:
        if not later:
            thread.start()
        frames_of(video)
    thread.join()
    for shard in later:
        (found,) = [frames_of(video) for video in shard]
        assert np.array_equal(found, expected)
    assert nothing_left(pool)


def test_what_is_left_of_a_shard_is_dropped_and_nothing_of_the_other(made: Pool, uris: list[str]) -> None:
    pool = made.pool
    expected = alone(pool, uris[2])
    first, second = pool.videos(uris[:2], decoder="auto"), pool.videos([uris[2]], decoder="auto")
    video = next(first)
    video.open()
    next(video.segments())
    first.close()
    assert [video.uri for video in pool._queue] == [uris[2]]
    assert asked_for(pool, uris[0]) == asked_for(pool, uris[1]) == 0
    (found,) = [frames_of(video) for video in second]
    assert np.array_equal(found, expected) and nothing_left(pool)
    # And the other way round: a shard that goes before its turn takes nothing of the one before along.
    first, second = pool.videos([uris[2]], decoder="auto"), pool.videos(uris[:2], decoder="auto")
    video = next(first)
    video.open()
    segments = video.segments()
    parts = [next(segments).pixels.copy()]
    second.close()
    parts += [segment.pixels.copy() for segment in segments]
    assert np.array_equal(np.concatenate(parts), expected)
    first.close()
    assert nothing_left(pool)


def test_files_of_each_shard_come_from_where_they_were_fetched(
    made: Pool, uris: list[str], tmp_path: Path
) -> None:
    class Elsewhere(StagedVideos):
        """As if the videos of a shard had been fetched, under names of their own."""

        def __init__(self, path: str) -> None:
            super().__init__(None, [Source(path)])
            self.there, self.released = path, []

        def path(self, uri: str) -> str:
            return self.there

        def release(self, uri: str) -> None:
            self.released.append(uri)

    pool = made.pool
    expected = [alone(pool, uri) for uri in uris[2:]]
    staged = [Elsewhere(uri) for uri in uris[2:]]
    shards = [pool.videos([f"s3://{i}"], decoder="auto", staged=each) for i, each in enumerate(staged)]
    for i, shard in enumerate(shards):
        (found,) = [frames_of(video) for video in shard]
        assert np.array_equal(found, expected[i])
        assert staged[i].released == [f"s3://{i}"]


def test_a_disk_that_takes_no_more_is_told_of_in_the_turn_of_its_own_shard(
    made: Pool, uris: list[str]
) -> None:
    class Full(StagedVideos):
        """As if there were no room for what has been fetched."""

        def __init__(self, error: Exception) -> None:
            super().__init__(None, [])
            self.error = error

        def is_ready(self, uri: str) -> bool:
            return True

        def path(self, uri: str) -> str:
            raise self.error

    pool = made.pool
    expected = alone(pool, uris[1])
    # The second one as of a library, which nobody foresaw.
    for error in (StoreError("cannot stage s3://b/v.mp4: no space left on device"), KeyError("etag")):
        first = pool.videos([uris[1]], decoder="auto")
        second = pool.videos(["s3://b/v.mp4"], decoder="auto", staged=Full(error))
        (found,) = [frames_of(video) for video in first]
        assert np.array_equal(found, expected)
        with pytest.raises(type(error)):
            next(second).open()
        second.close()
        assert nothing_left(pool)
