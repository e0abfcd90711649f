"""Decode actors with a defect: they fail, take their time, or take memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from echoprune.data import Frames
from pipelines.decode_actor import DecodeActor, Opened


class Decoder(DecodeActor):
    """A decode actor that also tells its process id, so that a test can stop or kill it."""

    def process(self) -> int:
        return os.getpid()


class Broken(Decoder):
    """A decode actor with a defect that shows on the video of 100 frames: `open` or `segment` fails unexpectedly."""

    where = "open"

    def open(self, uri: str, path: str = "") -> Opened:
        if self.where == "open" and Path(uri).name == "100.mp4":
            raise ValueError("a defect\nin two lines")
        return super().open(uri, path)

    def begin(self, span: int, opened: Opened, first_cell: int, stop_cell: int, decoder: str) -> None:
        super().begin(span, opened, first_cell, stop_cell, decoder)
        if self.where == "segment" and Path(opened.info.uri).name == "100.mp4":
            self._spans[span] = iter([])  # so that `segment` raises StopIteration


class BrokenLater(Broken):
    where = "segment"


class Slow(Decoder):
    """A decode actor that takes 4 s to open the video of 100 frames, and as long for the first segment of any other."""

    def open(self, uri: str, path: str = "") -> Opened:
        opened = super().open(uri, path)
        time.sleep(4.0 if Path(uri).name == "100.mp4" else 0.0)
        return opened

    def begin(self, span: int, opened: Opened, first_cell: int, stop_cell: int, decoder: str) -> None:
        super().begin(span, opened, first_cell, stop_cell, decoder)
        if Path(opened.info.uri).name != "100.mp4":
            self._spans[span] = later(self._spans[span])


def later(segments: Iterator[Frames]) -> Iterator[Frames]:
    time.sleep(4.0)
    yield from segments


class Swelling(Decoder):
    """A decode actor that takes more and more memory on the video of 300 frames, with decoders but `spared`."""

    spared = "pyav"

    def begin(self, span: int, opened: Opened, first_cell: int, stop_cell: int, decoder: str) -> None:
        super().begin(span, opened, first_cell, stop_cell, decoder)
        if Path(opened.info.uri).name == "300.mp4" and decoder != self.spared:
            self._spans[span] = swell(self._spans[span])


class SwellingAlways(Swelling):
    spared = ""


def swell(
    segments: Iterator[Frames], *, blocks: int = 200, each_s: float = 0.05, then_s: float = 0.0
) -> Iterator[Frames]:
    """One segment, then so many blocks of 32 MB; whoever delivers them is to be ended until `then_s` after that."""
    yield next(segments)
    taken = []
    for _ in range(blocks):
        taken.append(np.ones(32 << 20, np.uint8))
        time.sleep(each_s)
    time.sleep(then_s)
    raise AssertionError("it was not ended")
