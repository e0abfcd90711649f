"""One decode process: opens videos and delivers their segments when asked. Holds no model.

It lives in a process of its own so that a decoder that hangs, crashes or swells can be killed without the encoder. It may
run on another node than its encoder: then it watches its own memory, and looks whether it has the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray
import torch

from echoprune.data import Frames, VideoInfo
from echoprune.decode import decode
from echoprune.errors import MediaError
from echoprune.models.encoder import FrameLayout
from echoprune.opening import Opened, open_source
from echoprune.s3_objects import S3Counts, s3_counts
from echoprune.s3_options import S3Options
from echoprune.sample import Sampling
from echoprune.sources import Source
from echoprune.staging import StagedVideos, StagingFolder
from pipelines.memory_watch import MemoryWatch

__all__ = ["NOT_HERE", "Away", "DecodeActor", "Opened", "Seen", "VideoOpener"]

# Kind of the error of a process that does not see the file that its encoder sees. No video fails for it.
NOT_HERE = "not_here"
# Steps of niceness: an encoder that wants the same core is given 2.4 times as much of it. 15 of these beside one on 16 cores took
# it half as long again to start a segment's kernels, and 5 % longer where they gave way.
_GIVES_WAY = 4


@dataclass(frozen=True)
class VideoOpener:
    """What a process needs to fix the time grid of a video: frame sizes and sampling, but no weights."""

    layout: FrameLayout
    sampling: Sampling
    segment_cells: int

    def open(self, uri: str, path: str = "") -> Opened:
        """The scanned video, whose file lies at `path` if not at `uri`; raises MediaError (stage "probe")."""
        return open_source(uri, self.sampling, sizes=self.layout, segment_cells=self.segment_cells, path=path)


@dataclass(frozen=True)
class Away:
    """What a process needs beside that on another node than its encoder's.

    `memory_bytes`: private memory above which it ends itself. The rest: how it fetches videos from S3, and the disk that
    one may take.
    """

    memory_bytes: int
    s3: S3Options = field(default_factory=S3Options)
    cache_dir: str = ""
    cache_bytes: int = 1 << 62


@dataclass(frozen=True)
class Seen:
    """A video as the encoder's node has it: the size of its file there, -1 if it is gone, and where it was fetched from."""

    size_bytes: int
    source: Source | None = None


@dataclass
class _Itself:
    """The process that runs this, as a MemoryWatch takes it."""

    pid: int = field(default_factory=os.getpid)
    home: bool = True
    swollen: bool = False


@dataclass
class DecodeActor:
    """Answers `open`, then `begin` of a span of cells, then one `segment` at a time, in the order of the calls.

    `away`: None on the encoder's own node.
    """

    opener: VideoOpener
    away: Away | None = None
    _spans: dict[int, Iterator[Frames]] = field(default_factory=dict)
    _seen: dict[int, Seen] = field(default_factory=dict)
    _folder: StagingFolder | None = None
    _fetched: tuple[str, StagedVideos] | None = None
    _told: S3Counts = field(default_factory=s3_counts)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # Ray counts one core for this process
        if self.away is not None:
            MemoryWatch(self.away.memory_bytes).watched = [_Itself()]

    def ready(self) -> tuple[int, str]:
        """The process id, and that of its node; answers when the process has started, and from then on gives way to others."""
        os.nice(_GIVES_WAY)
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def open(self, uri: str, path: str = "") -> Opened:
        """The scanned video, whose file lies at `path` if not at `uri`; raises MediaError."""
        return self.opener.open(uri, path)

    def see(self, span: int, seen: Seen) -> None:
        """Told to a process away before `begin`: how the file of that span is seen from the encoder's node."""
        self._seen[span] = seen

    def begin(self, span: int, opened: Opened, first_cell: int, stop_cell: int, decoder: str) -> None:
        """Makes `span` ready to deliver the segments of cells [first_cell, stop_cell)."""
        seen = self._seen.pop(span, None)
        self._spans[span] = self._segments(opened, (first_cell, stop_cell), decoder, seen)

    def _segments(
        self, opened: Opened, cells: tuple[int, int], decoder: str, seen: Seen | None
    ) -> Iterator[Frames]:
        yield from decode(
            opened.info if seen is None else self._as_seen(opened.info, seen),
            opened.grid,
            decoder=decoder,
            first_cell=cells[0],
            stop_cell=cells[1],
            resample=self.opener.layout.resample,
        )

    def segment(self, span: int) -> Frames:
        """The next segment of `span`; raises the span's MediaError."""
        return next(self._spans[span])

    def end(self, span: int) -> S3Counts:
        """Forgets a span, read to its end or not; what this process has asked of S3 since it last said so."""
        self._spans.pop(span, None)
        before, self._told = self._told, s3_counts()
        return self._told - before

    def _as_seen(self, info: VideoInfo, seen: Seen) -> VideoInfo:
        """`info` with the file's place on this node. Raises MediaError of stage "probe", such as NOT_HERE."""
        if seen.source is not None:
            return replace(info, path=self._fetch(seen.source))
        try:
            size = Path(info.path or info.uri).stat().st_size
        except OSError as error:
            size, why = -1, error.strerror or str(error)
        else:
            why = f"{size} bytes there, {seen.size_bytes} where the encoder is"
        if size != seen.size_bytes >= 0:
            raise MediaError(f"{info.uri}: {why}", stage="probe", kind=NOT_HERE)
        return info

    def _fetch(self, source: Source) -> str:
        """Where the video lies once it is fetched. The one before goes: its spans have been asked for and answered."""
        assert self.away is not None
        if self._fetched is None or self._fetched[0] != source.uri:
            if self._folder is None:
                self._folder = StagingFolder(
                    self.away.cache_dir, most_bytes=self.away.cache_bytes, s3=self.away.s3
                )
            if self._fetched is not None:
                self._fetched[1].close()
            self._fetched = (source.uri, StagedVideos(self._folder, [source]))
        return self._fetched[1].path(source.uri)
