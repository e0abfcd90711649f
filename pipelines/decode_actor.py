"""One decode process: opens videos and delivers their segments when asked. Holds no model.

It lives in a process of its own so that a decoder that hangs, crashes or swells can be killed without the encoder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from echoprune.data import Frames
from echoprune.decode import decode
from echoprune.models.encoder import FrameLayout
from echoprune.opening import Opened, open_source
from echoprune.sample import Sampling

__all__ = ["DecodeActor", "Opened", "VideoOpener"]


@dataclass(frozen=True)
class VideoOpener:
    """What a process needs to fix the time grid of a video: frame sizes and sampling, but no weights."""

    layout: FrameLayout
    sampling: Sampling
    segment_cells: int

    def open(self, uri: str) -> Opened:
        """The scanned video; raises MediaError (stage "probe")."""
        return open_source(uri, self.sampling, sizes=self.layout, segment_cells=self.segment_cells)


@dataclass
class DecodeActor:
    """Answers `open`, then `begin` of a span of cells, then one `segment` at a time, in the order of the calls."""

    opener: VideoOpener
    _spans: dict[int, Iterator[Frames]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # Ray counts one core for this process

    def ready(self) -> int:
        """The process id; answers when the process has started."""
        return os.getpid()

    def open(self, uri: str) -> Opened:
        """The scanned video; raises MediaError."""
        return self.opener.open(uri)

    def begin(self, span: int, opened: Opened, first_cell: int, stop_cell: int, decoder: str) -> None:
        """Makes `span` ready to deliver the segments of cells [first_cell, stop_cell)."""
        self._spans[span] = decode(
            opened.info,
            opened.grid,
            decoder=decoder,
            first_cell=first_cell,
            stop_cell=stop_cell,
            resample=self.opener.layout.resample,
        )

    def segment(self, span: int) -> Frames:
        """The next segment of `span`; raises the span's MediaError."""
        return next(self._spans[span])

    def end(self, span: int) -> None:
        """Forgets a span, read to its end or not."""
        self._spans.pop(span, None)
