"""One encoder, pinned to its GPU: takes shards, encodes their videos in order, commits each shard whole.

The model is loaded once. The worker's decode actors run ahead while it encodes. On a GPU it has several calls under way: one shard
has its turn at the encoder (turns.py), the next one waits for that, its videos decoded ahead, and the one before is written and committed. An error of a video (MediaError) becomes a
row. Any other ends the worker, since it cannot be told from inside what is to blame: CUDA, memory, disk, the store, or a
defect that shows on that video. The scheduler decides, by doing the video again in a fresh worker.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from echoprune import lease
from echoprune.errors import MediaError, ModelError
from echoprune.models import load_encoder
from echoprune.plan import Shard
from echoprune.s3_objects import S3Counts, s3_counts
from echoprune.s3_options import use_s3
from echoprune.schema import StoreSettings
from echoprune.segment import try_out
from echoprune.sources import Source
from echoprune.storage import Storage
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from pipelines.decode_actor import Away, DecodeActor, VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.decoders import Decoders
from pipelines.events import Event, ShardCommitted
from pipelines.memory_watch import DECODER_BYTES
from pipelines.open_shard import OpenShard, committed_shard
from pipelines.places import Place, Places
from pipelines.shard_videos import ShardVideos, Staging
from pipelines.turns import Turns
from pipelines.video_runs import Clock, VideoRuns


@dataclass(frozen=True)
class IndexJob:
    """All that a worker needs to know of the run.

    `beside`: what follows the encoder is done beside it, and the worker may be given a shard while it has one.
    """

    config: IndexConfig
    settings: StoreSettings
    opener: VideoOpener
    crew: Crew
    store: str
    run_id: str
    lease_epoch: int
    beside: bool = False


class IndexWorker:
    """The actor class; see the module's docstring."""

    def __init__(self, job: IndexJob) -> None:
        self._job = job
        use_s3(job.config.s3)
        self._storage = Storage(job.store)
        self._encoder: Any = None
        self._pool: DecodePool | None = None
        self._decoders: Decoders | None = None
        self._turns, self._staging = Turns(), Staging(job.config)
        self._counting, self._told_s3 = threading.Lock(), s3_counts()
        torch.set_num_threads(job.crew.threads)

    def load(self) -> None:
        """Starts the decode actors, loads the model and tries a GPU out; raises ModelError if it is not the store's model."""
        config, settings = self._job.config, self._job.settings
        # First: they start while the model is read, and the GPU need not wait for them.
        self._pool = self._decode_pool()
        device = "cuda" if self._job.crew.gpus_each else "cpu"
        self._encoder = load_encoder(
            config.model,
            segment_cells=settings.segment_cells,
            device=device,
            compute_dtype=settings.compute_dtype,
            max_pixels=settings.max_pixels,
            tower=settings.tower,
        )
        if self._encoder.dim != settings.dim:
            raise ModelError(
                f"{config.model} gives {self._encoder.dim}-wide tokens here, the store has {settings.dim}"
            )
        if device == "cuda":
            try_out(self._encoder, settings)

    def _decode_pool(self) -> DecodePool | None:
        """The decode actors, started as far as there is room for them; None where videos are decoded in this process."""
        job = self._job
        if not (job.crew.decoders or job.crew.auto):
            # Asked where it is, Ray would start itself in a process that has none, open to others.
            return None
        places = Places(job.crew, ray.get_runtime_context().get_node_id())
        count = places.start()
        if not count:
            return None
        # Two segments each are at most twice --in-flight-mb: what a private Ray's shared memory is made for.
        limit = None if job.crew.grow_to else max(count, in_flight_segments(job))
        self._decoders = Decoders(self._decode_actor, places, count=count, limit=limit)
        return DecodePool(
            self._decoders, lookahead=partial(lookahead, job), timeout_s=job.config.decode_timeout
        )

    def _decode_actor(self, place: Place) -> Any:
        config = self._job.config
        away = Away(DECODER_BYTES, config.s3_inputs, config.s3_cache_dir, int(config.s3_cache_gb * 2**30))
        actor = ray.remote(DecodeActor).options(**place.options())
        return actor.remote(self._job.opener, None if place.home else away)

    def run_shard(
        self, shard: Shard, quarantined: Mapping[str, str], alone: frozenset[str] = frozenset()
    ) -> Generator[Event, None, None]:
        """Encodes and commits one shard, telling what happens; raises what is not known to be a video's own.

        While a video of `alone` is encoded no other one is decoded ahead. Of a shard that is committed already only
        `shard.redo` is encoded, the rest is copied into its next generation. Another call may be made once this one has told
        that the worker is ready for it, with nothing of `alone` in either.
        """
        job, clock = self._job, Clock()
        # Each thread has a number of its own, and a call its thread.
        torch.set_num_threads(job.crew.threads)
        committed = committed_shard(self._storage, job.settings, shard, lease_epoch=job.lease_epoch)
        if committed is not None and committed.receipt.run_id == job.run_id:
            # Done before the last worker died, which could not say so any more.
            yield ShardCommitted(
                shard.shard_id, committed.receipt.size_bytes, wait_s=0, encode_s=0, commit_s=0
            )
            return
        with self._storage.tmp_dir() as folder, self._turns.ask() as turn:
            files = OpenShard(folder, job.settings, shard.shard_id, committed)
            # Decoded from now on, while the shard before is encoded.
            videos = self._videos([each for each in shard.todo if each.video_id not in quarantined], alone)
            with closing(self._runs(files, folder, clock, videos)) as runs:
                turn.wait()
                with closing(videos):
                    yield from self._encoded(shard, runs, videos, quarantined, alone)
                turn.give_up()
                if job.beside:
                    yield from runs.ready(at_latest=True)
                yield from runs.rest()
            receipt = files.commit(
                self._storage,
                job.config,
                run_id=job.run_id,
                lease_epoch=job.lease_epoch,
                check_epoch=self._check_epoch,
            )
            commit_s = turn.end()
        yield ShardCommitted(
            shard_id=shard.shard_id,
            bytes=receipt.size_bytes,
            wait_s=clock.wait_s,
            encode_s=clock.encode_s,
            commit_s=commit_s,
            s3=self._asked_of_s3(),
            decoders=self._pool.decoders if self._pool else 0,
        )

    def _encoded(
        self,
        shard: Shard,
        runs: VideoRuns,
        videos: ShardVideos,
        quarantined: Mapping[str, str],
        alone: frozenset[str],
    ) -> Generator[Event, None, None]:
        """Has all videos of the shard encoded, or written down without that, in its order."""
        for source in shard.sources:
            if shard.redo and source.video_id not in shard.redo:
                yield from runs.copied(source)
            elif source.video_id in quarantined:
                killed = MediaError(
                    f"{source.uri}: encoding it ended the worker twice, the second time alone "
                    f"({quarantined[source.video_id]}); the file is left out",
                    stage="encode",
                    kind="worker_died",
                )
                yield from runs.failed(source, killed)
            else:
                yield from runs.run(source, next(videos), alone=source.video_id in alone)

    def _videos(self, sources: Sequence[Source], alone: frozenset[str]) -> ShardVideos:
        return ShardVideos(
            sources,
            alone,
            pool=self._pool,
            opener=self._job.opener,
            decoder=self._job.config.decoder,
            staging=self._staging,
        )

    def _runs(self, files: OpenShard, folder: Path, clock: Clock, videos: ShardVideos) -> VideoRuns:
        return VideoRuns(
            files,
            self._encoder,
            self._job.settings,
            spill_dir=folder,
            clock=clock,
            beside=self._job.beside,
            threads=self._job.crew.threads,
            is_ready=lambda: self._job.beside and videos.are_soon_asked,
        )

    def _asked_of_s3(self) -> S3Counts:
        """What was asked of S3 since the last call, for whichever shard, by decode actors elsewhere too as far as they have said so."""
        with self._counting:
            now = s3_counts()
            asked, self._told_s3 = now - self._told_s3, now
            return asked + (self._decoders.s3() if self._decoders else S3Counts())

    def _check_epoch(self) -> None:
        lease.check(self._storage, self._job.lease_epoch)


def in_flight_segments(job: IndexJob) -> int:
    """Segments that --in-flight-mb holds."""
    frame_bytes = 3 * (job.settings.max_pixels or job.opener.layout.max_pixels)
    segment_bytes = frame_bytes * job.settings.segment_cells * job.settings.cell_frames
    return (job.config.in_flight_mb << 20) // segment_bytes


def lookahead(job: IndexJob, decoders: int) -> int:
    """Segments that each of `decoders` may have decoded and not delivered, from --in-flight-mb; at least 2."""
    return max(2, in_flight_segments(job) // decoders)
