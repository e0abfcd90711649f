"""The decode pool on real Ray and real files: order, bounded work ahead, deaths, hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import ray

from echoprune.errors import MediaError
from echoprune.models import frame_layout
from echoprune.sample import Sampling
from pipelines.crew import Crew
from pipelines.decode_actor import VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.decoders import Decoders
from pipelines.memory_watch import DECODER_BYTES
from pipelines.places import Place, Places
from tests.clips import Clip, even, write
from tests.pipelines.misbehaving import Broken, BrokenLater, Decoder, Slow, Swelling, SwellingAlways
from tests.pipelines.nodes import has_ended, wait_for

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module")
def opener(tiny: Path) -> VideoOpener:
    return VideoOpener(frame_layout(str(tiny), max_pixels=20_000), Sampling(fps=Fraction(4)), segment_cells=2)


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    clips = [Clip(f"{frames}.mp4", even(frames)) for frames in (300, 100, 25)]
    missing = folder / "missing.mp4"
    first, *others = [str(write(clip, folder)) for clip in clips]
    return [first, str(missing), *others]


class Pool:
    """A pool whose actors a test can reach."""

    def __init__(
        self,
        opener: VideoOpener,
        *,
        count: int,
        lookahead: int = 2,
        timeout_s: float = 60.0,
        actor: type[Decoder] = Decoder,
        memory_bytes: int = DECODER_BYTES,
    ) -> None:
        self.handles: list[object] = []
        self.lookahead = lookahead

        def make(place: Place) -> object:
            self.handles.append(ray.remote(actor).options(num_cpus=0.1, max_restarts=0).remote(opener))
            return self.handles[-1]

        people = Crew(encoders=1, decoders=count, gpus_each=0, threads=1, share=1 + count)
        places = Places(people, ray.get_runtime_context().get_node_id())
        decoders = Decoders(make, places, count=count, memory_bytes=memory_bytes)
        self.pool = DecodePool(decoders, lookahead=lambda _: self.lookahead, timeout_s=timeout_s)

    def process(self, index: int) -> int:
        return ray.get(self.handles[index].process.remote())


def read(pool: DecodePool, uris: list[str], *, decoder: str = "auto") -> list[object]:
    """Per video its stacked frames, or the kind of its error."""
    found: list[object] = []
    for video in pool.videos(uris, decoder=decoder):
        try:
            video.open()
            segments = list(video.segments())
        except MediaError as error:
            found.append(error.kind)
            continue
        assert [s.first_cell for s in segments] == [2 * i for i in range(len(segments))]
        found.append(np.concatenate([segment.pixels for segment in segments]))
    return found


def same(one: list[object], other: list[object]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def one(opener: VideoOpener) -> Iterator[Pool]:
    """A pool that no test hurts, as the next one."""
    made = Pool(opener, count=1)
    yield made
    made.pool.close()


@pytest.fixture(scope="module")
def three(opener: VideoOpener) -> Iterator[Pool]:
    made = Pool(opener, count=3)
    yield made
    made.pool.close()


@pytest.fixture(scope="module")
def expected(one: Pool, uris: list[str]) -> list[object]:
    found = read(one.pool, uris)
    assert [each if isinstance(each, str) else len(each) for each in found] == [48, "missing", 16, 4]
    return found


@pytest.mark.parametrize(("count", "lookahead"), [(1, 5), (3, 1)])
def test_actors_and_lookahead_change_nothing(
    one: Pool, three: Pool, uris: list[str], expected: list[object], count: int, lookahead: int
) -> None:
    used = one if count == 1 else three
    used.lookahead = lookahead
    assert same(read(used.pool, uris), expected)
    assert len(used.handles) == count


def test_work_ahead_is_bounded(three: Pool, uris: list[str], expected: list[object]) -> None:
    three.lookahead = 2
    for video in three.pool.videos([uris[0]], decoder="auto"):
        video.open()
        for index, _ in enumerate(video.segments()):
            asked = [decoder.load for decoder in three.pool._decoders]
            assert sum(asked) <= 2 * 3, (index, asked)
            assert max(asked) <= 2 * 2, (index, asked)
    assert same(read(three.pool, uris), expected)


def test_a_video_left_unread_does_not_hold_up_the_next(
    three: Pool, uris: list[str], expected: list[object]
) -> None:
    three.lookahead = 1
    found = []
    for number, video in enumerate(three.pool.videos([uris[0], uris[2]], decoder="auto")):
        video.open()
        segments = video.segments()
        if number == 0:
            next(segments)
            continue
        found.append(np.concatenate([segment.pixels for segment in segments]))
    assert same(found, [expected[2]])


def test_actors_killed_before_anybody_looked_at_them_are_replaced_and_no_video_is_blamed(
    opener: VideoOpener, uris: list[str], expected: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(opener, count=3)
    # They start while a model is read, which takes minutes.
    processes = [pool.process(index) for index in range(3)]
    # They give way to their encoder: Ray's processes are not nice in tests.
    assert {os.getpriority(os.PRIO_PROCESS, process) for process in processes} == {4}
    for process in processes[:2]:
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: all(has_ended(process) for process in processes[:2]), "killed actors end")
    time.sleep(0.5)  # until Ray has taken note
    assert same(read(pool.pool, uris), expected)
    assert len(pool.handles) == 5
    assert [record.getMessage() for record in caplog.records if "on /" in record.getMessage()] == []
    pool.pool.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_actor_is_replaced_and_nothing_changes(
    opener: VideoOpener, uris: list[str], expected: list[object], count: int
) -> None:
    pool = Pool(opener, count=count)
    found: list[object] = []
    for number, video in enumerate(pool.pool.videos(uris, decoder="auto")):
        try:
            video.open()
            parts = []
            for index, segment in enumerate(video.segments()):
                parts.append(segment.pixels.copy())
                if number == 0 and index == 1:
                    os.kill(pool.process(-1), signal.SIGKILL)
            found.append(np.concatenate(parts))
        except MediaError as error:
            found.append(error.kind)
    assert same(found, expected)
    assert len(pool.handles) == count + 1
    pool.pool.close()


def test_a_video_that_kills_its_decoder_twice_fails_alone(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    pool = Pool(opener, count=1, lookahead=1)
    found: list[object] = []
    for number, video in enumerate(pool.pool.videos(uris, decoder="auto")):
        try:
            video.open()
            parts = []
            for segment in video.segments():
                parts.append(segment.pixels.copy())
                if number == 0:
                    os.kill(pool.process(-1), signal.SIGKILL)
            found.append(np.concatenate(parts))
        except MediaError as error:
            found.append(error.kind)
    assert found[0] == "decoder_died"
    assert same(found[1:], expected[1:])
    pool.pool.close()


def test_a_hanging_decoder_is_killed_and_pyav_tried(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    # Longer than decoding ever takes on a machine with ten times more work than cores, where 8 s were not enough.
    pool = Pool(opener, count=1, timeout_s=25.0)
    process = pool.process(0)
    decoders: set[str] = set()
    found: list[object] = []
    started = time.monotonic()
    for number, video in enumerate(pool.pool.videos(uris, decoder="auto")):
        try:
            video.open()
            parts = []
            for index, segment in enumerate(video.segments()):
                if number == 0:
                    decoders.add(segment.decoder)
                    if index == 0:
                        os.kill(process, signal.SIGSTOP)  # as an endless loop in the decoder would look
                parts.append(segment.pixels.copy())
            found.append(np.concatenate(parts))
        except MediaError as error:
            found.append(error.kind)
    assert decoders == {"decord", "pyav"}
    assert same(found, expected)
    assert time.monotonic() - started < 200
    wait_for(lambda: has_ended(process), "the end of the hanging process", limit_s=60)
    pool.pool.close()


def test_slow_calls_one_after_another_are_no_hang(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    # The second video is opened before the first one's segments are decoded: they are waited for 8 s, with a limit of 7.
    pool = Pool(opener, count=1, timeout_s=7.0, actor=Slow)
    assert same(read(pool.pool, [uris[3], uris[2]]), [expected[3], expected[2]])
    # And what a video that is left unread asked for is not the next one's doing.
    for number, video in enumerate(pool.pool.videos([uris[0], uris[3]], decoder="auto")):
        video.open()
        assert number == 0 or len(list(video.segments())) == 1
    assert len(pool.handles) == 1
    pool.pool.close()


def test_an_unexpected_error_while_opening_ahead_fails_that_video_alone(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    pool = Pool(opener, count=2, actor=Broken).pool
    first, second, third = uris[0], uris[2], uris[3]
    assert same(read(pool, [first, second, third]), [expected[0], "ValueError", expected[3]])
    for video in pool.videos([second], decoder="auto"):
        with pytest.raises(MediaError) as raised:
            video.open()
        assert str(raised.value) == f"{second}: ValueError: a defect in two lines"
        assert raised.value.stage == "probe"
    pool.close()


def test_an_unexpected_error_while_decoding_ahead_fails_that_video_alone(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    # One actor that is asked for twenty segments has met the defect of the second video before the first is consumed.
    pool = Pool(opener, count=1, lookahead=20, actor=BrokenLater).pool
    assert same(read(pool, [uris[0], uris[2], uris[3]]), [expected[0], "StopIteration", expected[3]])
    pool.close()


def test_a_swelling_decoder_is_killed_and_pyav_tried(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    pool = Pool(opener, count=2, actor=Swelling, memory_bytes=1 << 30)
    assert same(read(pool.pool, uris), expected)
    assert len(pool.handles) == 3
    pool.pool.close()


def test_a_video_that_makes_its_decoder_swell_twice_fails_alone(
    opener: VideoOpener, uris: list[str], expected: list[object]
) -> None:
    pool = Pool(opener, count=1, actor=SwellingAlways, memory_bytes=1 << 30)
    assert same(read(pool.pool, uris), ["decoder_swelled", *expected[1:]])
    assert len(pool.handles) == 3
    pool.pool.close()
