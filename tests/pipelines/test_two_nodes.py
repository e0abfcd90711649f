"""Encoders and decode actors on two real nodes: spread, never without a decoder, and with videos that lie in S3."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import ray

from echoprune.index import sampling_of
from echoprune.lease import current_epoch
from echoprune.models import frame_layout, model_settings
from echoprune.plan import extend_plan
from echoprune.sample import Sampling
from echoprune.sources import list_sources
from echoprune.storage import Storage
from echoprune.store import create_store
from pipelines.config import IndexConfig
from pipelines.crew import Crew, start_worker
from pipelines.decode_actor import DecodeActor, VideoOpener
from pipelines.decoders import START_S, Decoders
from pipelines.events import ShardCommitted
from pipelines.index import store_settings
from pipelines.index_worker import IndexJob, IndexWorker
from pipelines.lost_nodes import place_of
from pipelines.places import Place, Places
from pipelines.ray_session import session
from tests.clips import Clip, even, write
from tests.pipelines.conftest import tables
from tests.pipelines.nodes import cluster, wait_for

KEPT: list[object] = []


@dataclass(frozen=True)
class Asked:
    """An index of what lies below `url`, with `decoders` decode actors, of which one is beside the encoder; 0: none at all."""

    model: str
    url: str
    endpoint: str
    store: str
    decoders: int


def connect(address: str) -> None:
    """Makes the spawned process a driver of the cluster, for as long as it lives."""
    KEPT.append(session(address, object_store_bytes=0))
    KEPT[-1].__enter__()  # type: ignore[attr-defined]


def index(asked: Asked) -> tuple[int, int]:
    """How many segments were asked of another node meanwhile; and the requests to S3 that were counted."""
    config = IndexConfig(
        store=asked.store, model=asked.model, s3_endpoint=asked.endpoint, s3_patience=20, max_pixels=20_000, fps="8",
        segment_cells=2, in_flight_mb=1,
    )  # fmt: skip
    model = model_settings(config.model, max_pixels=config.max_pixels)
    settings = store_settings(config, model)
    crew = Crew(
        encoders=1,
        decoders=asked.decoders,
        gpus_each=0,
        threads=1,
        share=min(2, 1 + asked.decoders),
        elsewhere=2,
    )
    storage = create_store(asked.store, settings)
    opener = VideoOpener(model.layout, sampling_of(settings), settings.segment_cells)
    worker = IndexWorker(IndexJob(config, settings, opener, crew, storage.url, "run", current_epoch(storage)))
    worker.load()
    pool, away, requests = worker._pool, 0, 0
    try:
        if pool is not None:

            def are_up() -> bool:
                pool._crew.look()
                return pool.decoders == asked.decoders

            wait_for(are_up, f"{asked.decoders} decode actors")
        sources = list_sources([asked.url], s3=config.s3_inputs)
        for shard in extend_plan(Storage(asked.store), sources, shard_bytes=1 << 40, shard_videos=99):
            for event in worker.run_shard(shard, {}):
                requests += event.s3.requests if isinstance(event, ShardCommitted) else 0
                if pool is not None:
                    away += sum(len(each.calls) for each in pool._crew.up if not each.home)
    finally:
        if pool is not None:
            pool.close()
    return away, requests


class Stub:
    """An encoder as far as it takes cores."""

    def __init__(self, job: object) -> None: ...

    def load(self) -> None: ...


def packed(model: str) -> tuple[int, float]:
    """On how many nodes two encoders are that one would have room for; seconds that a decode actor waits for a core in vain."""
    people = Crew(encoders=2, decoders=2, gpus_each=0, threads=1, share=2)
    encoders = [start_worker(Stub, None, people) for _ in range(2)]
    homes = {ray.get(place_of(each)).node_id for each in encoders}
    if len(homes) < 2:
        return len(homes), 0.0
    # The core that is left on this node.
    here = ray.get_runtime_context().get_node_id()
    taken = [ray.remote(Stub).options(**Place(here, home=True).options()).remote(None)]
    ray.get([each.load.remote() for each in (*encoders, *taken)])
    opener = VideoOpener(frame_layout(model, max_pixels=20_000), Sampling(fps=Fraction(4)), segment_cells=2)

    def make(place: Place) -> object:
        return ray.remote(DecodeActor).options(**place.options()).remote(opener)

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.decoders.CORE_S", 1.0)
        decoders = Decoders(make, Places(people, here), count=2)
        decoders.wait(home=True)
    waited_s = time.monotonic() - began
    assert [each.home for each in decoders.up] == [True]
    decoders.close()
    for each in (*encoders, *taken):
        ray.kill(each)
    return len(homes), waited_s


@pytest.fixture(scope="module")
def driver(s3_environment: None) -> Iterator[ProcessPoolExecutor]:
    with cluster("--num-cpus=2") as nodes:
        nodes.add("--num-cpus=2")
        with nodes.driver(connect) as process:
            yield process


@pytest.mark.long  # two machines and two index runs; in a minute test_decode_nodes.py shows the same without S3
def test_the_table_is_that_of_decoding_beside_the_encoder(
    driver: ProcessPoolExecutor, rclone_endpoint: str, rclone_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = rclone_folder / "bucket" / uuid.uuid4().hex
    folder.mkdir()
    for frames in (200, 100, 25):
        write(Clip(f"{frames}.mp4", even(frames)), folder)
    (folder / "broken.mp4").write_text("not a video")

    def indexed(decoders: int) -> tuple[tuple[int, int], dict[str, str]]:
        store = tmp_path / str(decoders)
        asked = Asked(str(tiny), f"s3://bucket/{folder.name}", rclone_endpoint, str(store), decoders)
        return driver.submit(index, asked).result(), tables(store)

    here, there = indexed(0), indexed(3)
    assert here[0][0] == 0 and there[0][0] > 0
    # Beside what the encoder asks for: the decode actors elsewhere fetch for themselves.
    assert there[0][1] > here[0][1] > 0
    assert here[1] == there[1] != {}


@pytest.mark.long
def test_encoders_are_spread_and_none_waits_for_ever_for_a_core(
    driver: ProcessPoolExecutor, tiny: Path
) -> None:
    """Two encoders on one of two nodes left cores for one decode actor there: the other's encoder waited until it gave up."""
    nodes, waited_s = driver.submit(packed, str(tiny)).result()
    assert nodes == 2
    assert 1.0 <= waited_s < START_S
