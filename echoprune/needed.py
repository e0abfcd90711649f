"""Which packets a decoder is given, and which it may pass over, when only some pictures of a video are wanted.

Of the frames between two clean cut points those are decoded that a sampled picture may refer to. Nothing after the last
sampled one is needed, in decode order; and what H.264 marks as referred to by nobody (nal_ref_idc 0) is needed only where it
is sampled. Sampled pictures are the same bit for bit; at 2 frames a second they take 0.6 to 0.9 of the CPU seconds, 0.3 to 0.7
at 1 (docs/speed.md).

In HEVC a picture that its own layer does not refer to may be one that higher layers do, and in VP9 and AV1 there are few: there
the end of a run is all that is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from echoprune.data import IntArray, VideoInfo
from echoprune.h264 import is_referred_to

# Values of FFmpeg's skip_frame.
ALL, REFERENCES, NOTHING = "DEFAULT", "NONREF", "ALL"


class Needed:
    """What to decode of each packet of a video.

    `sampled`: presentation times, ascending, all of `info.pts`: those of the whole video, wherever decoding begins, so that
    what is decoded after a clean cut point does not depend on it.
    """

    def __init__(self, info: VideoInfo, sampled: IntArray) -> None:
        self._sampled = sampled
        self._cuts = info.cut_pts
        self._h264 = info.codec == "h264"
        # Sampled pictures of each run between cut points.
        runs = np.searchsorted(self._cuts, sampled, side="right")
        self._counts = np.bincount(runs, minlength=len(self._cuts) + 1)

    def begin(self, extradata: bytes) -> Callable[[Any], str]:
        """A function of packets, given in decode order from a clean cut point or the start on: ALL, REFERENCES or NOTHING of each.

        `extradata`: the stream's.
        """
        came: Counter[int] = Counter()

        def of(packet: Any) -> str:
            pts = packet.pts
            if pts is None:
                return ALL
            run = int(self._cuts.searchsorted(pts, side="right"))
            if is_among(self._sampled, pts):
                came[run] += 1
                return ALL
            # Before the first cut point nothing says what refers to what.
            if run and came[run] >= self._counts[run]:
                return NOTHING
            if self._h264 and not is_referred_to(bytes(packet), extradata=extradata):
                return REFERENCES
            return ALL

        return of


def is_among(times: IntArray, pts: int) -> bool:
    """Whether `pts` is one of `times`, which ascend."""
    at = int(times.searchsorted(pts))
    return at < len(times) and int(times[at]) == pts
