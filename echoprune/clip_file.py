"""A scene as a video file, in the ways that archives store them: H.264, variable frame rate, HEVC, VP9, rotated.

Frames are drawn and encoded one by one, so that the length of a clip costs no memory. No sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
import numpy.typing as npt

from echoprune.draw import Painter
from echoprune.scene import Scene

_TICKS = 90_000  # per second: all frame rates below fall on whole ticks
_GOP_S = 2  # keyframes are where decoding may start; two seconds is usual


@dataclass(frozen=True)
class Encoding:
    """How one clip is stored: `codec` is PyAV's encoder name, `rotation` the turn noted in the file, in degrees."""

    codec: str
    suffix: str
    fps: int
    vfr: bool = False
    rotation: Literal[0, 90, 180, 270] = 0
    options: dict[str, str] = field(default_factory=dict)


# Threads are fixed: the encoders' output depends on their number, and with it the bytes of the file.
# At these qualities the strongest grain costs 50 kbit/s at 224x224 and 24 fps, and decoding gives it back smoothed.
# Without mbtree: with B-frames it gave three different files in four runs of 1,500 frames of grain (x264 of PyAV 18).
_X264 = {"crf": "23", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
_X265 = {"crf": "22", "preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}
_VP9 = {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "8", "threads": "1"}

ENCODINGS: tuple[Encoding, ...] = (
    Encoding("libx264", ".mp4", 24, options=_X264),
    Encoding("libx264", ".mp4", 30, options=_X264),
    # Without B-frames, as recorders of a varying rate write: MP4 then holds the duration of the last frame exactly.
    Encoding("libx264", ".mp4", 30, vfr=True, options={**_X264, "bf": "0"}),
    Encoding("libx265", ".mp4", 25, options=_X265),
    Encoding("libvpx-vp9", ".webm", 8, options=_VP9),
    Encoding("libx264", ".mov", 15, rotation=90, options=_X264),
)


def frame_times(rng: np.random.Generator, *, seconds: float, encoding: Encoding) -> npt.NDArray[np.float64]:
    """(F,) float64 seconds, ascending from 0: when each frame is first shown.

    With `vfr` about a third of the frames are left out at random, as screen recorders and phones do.
    """
    times = np.arange(round(seconds * encoding.fps)) / encoding.fps
    if not encoding.vfr:
        return times
    shown = rng.random(len(times)) > 1 / 3
    shown[[0, -1]] = True
    return times[shown]


def write_video(
    path: Path,
    scene: Scene,
    *,
    times_s: npt.NDArray[np.float64],
    encoding: Encoding,
    comment: str = "",
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Writes `scene` at `times_s` to `path`, frame by frame; the file appears under its name only when complete.

    `comment`: a text in the file, for `read_comment`. `on_frame` is called before each frame; what it raises ends the
    writing.
    """
    # Hidden: an index of the folder must not take for a video what a lost machine left behind.
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    turns = encoding.rotation // 90
    try:
        # bitexact: Matroska would otherwise carry a random id, and no two files would be equal.
        with av.open(str(unfinished), "w", options={"fflags": "+bitexact"}) as container:
            if comment:
                container.metadata["comment"] = comment
            stream = container.add_stream(encoding.codec, rate=encoding.fps, options=dict(encoding.options))
            stream.width, stream.height = scene.size if turns % 2 == 0 else scene.size[::-1]
            stream.pix_fmt = "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
            stream.codec_context.gop_size = _GOP_S * encoding.fps
            if encoding.codec == "libx265":
                stream.codec_context.codec_tag = "hvc1"  # players of Apple refuse the default, hev1
            if turns:
                stream.set_display_rotation(encoding.rotation)
            for picture in _frames(scene, times_s, turns=turns):
                on_frame()
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_comment(path: Path) -> str | None:
    """The comment in a video file, "" if it has none; None if there is no video file of that name."""
    try:
        with av.open(str(path)) as container:
            # Matroska writes the names of its tags in capitals.
            found = {name.lower(): text for name, text in container.metadata.items()}
    except (OSError, av.error.FFmpegError):
        return None
    return str(found.get("comment", ""))


def _frames(scene: Scene, times_s: npt.NDArray[np.float64], *, turns: int) -> Iterator[av.VideoFrame]:
    painter = Painter(scene)
    for index, time_s in enumerate(times_s):
        end_s = times_s[index + 1] if index + 1 < len(times_s) else scene.duration_s
        # The player turns the picture by `turns` counter-clockwise, so it is stored turned the other way.
        pixels = np.ascontiguousarray(np.rot90(painter.frame(float(time_s)), -turns))
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = round(time_s * _TICKS), Fraction(1, _TICKS)
        frame.duration = round((end_s - time_s) * _TICKS)
        yield frame
