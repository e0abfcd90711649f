"""One encoder, pinned to its GPU: takes shards, encodes their videos in order, commits each shard whole.

The model is loaded once. The worker's decode actors run ahead while it encodes. An error of a video becomes a row;
errors that no video can be blamed for (memory, CUDA, disk, the store) end the worker, and the scheduler decides.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from echoprune import lease
from echoprune.data import Frames
from echoprune.decode import decode
from echoprune.errors import ConfigError, MediaError, ModelError, StoreError
from echoprune.index import IndexedVideo, index_segments
from echoprune.models import load_encoder
from echoprune.plan import Shard
from echoprune.receipt import Receipt
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import Source, video_id
from echoprune.storage import Storage
from pipelines.config import IndexConfig
from pipelines.decode_actor import DecodeActor, Opened, VideoOpener
from pipelines.decode_pool import DecodePool, PooledVideo
from pipelines.events import CellsDone, Event, ShardCommitted, VideoDone, VideoStarted
from pipelines.ray_session import Crew
from pipelines.rows import cell_columns, failed_row, failure_row, one_line, video_row
from pipelines.versions import versions

log = logging.getLogger(__name__)

# Seconds between two progress events of one video: a long video is seen to move, and the driver is not flooded.
EVENT_INTERVAL_S = 0.5
# Rows read from the spill file at a time at most; the file itself hands out no more than 4 MB.
CHUNK_ROWS = 8192
# A video is never the fault of these: the worker ends, and the shard runs again in a fresh one, or the run ends.
NOBODYS_FAULT = (
    ConfigError,
    StoreError,
    MemoryError,
    OSError,
    torch.OutOfMemoryError,
    torch.AcceleratorError,
)


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

    def __init__(self, opener: VideoOpener, uri: str, *, decoder: str) -> None:
        self._opener, self._uri, self._decoder = opener, uri, decoder
        self._opened: Opened | None = None

    def open(self) -> Opened:
        """The scanned video; raises its MediaError."""
        self._opened = self._opener.open(self._uri)
        return self._opened

    def segments(self) -> Iterator[Frames]:
        """The video's segments in time order; raises its MediaError where decoding ends early."""
        assert self._opened is not None
        resample = self._opener.layout.resample
        return decode(self._opened.info, self._opened.grid, decoder=self._decoder, resample=resample)


@dataclass
class _Clock:
    """Where the worker's time goes, in seconds."""

    wait_s: float = 0.0
    encode_s: float = 0.0

    def timed(self, segments: Iterator[Frames]) -> Iterator[Frames]:
        """`segments`, with the time spent waiting for them and between them counted."""
        while True:
            asked = time.perf_counter()
            try:
                frames = next(segments)
            except StopIteration:
                return
            finally:
                given = time.perf_counter()
                self.wait_s += given - asked
            yield frames
            self.encode_s += time.perf_counter() - given


class IndexWorker:
    """The actor class; see the module's docstring."""

    def __init__(self, job: IndexJob) -> None:
        self._job = job
        self._storage = Storage(job.store)
        self._encoder: Any = None
        self._pool: DecodePool | None = None
        torch.set_num_threads(job.crew.threads)

    def load(self) -> None:
        """Loads the model and starts the decode actors; raises ModelError if it is not the store's model."""
        config, settings = self._job.config, self._job.settings
        device = "cuda" if self._job.crew.gpus_each else "cpu"
        self._encoder = load_encoder(
            config.model,
            segment_cells=settings.segment_cells,
            device=device,
            compute_dtype=settings.compute_dtype,
            max_pixels=settings.max_pixels,
        )
        if self._encoder.dim != settings.dim:
            raise ModelError(
                f"{config.model} gives {self._encoder.dim}-wide tokens here, the store has {settings.dim}"
            )
        if self._job.crew.decoders:
            self._pool = DecodePool(
                self._decode_actor,
                count=self._job.crew.decoders,
                lookahead=lookahead(self._job),
                timeout_s=config.decode_timeout,
            )

    def _decode_actor(self) -> Any:
        # Frames travel through the node's shared memory: a decoder elsewhere would send them over the network.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(DecodeActor).options(
            num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy=here
        )
        return actor.remote(self._job.opener)

    def run_shard(self, shard: Shard, quarantined: frozenset[str]) -> Generator[Event, None, None]:
        """Encodes and commits one shard, telling what happens; raises what is nobody's fault."""
        started = datetime.now(UTC)
        clock = _Clock()
        with self._storage.tmp_dir() as folder:
            writer = ShardWriter(folder, self._job.settings, shard.shard_id)
            sources = [source for source in shard.sources if video_id(source.uri) not in quarantined]
            with closing(self._videos(sources)) as videos:
                for source in shard.sources:
                    if video_id(source.uri) in quarantined:
                        killed = MediaError(
                            f"{source.uri}: encoding it killed the worker twice; the file is left out",
                            stage="encode",
                            kind="worker_died",
                        )
                        yield self._failed(writer, source, killed)
                        continue
                    yield from self._run_video(writer, source, next(videos), clock=clock, spill_dir=folder)
            begun = time.perf_counter()
            files = writer.close()
            receipt = Receipt(
                shard_id=shard.shard_id,
                generation=0,
                files=tuple(file.entry for file in files),
                ok=writer.outcomes["ok"],
                partial=writer.outcomes["partial"],
                failed=writer.outcomes["failed"],
                lease_epoch=self._job.lease_epoch,
                run_id=self._job.run_id,
                host=socket.gethostname(),
                started_at=started.isoformat(),
                finished_at=datetime.now(UTC).isoformat(),
                versions=versions(),
                config=self._job.config.as_dict() | {"paths": len(self._job.config.paths)},
            )
            commit(self._storage, files, receipt, check_epoch=self._check_epoch)
        yield ShardCommitted(
            shard_id=shard.shard_id,
            bytes=sum(file.entry.size_bytes for file in files),
            wait_s=clock.wait_s,
            encode_s=clock.encode_s,
            commit_s=time.perf_counter() - begun,
        )

    def _check_epoch(self) -> None:
        lease.check(self._storage, self._job.lease_epoch)

    def _videos(self, sources: Sequence[Source]) -> Generator[PooledVideo | InlineVideo, None, None]:
        decoder = self._job.config.decoder
        if self._pool is not None:
            yield from self._pool.videos([source.uri for source in sources], decoder=decoder)
        else:
            yield from (InlineVideo(self._job.opener, source.uri, decoder=decoder) for source in sources)

    def _run_video(
        self,
        writer: ShardWriter,
        source: Source,
        video: PooledVideo | InlineVideo,
        *,
        clock: _Clock,
        spill_dir: Path,
    ) -> Generator[Event, None, None]:
        yield VideoStarted(video_id(source.uri))
        try:
            opened = video.open()
            indexed = yield from self._encode(source, opened, video, clock=clock, spill_dir=spill_dir)
        except NOBODYS_FAULT as error:
            # What a decode actor raised arrives wrapped; the scheduler goes by what it was.
            raise getattr(error, "cause", None) or error from None
        except MediaError as error:
            yield self._failed(writer, source, error)
            return
        except ray.exceptions.RayError as error:
            if not isinstance(error, ray.exceptions.RayTaskError):
                raise  # Ray's own trouble: its shared memory or its disk is full, frames were lost on the way
            yield self._failed(writer, source, _unexpected(source, error.cause))
            return
        except Exception as error:
            log.warning("%s failed unexpectedly", source.uri, exc_info=error)
            yield self._failed(writer, source, _unexpected(source, error))
            return
        with indexed:
            yield self._store(writer, source, opened, indexed)

    def _encode(
        self,
        source: Source,
        opened: Opened,
        video: PooledVideo | InlineVideo,
        *,
        clock: _Clock,
        spill_dir: Path,
    ) -> Generator[Event, None, IndexedVideo]:
        grid = opened.grid
        progress = index_segments(
            clock.timed(video.segments()),
            grid=grid,
            time_base_s=float(opened.info.time_base),
            encoder=self._encoder,
            settings=self._job.settings,
            spill_dir=spill_dir,
        )
        told = time.monotonic()
        while True:
            try:
                cells = next(progress)
            except StopIteration as stop:
                result: IndexedVideo = stop.value
                return result
            if time.monotonic() - told >= EVENT_INTERVAL_S:
                told = time.monotonic()
                covered = grid.cell_times_s[cells] if cells < grid.cells else grid.end_s
                yield CellsDone(
                    video_id(source.uri), tokens=cells * grid.tokens_per_cell, video_s=float(covered)
                )

    def _store(self, writer: ShardWriter, source: Source, opened: Opened, indexed: IndexedVideo) -> VideoDone:
        """Adds an ok or partial video to the shard's files."""
        error = indexed.error or opened.error
        status = "partial" if error else "ok"
        writer.add_video(
            video_row(source, opened, indexed, status=status, error=error),
            cell_columns(indexed),
            indexed.selection.chunks(CHUNK_ROWS),
        )
        if error:
            writer.add_failure(failure_row(source, error, decoder=indexed.decoder))
        return VideoDone(
            video_id(source.uri),
            source.uri,
            status,
            source_bytes=source.size_bytes or 0,
            video_s=indexed.covered_s,
            cells=indexed.cells,
            tokens=indexed.seen,
            kept=indexed.kept,
            error_class=error.kind if error else "",
            error=one_line(str(error)) if error else "",
        )

    def _failed(self, writer: ShardWriter, source: Source, error: MediaError) -> VideoDone:
        """Adds a failed video to the shard's files: its row says why, and the failures table too."""
        writer.add_video(failed_row(source, error))
        writer.add_failure(failure_row(source, error, decoder=None))
        return VideoDone(
            video_id(source.uri),
            source.uri,
            "failed",
            source_bytes=source.size_bytes or 0,
            video_s=0.0,
            cells=0,
            tokens=0,
            kept=0,
            error_class=error.kind,
            error=one_line(str(error)),
        )


def _unexpected(source: Source, cause: BaseException) -> MediaError:
    """An error that nobody foresaw, as the failure of the video that it happened to."""
    kind = type(cause).__name__
    return MediaError(f"{source.uri}: {kind}: {one_line(str(cause))}", stage="encode", kind=kind)


def lookahead(job: IndexJob) -> int:
    """Segments that each decode actor may have decoded and not delivered, from --in-flight-mb; at least 2."""
    frame_bytes = 3 * (job.settings.max_pixels or job.opener.layout.max_pixels)
    segment_bytes = frame_bytes * job.settings.segment_cells * job.settings.cell_frames
    return max(2, (job.config.in_flight_mb << 20) // (job.crew.decoders * segment_bytes))
