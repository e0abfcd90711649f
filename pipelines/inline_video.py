"""A video that the encoder's own process decodes: where a worker has no decode actors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from echoprune.data import Frames
from echoprune.decode import decode
from echoprune.errors import EchoPruneError
from echoprune.staging import StagedVideos
from pipelines.decode_actor import Opened, VideoOpener
from pipelines.rows import unforeseen

log = logging.getLogger(__name__)


class InlineVideo:
    """What a pooled video is to a worker that has no decode actors."""

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


def inline(
    opener: VideoOpener, uris: list[str], *, decoder: str, staged: StagedVideos
) -> Iterator[InlineVideo]:
    """The videos of `uris` in order, each released when the next is asked for."""
    for uri in uris:
        yield InlineVideo(opener, uri, decoder=decoder, staged=staged)
        staged.release(uri)
