"""Clips made with PyAV at test time: each frame carries its index as blocks of black and white, readable back.

`Clip` is the encoder's side of the truth (times, size, codec); `write` makes the file; `read_index` reads the
index back from decoded pixels of any size; `expected` computes which index is on screen at each sampled instant.
"""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

BITS = 8
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """What goes into one file. `times_ms`: presentation times, ascending; the last frame stays for `last_ms`."""

    name: str
    times_ms: tuple[int, ...]
    last_ms: int = 40
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    gop: int = 24
    width: int = 128
    height: int = 96
    pix_fmt: str = "yuv420p"
    rotation: int = 0
    audio_s: float = 0.0
    small_stream_first: bool = False
    muxer: dict[str, str] = field(default_factory=dict)

    @property
    def duration_s(self) -> Fraction:
        return Fraction(self.times_ms[-1] + self.last_ms - self.times_ms[0], 1000)


def even(frames: int, *, step_ms: int = 40, start_ms: int = 0) -> tuple[int, ...]:
    return tuple(start_ms + i * step_ms for i in range(frames))


def uneven(frames: int) -> tuple[int, ...]:
    """Variable frame rate: steps of 20, 40, 100 and 400 ms in turns."""
    steps = (20, 20, 40, 100, 40, 400, 20)
    return tuple(int(t) for t in np.cumsum([0] + [steps[i % len(steps)] for i in range(frames - 1)]))


def draw(index: int, *, width: int, height: int) -> Pixels:
    """The picture of a frame: top third its index in bits, the third below the same inverted, then a texture."""
    picture = np.empty((height, width, 3), np.uint8)
    bits = (index >> np.arange(BITS)) & 1
    columns = np.minimum(np.arange(width) * BITS // width, BITS - 1)
    row = np.where(bits[columns] == 1, 235, 16).astype(np.uint8)[:, None]
    third = height // 3
    picture[:third] = row
    picture[third : 2 * third] = 251 - row
    y, x = np.mgrid[2 * third : height, 0:width]
    picture[2 * third :] = (128 + 60 * np.sin((x + 3 * index) / 9) * np.cos(y / 7))[..., None].astype(
        np.uint8
    )
    return picture


def read_index(picture: Pixels) -> int:
    """The index drawn into a decoded picture of any size; -1 where it cannot be read."""
    height, width = picture.shape[:2]
    index = 0
    for bit in range(BITS):
        left, right = (int((bit + part) * width / BITS) for part in (0.25, 0.75))
        upper = float(picture[int(height * 0.1) : int(height * 0.25), left : right + 1].mean())
        lower = float(picture[int(height * 0.42) : int(height * 0.58), left : right + 1].mean())
        if abs(upper - lower) < 60:
            return -1
        index |= (upper > lower) << bit
    return index


def expected(clip: Clip, *, fps: Fraction = Fraction(2), count: int | None = None) -> list[int]:
    """The indices on screen at every sampled instant: a plain loop over the encoder's own times."""
    step = 1 / fps if count is None else clip.duration_s / count
    shown: list[int] = []
    k = 0
    while k * step < clip.duration_s:
        since = [Fraction(t - clip.times_ms[0], 1000) for t in clip.times_ms]
        shown.append(max(i for i, t in enumerate(since) if t <= k * step))
        k += 1
    return shown


def write(clip: Clip, folder: Path) -> Path:
    """The file of a clip in `folder`.

    Encoded in a thread of its own: as root, SVT-AV1 gives the thread that opens it real-time priority 99 and leaves it
    there, and every process started from it later inherits that and starves the rest of a machine with few cores.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_write, clip, folder).result()


def _write(clip: Clip, folder: Path) -> Path:
    path = folder / clip.name
    with av.open(str(path), "w", options=clip.muxer) as container:
        if clip.small_stream_first:
            small = _video(container, clip, width=64, height=48)
            small.disposition = Disposition(0)
        stream = _video(container, clip, width=clip.width, height=clip.height)
        stream.disposition = Disposition.default
        if clip.rotation:
            stream.set_display_rotation(clip.rotation)
        sound = container.add_stream("aac", rate=8000, layout="mono") if clip.audio_s else None
        for index, time_ms in enumerate(clip.times_ms):
            if clip.small_stream_first:
                _encode(container, small, clip, 255 - index, time_ms, upright=(64, 48))
            size = (clip.width, clip.height)
            if clip.rotation % 180:
                size = size[::-1]
            _encode(container, stream, clip, index, time_ms, upright=size)
        if clip.small_stream_first:
            container.mux(small.encode())
        container.mux(stream.encode())
        if sound is not None:
            _write_sound(container, sound, clip.audio_s)
    return path


def _video(container, clip: Clip, *, width: int, height: int):
    stream = container.add_stream(
        clip.codec, rate=25, options={"g": str(clip.gop), "x265-params": "log-level=none", **clip.options}
    )
    stream.width, stream.height, stream.pix_fmt = width, height, clip.pix_fmt
    stream.codec_context.time_base = Fraction(1, 25 if clip.codec == "mpeg4" else 1000)
    stream.codec_context.thread_count = 1
    return stream


def _encode(container, stream, clip: Clip, index: int, time_ms: int, *, upright: tuple[int, int]) -> None:
    picture = draw(index, width=upright[0], height=upright[1])
    # A display matrix tells the player to turn the stored picture by `rotation`: store it turned the other way.
    stored = np.ascontiguousarray(np.rot90(picture, -clip.rotation // 90))
    frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
    frame.time_base = stream.codec_context.time_base
    frame.pts = int(Fraction(time_ms, 1000) / frame.time_base)
    # A fixed duration would overlap the next frame of an uneven clip.
    frame.duration = int(Fraction(clip.last_ms, 1000) / frame.time_base)
    container.mux(stream.encode(frame))


def _write_sound(container, sound, seconds: float) -> None:
    samples = (3000 * np.sin(np.arange(int(seconds * 8000)) / 5)).astype(np.int16)[None]
    for begin in range(0, samples.shape[1], 1024):
        frame = av.AudioFrame.from_ndarray(samples[:, begin : begin + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, begin, Fraction(1, 8000)
        container.mux(sound.encode(frame))
    container.mux(sound.encode())


def write_sound(path: Path, *, seconds: float = 1.0) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        _write_sound(container, container.add_stream("aac", rate=8000, layout="mono"), seconds)
    return path


def cut(source: Path, target: Path, *, keep: float) -> Path:
    """The first part of a file, as a copy that broke off would leave it."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def damage(source: Path, target: Path, *, at: float, length: int = 400) -> Path:
    """A copy of an MP4 with bytes in the middle of its pictures replaced by noise."""
    data = bytearray(source.read_bytes())
    where = data.find(b"mdat")
    size = struct.unpack(">I", data[where - 4 : where])[0]
    begin = where + 4 + int(size * at)
    data[begin : begin + length] = np.random.default_rng(0).bytes(length)
    target.write_bytes(bytes(data))
    return target


CLIPS = {
    clip.name: clip
    for clip in (
        Clip("cfr.mp4", even(100), options={"bf": "0"}),
        Clip("bframes.mp4", even(100), options={"bf": "3"}),
        Clip("bframes.mkv", even(100), options={"bf": "3"}),
        Clip("vfr.mp4", uneven(90)),
        Clip("vfr.mkv", uneven(90)),
        Clip("late.mp4", even(60, start_ms=5000)),
        Clip("late.mkv", even(60, start_ms=5000)),
        Clip("plain.nut", even(60), options={"bf": "0"}),
        Clip("rotated90.mp4", even(50), rotation=90),
        Clip("rotated180.mp4", even(50), rotation=180),
        Clip("rotated270.mov", even(50), rotation=-90),
        Clip("two_streams.mp4", even(60), small_stream_first=True),
        Clip(
            "open_gop.mp4",
            even(100),
            codec="libx265",
            options={"x265-params": "log-level=none:open-gop=1:keyint=20"},
        ),
        Clip("open_gop_h264.mp4", even(100), options={"x264-params": "open-gop=1:bframes=3", "bf": "3"}),
        Clip("ten_bit.mp4", even(60), pix_fmt="yuv420p10le"),
        Clip("stream.ts", even(100), options={"bf": "2"}),
        Clip("vp9.webm", even(60), codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
        Clip(
            "vp8.webm",
            even(60),
            codec="libvpx",
            options={"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"},
        ),
        Clip("av1.mp4", even(50), codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
        Clip(
            "odd.webm",
            even(50),
            width=131,
            height=97,
            codec="libvpx-vp9",
            options={"deadline": "realtime", "cpu-used": "8"},
        ),
        Clip("odd.mp4", even(50), width=131, height=97, pix_fmt="yuv444p"),
        Clip("refresh.mkv", even(100), options={"x264-params": "intra-refresh=1:bframes=0"}),
        Clip("many_keys.mp4", even(250), gop=12, options={"bf": "2"}),
        Clip("many_keys.mkv", even(250), gop=12, options={"bf": "2"}),
        Clip("one_frame.mp4", even(1)),
        Clip("mpeg4.avi", even(60), codec="mpeg4", options={"b": "2000000"}),
        Clip("mpeg4_bframes.avi", even(60), codec="mpeg4", options={"bf": "2", "b": "2000000"}),
        Clip("long_sound.mp4", even(50), audio_s=4.0),
        Clip("long_sound.mkv", even(50), audio_s=4.0),
        Clip("fragmented.mp4", even(60), muxer={"movflags": "frag_keyframe+empty_moov"}),
        Clip("slow.mp4", even(12, step_ms=1000), last_ms=1000),
        Clip("ünï cöde: 电影 %03d.mp4", even(30)),
    )
}
