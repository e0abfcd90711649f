"""Small archives of rendered clips as real video files, with the truth of what moves where and when.

Scenes are those of `echoprune.scene`, stored the ways that archives are: H.264, variable frame rate, HEVC, VP9,
rotated. Frames are drawn and encoded one by one, so that the length of a clip costs no memory. No sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt

from echoprune.errors import ConfigError
from echoprune.scene import Scene, SynthObject, draw_frame, plan_scene

_TICKS = 90_000  # per second: 24, 25 and 30 fps all fall on whole ticks
_DRIFT_PX = 10.0  # the camera swings this far to either side: under half of a 28-pixel token
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
_X264 = {"crf": "20", "preset": "veryfast", "threads": "1"}
_X265 = {"crf": "22", "preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}
_VP9 = {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "8", "threads": "1"}

ENCODINGS: tuple[Encoding, ...] = (
    Encoding("libx264", ".mp4", 24, options=_X264),
    Encoding("libx264", ".mp4", 30, options=_X264),
    # Without B-frames, as recorders of a varying rate write: MP4 then holds the duration of the last frame exactly.
    Encoding("libx264", ".mp4", 30, vfr=True, options={**_X264, "bf": "0"}),
    Encoding("libx265", ".mp4", 25, options=_X265),
    Encoding("libvpx-vp9", ".webm", 25, options=_VP9),
    Encoding("libx264", ".mov", 25, rotation=90, options=_X264),
)


@dataclass(frozen=True)
class SynthVideo:
    """One rendered file and its truth: `size` is (width, height) upright, `drift_px` 0 if the camera stands still."""

    path: Path
    encoding: Encoding
    size: tuple[int, int]
    duration_s: float
    drift_px: float
    objects: tuple[SynthObject, ...]


def render_archive(
    out_dir: str | Path, *, videos: int, seconds: float, seed: int, size: tuple[int, int] = (320, 240)
) -> list[SynthVideo]:
    """What was rendered: `videos` clips of `seconds` each, as files in `out_dir` (made if missing), in order.

    Encodings go round ENCODINGS (H.264, variable frame rate, HEVC, VP9, rotated); the second clip of every six
    has a drifting camera. `size` is (width, height) in pixels, both even. The same arguments give the same
    scenes and, with the same encoder libraries, the same bytes. Files of the same name are replaced once whole.

    Raises ConfigError for a clip that is too short, or a size that the codecs cannot hold.
    """
    if videos < 1:
        raise ConfigError(f"videos is {videos}; render at least 1")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    rendered = []
    for index in range(videos):
        encoding = ENCODINGS[index % len(ENCODINGS)]
        drift_px = _DRIFT_PX if index % len(ENCODINGS) == 1 else 0.0
        rng = np.random.default_rng([seed, index])
        scene = plan_scene(rng, seconds=seconds, size=size, drift_px=drift_px)
        path = out / f"clip_{index:03d}{encoding.suffix}"
        times = frame_times(rng, seconds=seconds, encoding=encoding)
        write_video(path, scene, times_s=times, encoding=encoding)
        rendered.append(SynthVideo(path, encoding, size, scene.duration_s, drift_px, scene.objects))
    return rendered


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


def write_video(path: Path, scene: Scene, *, times_s: npt.NDArray[np.float64], encoding: Encoding) -> None:
    """Writes `scene` at `times_s` to `path`, frame by frame; the file appears under its name only when complete."""
    unfinished = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    turns = encoding.rotation // 90
    try:
        # bitexact: Matroska would otherwise carry a random id, and no two files would be equal.
        with av.open(str(unfinished), "w", options={"fflags": "+bitexact"}) as container:
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
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _frames(scene: Scene, times_s: npt.NDArray[np.float64], *, turns: int) -> Iterator[av.VideoFrame]:
    ends_s = np.append(times_s[1:], scene.duration_s)
    for time_s, end_s in zip(times_s.tolist(), ends_s.tolist(), strict=True):
        # The player turns the picture by `turns` counter-clockwise, so it is stored turned the other way.
        pixels = np.ascontiguousarray(np.rot90(draw_frame(scene, time_s), -turns))
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = round(time_s * _TICKS), Fraction(1, _TICKS)
        frame.duration = round((end_s - time_s) * _TICKS)
        yield frame
