"""One encoder, pinned to its GPU: takes shards, encodes their videos in order, commits each shard whole.

The model is loaded once. The worker's decode actors run ahead while it encodes. An error of a video (MediaError) becomes a
row. Any other ends the worker, since it cannot be told from inside what is to blame: CUDA, memory, disk, the store, or a
defect that shows on that video. The scheduler decides, by doing the video again in a fresh worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import ray
import torch

from echoprune import lease
from echoprune.data import Frames
from echoprune.decode import decode
from echoprune.errors import EchoPruneError, MediaError, ModelError
from echoprune.models import load_encoder
from echoprune.plan import Shard
from echoprune.s3_objects import S3Counts, s3_counts
from echoprune.s3_options import is_s3, use_s3
from echoprune.schema import StoreSettings
from echoprune.segment import try_out
from echoprune.sources import Source
from echoprune.staging import StagedVideos, StagingFolder
from echoprune.storage import Storage
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from pipelines.decode_actor import Away, DecodeActor, Opened, VideoOpener
from pipelines.decode_pool import DecodePool, PooledVideo
from pipelines.decoders import Decoders
from pipelines.events import Event, ShardCommitted
from pipelines.memory_watch import DECODER_BYTES
from pipelines.open_shard import OpenShard, committed_shard
from pipelines.places import Place, Places
from pipelines.rows import unforeseen
from pipelines.video_runs import Clock, VideoRuns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexJob:
    """All that a worker needs to know of the run."""

    config: IndexConfig
    settings: StoreSettings
    opener: VideoOpener
    crew: Crew
    store: str
    run_id: str
    lease_epoch: int


class InlineVideo:
    """A video decoded in this process: what a pooled video is to a worker that has no decode actors."""

    def __init__(self, opener: VideoOpener, uri: str, *, decoder: str, staged: StagedVideos) -> None:
        self._opener, self._uri, self._decoder, self._staged = opener, uri, decoder, staged
        self._opened: Opened | None = None

    def open(self) -> Opened:
        """The scanned video; raises its MediaError."""
        path = self._staged.path(self._uri)
        with self._its_own(stage="probe"):
            self._opened = self._opener.open(self._uri, path)
        return self._opened

    def segments(self) -> Iterator[Frames]:
        """The video's segments in time order; raises its MediaError where decoding ends early."""
        assert self._opened is not None
        resample = self._opener.layout.resample
        with self._its_own(stage="decode"):
            yield from decode(self._opened.info, self._opened.grid, decoder=self._decoder, resample=resample)

    @contextmanager
    def _its_own(self, *, stage: str) -> Iterator[None]:
        """An error that nobody foresaw is the video's failure, as one of a decode actor is; not so one of disk or memory."""
        try:
            yield
        except (EchoPruneError, OSError, MemoryError):
            raise
        except Exception as error:
            log.warning("%s failed unexpectedly", self._uri, exc_info=error)
            raise unforeseen(self._uri, error, stage=stage) from error


class IndexWorker:
    """The actor class; see the module's docstring."""

    def __init__(self, job: IndexJob) -> None:
        self._job = job
        use_s3(job.config.s3)
        self._storage = Storage(job.store)
        self._encoder: Any = None
        self._pool: DecodePool | None = None
        self._decoders: Decoders | None = None
        torch.set_num_threads(job.crew.threads)

    def load(self) -> None:
        """Loads the model, tries a GPU out and starts the decode actors; raises ModelError if it is not the store's model."""
        config, settings = self._job.config, self._job.settings
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
        self._pool = self._decode_pool()

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
        `shard.redo` is encoded, the rest is copied into its next generation.
        """
        job, clock, asked = self._job, Clock(), s3_counts()
        committed = committed_shard(self._storage, job.settings, shard, lease_epoch=job.lease_epoch)
        if committed is not None and committed.receipt.run_id == job.run_id:
            # Done before the last worker died, which could not say so any more.
            yield ShardCommitted(
                shard.shard_id, committed.receipt.size_bytes, wait_s=0, encode_s=0, commit_s=0
            )
            return
        with self._storage.tmp_dir() as folder:
            files = OpenShard(folder, job.settings, shard.shard_id, committed)
            todo = [source for source in shard.todo if source.video_id not in quarantined]
            with (
                closing(self._runs(files, folder, clock)) as runs,
                closing(self._videos(todo, alone)) as videos,
            ):
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
                yield from runs.rest()
            begun = time.perf_counter()
            receipt = files.commit(
                self._storage,
                job.config,
                run_id=job.run_id,
                lease_epoch=job.lease_epoch,
                check_epoch=self._check_epoch,
            )
        yield ShardCommitted(
            shard_id=shard.shard_id,
            bytes=receipt.size_bytes,
            wait_s=clock.wait_s,
            encode_s=clock.encode_s,
            commit_s=time.perf_counter() - begun,
            s3=s3_counts() - asked + (self._decoders.s3() if self._decoders else S3Counts()),
            decoders=self._pool.decoders if self._pool else 0,
        )

    def _runs(self, files: OpenShard, folder: Path, clock: Clock) -> VideoRuns:
        return VideoRuns(
            files,
            self._encoder,
            self._job.settings,
            spill_dir=folder,
            clock=clock,
            beside=self._encoder.device.type == "cuda",
            threads=self._job.crew.threads,
        )

    def _check_epoch(self) -> None:
        lease.check(self._storage, self._job.lease_epoch)

    def _videos(
        self, sources: Sequence[Source], alone: frozenset[str]
    ) -> Generator[PooledVideo | InlineVideo, None, None]:
        config = self._job.config
        with ExitStack() as until:
            staged = until.enter_context(StagedVideos(self._staging(until, sources), sources))
            if self._pool is not None:
                for uris in apart([(source.uri, source.video_id in alone) for source in sources]):
                    yield from self._pool.videos(uris, decoder=config.decoder, staged=staged)
                return
            for uri in (source.uri for source in sources):
                yield InlineVideo(self._job.opener, uri, decoder=config.decoder, staged=staged)
                staged.release(uri)

    def _staging(self, until: ExitStack, sources: Sequence[Source]) -> StagingFolder | None:
        """A folder for the sources that lie in S3, until the end of `until`; None where there is none."""
        if not any(is_s3(source.uri) for source in sources):
            return None
        config = self._job.config
        most_bytes = int(config.s3_cache_gb * 2**30)
        folder = StagingFolder(config.s3_cache_dir, most_bytes=most_bytes, s3=config.s3_inputs)
        until.callback(folder.close)
        return folder


def apart(uris: Iterable[tuple[str, bool]]) -> Iterator[list[str]]:
    """The `uris` in order, cut around each that is to be alone (True)."""
    for alone, part in groupby(uris, key=itemgetter(1)):
        found = [uri for uri, _ in part]
        yield from ([uri] for uri in found) if alone else [found]


def in_flight_segments(job: IndexJob) -> int:
    """Segments that --in-flight-mb holds."""
    frame_bytes = 3 * (job.settings.max_pixels or job.opener.layout.max_pixels)
    segment_bytes = frame_bytes * job.settings.segment_cells * job.settings.cell_frames
    return (job.config.in_flight_mb << 20) // segment_bytes


def lookahead(job: IndexJob, decoders: int) -> int:
    """Segments that each of `decoders` may have decoded and not delivered, from --in-flight-mb; at least 2."""
    return max(2, in_flight_segments(job) // decoders)
