"""Decode actors on a node beside the encoder's: a cluster of two nodes, real files, and a node that vanishes."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from echoprune.errors import MediaError
from echoprune.index import sampling_of
from echoprune.lease import current_epoch
from echoprune.models import frame_layout, model_settings
from echoprune.plan import extend_plan
from echoprune.sample import Sampling
from echoprune.sources import list_sources
from echoprune.storage import Storage
from echoprune.store import create_store
from pipelines.config import IndexConfig
from pipelines.crew import Crew, nodes_alive
from pipelines.decode_actor import Away, DecodeActor, Seen, VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.decode_process import DecodeProcess
from pipelines.decoders import Decoders
from pipelines.events import ShardCommitted
from pipelines.growth import Growth
from pipelines.index import store_settings
from pipelines.index_worker import IndexJob, IndexWorker
from pipelines.memory_watch import DECODER_BYTES
from pipelines.places import Place, Places
from pipelines.ray_session import session
from tests.clips import Clip, even, write
from tests.pipelines.conftest import tables
from tests.pipelines.nodes import Nodes, cluster, has_ended, vanish, wait_for

Found = list[NDArray[np.uint8] | str]


class Elsewhere(DecodeActor):
    """A decode actor of a node on which other files have the names of the videos."""

    def see(self, span: int, seen: Seen) -> None:
        super().see(span, Seen(seen.size_bytes + 1))


class Reader:
    """A pool with one decode actor here and up to two on the other node, and what is read with it."""

    def __init__(
        self,
        model: str,
        *,
        count: int = 3,
        auto: bool = False,
        actor: type[DecodeActor] = DecodeActor,
        grow_to: int | None = None,
    ) -> None:
        self.here = ray.get_runtime_context().get_node_id()
        opener = VideoOpener(
            frame_layout(model, max_pixels=20_000), Sampling(fps=Fraction(4)), segment_cells=2
        )

        def make(place: Place) -> object:
            away = None if place.home else Away(DECODER_BYTES)
            return (
                ray.remote(DecodeActor if place.home else actor)
                .options(**place.options())
                .remote(opener, away)
            )

        people = Crew(
            encoders=1,
            decoders=count,
            gpus_each=0,
            threads=1,
            auto=auto,
            share=2,
            elsewhere=0 if grow_to else 2,
            grow_to=grow_to,
        )
        growth = Growth(window_s=0.2, segments=2) if auto else None
        self.decoders = Decoders(make, Places(people, self.here), count=count, growth=growth)
        self.pool = DecodePool(self.decoders, lookahead=lambda _: 1, timeout_s=60.0)
        self.strikes: list[int] = []
        self.by_node: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever a test found: the next one needs the cores.
        self.pool.close()

    def wait(self, count: int) -> None:
        """Until so many have started."""

        def is_up() -> bool:
            self.decoders.look()
            return len(self.decoders.up) >= count

        wait_for(is_up, f"{count} decode actors")

    def read(self, uris: list[str], *, lost: str = "", after: int = 2) -> Found:
        """Per video its frames or the kind of its error; the node `lost` goes after so many segments."""
        found: Found = []
        segments = 0
        for video in self.pool.videos(uris, decoder="pyav"):
            parts: list[NDArray[np.uint8]] = []
            try:
                video.open()
                for each in video.segments():
                    parts.append(each.pixels.copy())
                    segments += 1
                    asked = [(d, len(d.calls)) for d in self.decoders.up]
                    self.by_node.update({decoder.node_id: calls for decoder, calls in asked})
                    if segments == after and lost:
                        vanish(lost)
                found.append(np.concatenate(parts))
            except MediaError as error:
                found.append(error.kind)
            self.strikes.append(video._video.strikes)
        return found


def connect(address: str) -> None:
    """Makes the spawned process a driver of the cluster, for as long as it lives."""
    connection = session(address, object_store_bytes=0)
    connection.__enter__()
    globals()["_connection"] = connection


def plain(model: str, uris: list[str]) -> Found:
    """What one decode actor beside the encoder gives."""
    with Reader(model, count=1) as reader:
        return reader.read(uris)


def indexed(model: str, uris: list[str], store: str, decoders: int) -> int:
    """A store of one shard, of an encoder with one decode actor beside it and the others on the other node; how many."""
    config = IndexConfig(store=store, model=model, segment_cells=2, in_flight_mb=1)
    found = model_settings(model, max_pixels=config.max_pixels)
    settings = store_settings(config, found)
    job = IndexJob(
        config=config,
        settings=settings,
        opener=VideoOpener(found.layout, sampling_of(settings), settings.segment_cells),
        crew=Crew(
            encoders=1, decoders=decoders, gpus_each=0, threads=1, share=min(2, 1 + decoders), elsewhere=2
        ),
        store=create_store(store, settings).url,
        run_id="run",
        lease_epoch=current_epoch(Storage(store)),
    )
    worker = IndexWorker(job)
    worker.load()

    def is_up() -> bool:
        if worker._pool is not None:
            worker._pool._crew.look()
        return (worker._pool.decoders if worker._pool else 0) == decoders

    used = 0
    with ExitStack() as at_the_end:
        if worker._pool is not None:
            at_the_end.callback(worker._pool.close)
        wait_for(is_up, f"{decoders} decode actors")
        for shard in extend_plan(Storage(store), list_sources(uris), shard_bytes=1 << 40, shard_videos=99):
            for event in worker.run_shard(shard, {}):
                if isinstance(event, ShardCommitted):
                    used = event.decoders
    return used


def far(model: str, uris: list[str]) -> tuple[Found, Counter[str], str]:
    """What is read with all three; then one of those on the other node is stopped, and ended by its encoder."""
    with Reader(model) as reader:
        reader.wait(3)
        found = reader.read(uris)
        away: DecodeProcess = next(each for each in reader.decoders.up if not each.home)
        os.kill(away.pid, signal.SIGSTOP)  # as an endless loop in the decoder would look
        away.kill()
        wait_for(lambda: has_ended(away.pid), "the end of the stopped process")
        return found, reader.by_node, reader.here


def growing(model: str, uris: list[str]) -> tuple[Found, int, int]:
    """Reads again and again until there are three, from one: an encoder that does nothing always waits."""
    with Reader(model, count=1, auto=True) as reader:
        reader.wait(1)
        first = len(reader.decoders.up)
        found: Found = []

        def has_grown() -> bool:
            found[:] = reader.read(uris)
            return len(reader.decoders.up) == 3

        wait_for(has_grown, "two decode actors more")
        return found, first, reader.decoders.most


def other_files(model: str, uris: list[str]) -> tuple[Found, list[int], set[str], str]:
    with Reader(model, count=2, actor=Elsewhere) as reader:
        reader.wait(2)
        found = reader.read(uris)
        nodes = {each.node_id for each in reader.decoders.up}
        return found, reader.strikes, nodes, reader.here


def let_go(model: str, uris: list[str]) -> list[bool]:
    """Whether each video was let go of when it was done, by a process that does not look for circles."""
    gone = []
    gc.collect()
    gc.disable()
    try:
        with Reader(model, count=1) as reader:
            for video in reader.pool.videos(uris, decoder="pyav"):
                gone.append(weakref.ref(video._video))
                with suppress(MediaError):
                    video.open()
                    list(video.segments())
            del video
            return [video() is None for video in gone]
    finally:
        gc.enable()


def losing(model: str, uris: list[str], mark: str) -> tuple[Found, list[int], Counter[str], set[str]]:
    with Reader(model) as reader:
        reader.wait(3)
        found = reader.read(uris, lost=mark)
        wait_for(lambda: len(nodes_alive()) == 1, "Ray's notice of the lost node")
        nodes = {each.node_id for each in reader.decoders.up if each.node_id != reader.here}
        return found, reader.strikes, reader.by_node, nodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster("--num-cpus=2") as started:
        started.add("--num-cpus=2")
        yield started


@pytest.fixture(scope="module")
def driver(nodes: Nodes) -> Iterator[ProcessPoolExecutor]:
    with nodes.driver(connect) as process:
        yield process


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    clips = [str(write(Clip(f"{frames}.mp4", even(frames)), folder)) for frames in (300, 100, 25)]
    return [clips[0], str(folder / "missing.mp4"), *clips[1:]]


@pytest.fixture(scope="module")
def expected(driver: ProcessPoolExecutor, tiny: Path, uris: list[str]) -> Found:
    found = driver.submit(plain, str(tiny), uris).result()
    assert [each if isinstance(each, str) else len(each) for each in found] == [48, "missing", 16, 4]
    return found


def same(one: Found, other: Found) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_decoders_elsewhere_change_nothing_and_are_ended_where_they_hear_nothing(
    driver: ProcessPoolExecutor, tiny: Path, uris: list[str], expected: Found
) -> None:
    found, by_node, here = driver.submit(far, str(tiny), uris).result()
    assert same(found, expected)
    assert len(by_node) == 2 and by_node[here] and by_node.total() > by_node[here]


def test_the_store_has_the_same_bytes_wherever_its_videos_are_decoded(
    driver: ProcessPoolExecutor, tiny: Path, uris: list[str], tmp_path: Path
) -> None:
    for decoders in (0, 2):
        used = driver.submit(indexed, str(tiny), uris, str(tmp_path / str(decoders)), decoders).result()
        assert used == decoders
    assert tables(tmp_path / "2") == tables(tmp_path / "0") != {}


def test_an_encoder_that_waits_gets_decoders_on_the_other_node(
    driver: ProcessPoolExecutor, tiny: Path, uris: list[str], expected: Found
) -> None:
    found, first, most = driver.submit(growing, str(tiny), uris).result()
    assert same(found, expected) and (first, most) == (1, 3)


def test_a_node_with_other_files_is_not_asked_again(
    driver: ProcessPoolExecutor, tiny: Path, uris: list[str], expected: Found
) -> None:
    found, strikes, nodes, here = driver.submit(other_files, str(tiny), uris).result()
    assert same(found, expected) and strikes == [0, 0, 0, 0] and nodes == {here}


def test_a_failed_video_is_let_go_of_at_once(
    driver: ProcessPoolExecutor, tiny: Path, uris: list[str]
) -> None:
    # What is held by a circle stays in Ray's memory, and its node busy, until Python looks for circles.
    assert driver.submit(let_go, str(tiny), uris[:3]).result() == [True] * 3


def test_a_decode_node_that_vanishes_costs_no_video_an_attempt(
    driver: ProcessPoolExecutor, nodes: Nodes, tiny: Path, uris: list[str], expected: Found
) -> None:
    found, strikes, by_node, left = driver.submit(losing, str(tiny), uris, nodes.marks[-1]).result()
    assert same(found, expected) and strikes == [0, 0, 0, 0]
    assert len(by_node) == 2 and not left
