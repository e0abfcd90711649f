"""Pictures of a video through PyAV: sequential, matched by presentation time. The decoder that is right everywhere.

Decodes from the start, or from a clean cut point in containers with a sound index (MP4, MOV, Matroska, WebM).
Seeking in MPEG-TS overshoots (14 of 14 frames wrong when measured), so others are never sought in.
"""

from __future__ import annotations

from collections.abc import Iterator

import av.error
import numpy as np
import numpy.typing as npt

from echoprune.container import open_video, reason_of, shown_pts, whole_frames
from echoprune.data import IntArray, VideoInfo
from echoprune.errors import MediaError

SEEKABLE = frozenset({"mov", "matroska"})

# A seek flushes the decoder and refills its reorder buffer, about as much work as a few frames; below this many
# frames to skip, decoding on is as fast.
_SEEK_OVER_FRAMES = 48


class _CutMissedError(Exception):
    """The container did not go where it was asked to; decode from the start instead."""


def pictures(
    info: VideoInfo, wanted: IntArray, *, threads: int = 1
) -> Iterator[tuple[int, npt.NDArray[np.uint8], int]]:
    """For each of `wanted` (presentation times, strictly ascending, all of `info.pts`): (pts, picture, damaged).

    The picture is uint8 (H, W, 3), RGB, native size, upright. `damaged`: 1 if it, or any frame since the clean cut
    point before it, was patched by the decoder after errors, else 0; so it does not depend on where decoding began.
    Raises MediaError (stage "decode") at the first time
    whose frame does not come, or does not decode; everything before it has been yielded.
    """
    for cut, run in _runs(info, wanted):
        done = 0
        if cut is not None:
            try:
                for picture in _from(info, run, cut=cut, threads=threads):
                    done += 1
                    yield picture
            except _CutMissedError:
                pass
        if done < len(run):
            yield from _from(info, run[done:], cut=None, threads=threads)


def lead_frames(info: VideoInfo, pts: int) -> int:
    """Frames to decode before the one at `pts` when decoding starts at the last clean cut point."""
    at = int(np.searchsorted(info.pts, pts))
    cut = _cut_before(info, pts)
    return at if cut is None else at - int(np.searchsorted(info.pts, cut))


def _cut_before(info: VideoInfo, pts: int) -> int | None:
    at = int(np.searchsorted(info.cut_pts, pts, side="right")) - 1
    # Cut point 0 is the start: opening the file is the same and needs no seek.
    return int(info.cut_pts[at]) if at > 0 and info.container in SEEKABLE else None


def _runs(info: VideoInfo, wanted: IntArray) -> Iterator[tuple[int | None, IntArray]]:
    """The wanted times cut where skipping ahead to a clean cut point is cheaper than decoding on."""
    begin = 0
    cut = None
    at = np.searchsorted(info.pts, wanted)
    position = -1  # index of the last frame decoded
    for i, pts in enumerate(wanted):
        ahead = _cut_before(info, int(pts))
        if ahead is not None and int(np.searchsorted(info.pts, ahead)) - position > _SEEK_OVER_FRAMES:
            if i > begin:
                yield cut, wanted[begin:i]
            begin, cut = i, ahead
        position = int(at[i])
    if begin < len(wanted):
        yield cut, wanted[begin:]


def _from(
    info: VideoInfo, wanted: IntArray, *, cut: int | None, threads: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8], int]]:
    done, damaged = 0, False
    clean = frozenset(info.cut_pts.tolist())
    try:
        with open_video(info.uri, stage="decode") as container:
            stream = container.streams[info.stream_index]
            stream.codec_context.thread_count = threads
            if threads > 1:
                stream.codec_context.thread_type = "AUTO"
            if cut is not None:
                container.seek(cut, stream=stream)
            for frame in whole_frames(container, stream):
                pts = shown_pts(frame)
                damaged = bool(frame.is_corrupt) or (damaged and pts not in clean)
                if pts is None or pts < wanted[done]:
                    continue
                if pts > wanted[done]:
                    break
                pixels = frame.to_ndarray(format="rgb24")
                yield pts, np.rot90(pixels, info.rotation // 90), int(damaged)
                done += 1
                if done == len(wanted):
                    return
        reason = "the decoder gave no frame for this time"
    except av.error.FFmpegError as error:
        reason = reason_of(error)
    if cut is not None and done == 0:
        raise _CutMissedError
    reached_s = float((int(wanted[done]) - int(info.pts[0])) * info.time_base)
    message = (
        f"{info.uri}: decoding stopped at {reached_s:.3f} s of {info.duration_s:.3f} s ({reason}); "
        "what comes before is good, copy or convert the file again for the rest"
    )
    raise MediaError(message, stage="decode", kind="decode_failed")
