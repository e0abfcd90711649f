"""What FFmpeg's demuxer complains about while PyAV reads a file: the only sign of some damage.

Matroska and AVI resynchronise after bytes that make no sense and hand on what they find. Of 15 damaged clips that were
stored as whole although their pictures were smeared or those of another moment, the demuxer had complained about 12.
Decoders speak too, of streams that begin between keyframes for one: those are not listened to, frames carry that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av.logging

_MOST_CHARACTERS = 200
_one_listener = threading.Lock()


@dataclass(frozen=True)
class Heard:
    """What has been said since listening began: (level, who, text) each."""

    said: list[tuple[int, str, str]]

    def complaint(self, demuxer: str) -> str:
        """The first error of the demuxer of that name (a container's `format.name`), one line; "" if there was none."""
        said = next((text for _, name, text in self.said if name == demuxer), "")
        # Bytes of the file may be quoted: of a damaged one they may be anything, such as commands to a terminal.
        return "".join(char if char.isprintable() else "?" for char in " ".join(said.split()))[
            :_MOST_CHARACTERS
        ]


@contextmanager
def listening() -> Iterator[Heard]:
    """What this thread's reading of files makes FFmpeg say until the block ends.

    The level is one of the process: others who listen wait for this block to end.
    """
    with _one_listener, av.logging.Capture() as said:
        before = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        # Else a complaint that equals the last one about the file before would not be heard.
        av.logging.set_skip_repeated(False)
        try:
            yield Heard(said)
        finally:
            av.logging.set_level(before[0])
            av.logging.set_skip_repeated(before[1])
