"""What one video is, from its packets: times of the frames shown, clean cut points, size, rotation, damage.

`scan_video` reads every packet once and decodes a single frame. It decodes everything only where packets do not
tell what is shown: no time stamps (AVI with B-frames), interlaced pictures, codecs with hidden packets (VP8).
`probe_header` reads the header alone, for planning. Sample aspect ratio and colour transfer are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition

from echoprune.container import open_video, reason_of, shown_pts, whole_frames
from echoprune.data import IntArray, VideoInfo
from echoprune.demuxer_log import listening
from echoprune.errors import MediaError
from echoprune.packets import Packets, read_packets
from echoprune.time_jumps import MAX_STILL_S, goes_back, last_stands, stands_still

# One packet is one shown picture. Elsewhere a packet may show nothing (VP8 alternate references, MPEG-4 "not
# coded" pictures), so that the frames themselves have to be asked.
_ONE_PICTURE_A_PACKET = frozenset(
    {"h264", "hevc", "vp9", "av1", "mpeg2video", "mjpeg", "ffv1", "prores", "dnxhd"}
)

# Headers round durations, and some count the audio's last packet: half a second less is not damage.
_MISSING_S = 0.5


@dataclass(frozen=True)
class HeaderInfo:
    """What the header claims, unchecked; None where it says nothing.

    `width`, `height`: coded pixels, before rotation. `duration_s` may be that of a longer audio stream.
    """

    duration_s: float | None
    width: int
    height: int
    fps: float | None
    codec: str


@dataclass(frozen=True)
class _Shown:
    """Presented times, clean cut points, and how long the last frame stays (0: unknown), in ticks."""

    pts: IntArray
    cut_pts: IntArray
    last_duration: int
    trouble: str


def scan_video(uri: str, *, path: str = "") -> VideoInfo:
    """The facts of the best video stream of a file, from one pass over its packets.

    Times are those of frames that are shown: packets cut away by edit lists, damaged packets and whatever
    precedes the first keyframe are left out. Equal time stamps count once. `incomplete` says what is missing
    from a file that is readable but shorter than it claims, or whose time stamps jump (time_jumps.py), which is read
    up to there. `path`: where the file lies, if that is not `uri`. Raises MediaError with `stage` "probe".
    """
    with listening() as heard, open_video(uri, path=path) as container:
        stream = _video_stream(container, uri)
        packets = read_packets(container, stream)
        complaint = heard.complaint(str(container.format.name))
        header_end_s = _header_end_s(container, stream)
        index = int(stream.index)
        codec = str(stream.codec_context.codec.canonical_name)
        name = str(container.format.name).split(",")[0]
        time_base = Fraction(stream.time_base)
        rate = stream.average_rate
    frame = _first_frame(uri, path, index)
    by_packets = codec in _ONE_PICTURE_A_PACKET and not frame.interlaced_frame
    if by_packets and bool(packets.timed[packets.shown].all()):
        shown = _shown_by_packets(packets, time_base)
    else:
        shown = _shown_by_decoding(uri, path, index, time_base)
    if len(shown.pts) == 0:
        message = (
            f"{uri}: {len(packets.pts)} video packets, but no frame is shown; record or convert it again"
        )
        raise MediaError(message, stage="probe", kind="no_frames")
    shown = _before_jump(shown, time_base)
    last_duration = shown.last_duration or _frame_ticks(shown.pts, rate, time_base)
    end_pts = int(shown.pts[-1]) + last_duration
    # Counter-clockwise, as np.rot90 turns; a player would do the same.
    rotation = (round(float(frame.rotation) / 90) % 4) * 90
    width, height = (frame.height, frame.width) if rotation in (90, 270) else (frame.width, frame.height)
    return VideoInfo(
        uri=uri,
        stream_index=index,
        container=name,
        codec=codec,
        pix_fmt=str(frame.format.name),
        width=int(width),
        height=int(height),
        rotation=rotation,
        time_base=time_base,
        pts=shown.pts,
        cut_pts=shown.cut_pts,
        end_pts=end_pts,
        # Rounding to a coarse clock (Matroska: 1 ms) makes even spacing differ by one tick.
        vfr=len(shown.pts) > 2 and int(np.ptp(np.diff(shown.pts))) > 1,
        incomplete=shown.trouble
        or _missing(packets, float(end_pts * time_base), header_end_s)
        or (
            f"the file is damaged ({complaint}); pictures may be missing, smeared or late"
            if complaint
            else ""
        ),
        path=path,
        # Packets cut away by an edit list may share a time with one that is shown.
        one_packet_each=by_packets
        and bool(packets.timed.all())
        and len(np.unique(packets.pts)) == len(packets.pts),
    )


def probe_header(uri: str) -> HeaderInfo:
    """What the header of a file claims about its best video stream; nothing is demuxed or decoded.

    Raises MediaError with `stage` "probe".
    """
    with open_video(uri) as container:
        stream = _video_stream(container, uri)
        duration_s = None
        if stream.duration is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = float(Fraction(container.duration, av.time_base))
        return HeaderInfo(
            duration_s=duration_s,
            width=int(stream.width),
            height=int(stream.height),
            fps=None if stream.average_rate is None else float(stream.average_rate),
            codec=str(stream.codec_context.codec.canonical_name),
        )


def _video_stream(container: Any, uri: str) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams})) or "nothing"
        message = f"{uri}: no video stream that can be decoded, only {kinds}; leave it out of the archive"
        raise MediaError(message, stage="probe", kind="no_video_stream")
    if stream.disposition & Disposition.attached_pic:
        message = f"{uri}: no video stream, only an attached cover picture; leave it out of the archive"
        raise MediaError(message, stage="probe", kind="no_video_stream")
    return stream


def _before_jump(shown: _Shown, time_base: Fraction) -> _Shown:
    """What is shown before a picture stands for too long."""
    whole, jump = stands_still(shown.pts, time_base)
    if not jump:
        jump = last_stands(shown.last_duration, time_base)
        return replace(shown, last_duration=0, trouble=jump) if jump else shown
    pts = shown.pts[:whole]
    return _Shown(pts, shown.cut_pts[shown.cut_pts <= pts[-1]], 0, jump)


def _shown_by_packets(packets: Packets, time_base: Fraction) -> _Shown:
    # Pictures after a damaged packet, up to the next fresh start, are patched from what is not there: measured, 6 of
    # 11 were other moments of the clip, unflagged. The frame before stays on screen instead, and `incomplete` says so.
    order = np.arange(len(packets.pts))
    last_damage = np.maximum.accumulate(np.where(packets.damaged, order, -1))
    last_fresh = np.maximum.accumulate(np.where(packets.fresh & ~packets.damaged, order, -1))
    pts, shown = packets.pts, packets.shown & (last_damage <= last_fresh)
    key_at = np.flatnonzero(packets.key & packets.timed)
    if len(key_at):
        # Decoders drop what comes before the first keyframe, in either order (open GOP at a cut). That keyframe
        # may itself be cut away by an edit list, and is decoded all the same.
        shown[: key_at[0]] = False
        shown &= pts >= pts[key_at[0]]
    if not shown.any():
        return _Shown(np.empty(0, np.int64), np.empty(0, np.int64), 0, packets.trouble)
    at = np.flatnonzero(shown)
    forward, jump = goes_back(pts[at], packets.fresh[at], time_base)
    if jump:
        # Only the beginning is a clean cut: seeking may land behind the jump, where times repeat.
        kept = np.unique(pts[at[:forward]])
        return _Shown(kept, kept[:1], 0, jump)
    far = np.iinfo(np.int64)
    timed_low = np.where(packets.timed, pts, far.max)
    timed_high = np.where(packets.timed, pts, far.min)
    later = np.append(np.minimum.accumulate(timed_low[::-1])[::-1][1:], far.max)
    earlier = np.insert(np.maximum.accumulate(timed_high)[:-1], 0, far.min)
    clean = packets.fresh & shown & (later > pts) & (earlier < pts)
    last = int(np.flatnonzero(shown & (pts == pts[shown].max()))[-1])
    return _Shown(np.unique(pts[shown]), np.unique(pts[clean]), int(packets.duration[last]), packets.trouble)


def _shown_by_decoding(uri: str, path: str, index: int, time_base: Fraction) -> _Shown:
    pts: list[int] = []
    last_duration = 0
    trouble = ""
    refused: list[str] = []
    try:
        for frame in _decoded(uri, path, index, refused=lambda _, error: refused.append(reason_of(error))):
            now = shown_pts(frame)
            if now is None:
                continue
            if not pts or now > pts[-1]:
                pts.append(now)
                last_duration = int(frame.duration or 0)
                continue
            _, trouble = goes_back(np.array([pts[-1], now]), np.ones(2, np.bool_), time_base)
            if trouble:
                break
    except av.error.FFmpegError as error:
        trouble = f"decoding stopped after {len(pts)} frames ({reason_of(error)})"
    if refused and not trouble:
        trouble = f"{len(refused)} packets cannot be decoded ({refused[0]})"
    # Only the beginning is known to be clean.
    return _Shown(np.array(pts, np.int64), np.array(pts[:1], np.int64), last_duration, trouble)


def _decoded(
    uri: str, path: str, index: int, *, refused: Callable[[Any, av.error.FFmpegError], None] | None = None
) -> Iterator[Any]:
    with open_video(uri, path=path) as container:
        stream = container.streams[index]
        stream.codec_context.thread_count = 1
        yield from whole_frames(container, stream, refused=refused)


def _first_frame(uri: str, path: str, index: int) -> Any:
    try:
        frame = next(_decoded(uri, path, index), None)
    except av.error.FFmpegError as error:
        message = (
            f"{uri}: the first frame cannot be decoded ({reason_of(error)}); copy or convert the file again"
        )
        raise MediaError(message, stage="probe", kind="decode_failed") from None
    if frame is None:
        message = f"{uri}: the video stream holds no frame; record or convert it again"
        raise MediaError(message, stage="probe", kind="no_frames")
    return frame


def _frame_ticks(pts: IntArray, rate: Fraction | None, time_base: Fraction) -> int:
    if len(pts) > 1:
        return max(1, round(float(np.median(np.diff(pts)))))
    return max(1, round(min(1 / rate, Fraction(MAX_STILL_S)) / time_base)) if rate else 1


def _header_end_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    # Matroska: a tag of each stream, "00:00:10.333000000"; the container's duration may be that of the sound.
    hours, minutes, seconds = (["", *str(stream.metadata.get("DURATION", "")).split(":")] + [""] * 3)[1:4]
    if hours.isdigit() and minutes.isdigit() and seconds.replace(".", "", 1).isdigit():
        return int(hours) * 3600.0 + int(minutes) * 60.0 + float(seconds)
    if container.duration is not None and len(container.streams) == 1:
        return float(Fraction(container.duration, av.time_base))
    return None


def _missing(packets: Packets, end_s: float, header_end_s: float | None) -> str:
    if packets.promised > len(packets.pts):
        return f"the index lists {packets.promised} frames, {len(packets.pts)} are in the file"
    if header_end_s is not None and header_end_s - end_s > _MISSING_S:
        return f"the header promises video until {header_end_s:.3f} s, it ends at {end_s:.3f} s"
    return ""
