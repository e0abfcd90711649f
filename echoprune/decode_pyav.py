"""Pictures of a video through PyAV: sequential, matched by presentation time. The decoder that is right everywhere.

Decodes from the start, or from a clean cut point in containers with a sound index (MP4, MOV, Matroska, WebM), and of what
follows only what the sampled pictures need (needed.py).
Seeking in MPEG-TS overshoots (14 of 14 frames wrong when measured), so others are never sought in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import av.error
import numpy as np
import numpy.typing as npt

from echoprune.container import open_video, reason_of, shown_pts, whole_frames
from echoprune.data import IntArray, VideoInfo
from echoprune.errors import MediaError
from echoprune.needed import Needed, is_among
from echoprune.time_jumps import MAX_STILL_S

SEEKABLE = frozenset({"mov", "matroska"})

# A seek flushes the decoder and refills its reorder buffer, about as much work as a few frames; below this many
# frames to skip, decoding on is as fast.
_SEEK_OVER_FRAMES = 48


class _CutMissedError(Exception):
    """The container did not go where it was asked to, or nothing came from there; decode from the start instead."""

    def __init__(self, *, overshot: bool) -> None:
        super().__init__()
        self.overshot = overshot


@dataclass(frozen=True)
class _Run:
    """Wanted times of which one after another is decoded, from `cut` on, or from the start.

    `sparing`: only what is needed is decoded. `broken`: why it did not go so, in a run that decodes everything instead.
    """

    cut: int | None
    wanted: IntArray
    sparing: bool
    broken: MediaError | None = None


def pictures(
    info: VideoInfo, wanted: IntArray, *, sampled: IntArray | None = None, threads: int = 1
) -> Iterator[tuple[int, npt.NDArray[np.uint8], int]]:
    """For each of `wanted` (presentation times, strictly ascending, all of `info.pts`): (pts, picture, damaged).

    `sampled`: all that is ever wanted of the video, by default `wanted`; what else there is is not decoded unless those need
    it. The picture is uint8 (H, W, 3), RGB, native size, upright. `damaged`: 1 if it, or any frame decoded since the clean cut
    point before it, was patched by the decoder after errors or refused, else 0; so it does not depend on where decoding
    began. In place of a refused frame comes the one before it. Raises MediaError (stage "decode") at the first time for
    which nothing comes, and with several threads at the first refused frame; everything before it has been yielded.
    """
    needed = Needed(info, wanted if sampled is None else sampled)
    todo = deque(_Run(cut, run, info.one_packet_each) for cut, run in _runs(info, wanted))
    while todo:
        run, done = todo.popleft(), 0
        try:
            for picture in _from(
                info, run.wanted, cut=run.cut, needed=needed if run.sparing else None, threads=threads
            ):
                done += 1
                yield picture
        except _CutMissedError as missed:
            if run.broken is not None and not missed.overshot:
                raise run.broken from None
            todo.appendleft(replace(run, cut=None, wanted=run.wanted[done:]))
        except MediaError as error:
            if not run.sparing:
                raise
            # The decoder may have put it out of order for want of others.
            todo.extendleft(reversed(_whole_first(info, run.wanted[done:], error)))


def _whole_first(info: VideoInfo, wanted: IntArray, broken: MediaError) -> list[_Run]:
    """`wanted` with every frame decoded up to the next clean cut point, and from there on what is needed again."""
    end = len(wanted)
    if info.container in SEEKABLE:
        at = int(np.searchsorted(info.cut_pts, wanted[0], side="right"))
        end = int(np.searchsorted(wanted, info.cut_pts[at])) if at < len(info.cut_pts) else end
    first = _Run(_cut_before(info, int(wanted[0])), wanted[:end], sparing=False, broken=broken)
    rest = wanted[end:]
    if len(rest) == 0:
        return [first]
    return [first, _Run(_cut_before(info, int(rest[0])), rest, sparing=True)]


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
    info: VideoInfo,
    wanted: IntArray,
    *,
    cut: int | None,
    needed: Needed | None,
    threads: int,
) -> Iterator[tuple[int, npt.NDArray[np.uint8], int]]:
    done, damaged = 0, False
    refusals = _Refusals(info)
    before: tuple[int, Any] | None = None
    try:
        with open_video(info.uri, path=info.path, stage="decode") as container:
            stream = container.streams[info.stream_index]
            stream.codec_context.thread_count = threads
            if threads > 1:
                stream.codec_context.thread_type = "AUTO"
            if cut is not None:
                container.seek(cut, stream=stream)
            extradata = bytes(stream.codec_context.extradata or b"")
            asked = None if needed is None else needed.begin(extradata)
            # Several threads report a packet while another one is given to them: then the first ends it all.
            refused = refusals.add if threads == 1 else None
            for frame in whole_frames(container, stream, refused=refused, needed=asked):
                pts = shown_pts(frame)
                damaged = bool(frame.is_corrupt) or (
                    damaged and not (pts is not None and is_among(info.cut_pts, pts))
                )
                if pts is None or (before is None and cut is not None and pts < cut):
                    continue
                if before is None and cut is not None and pts > cut:
                    # What comes after a cut point that does not decode depends on what came before.
                    raise _CutMissedError(overshot=True)
                while (
                    done < len(wanted) and wanted[done] < pts and refusals.explain(wanted[done], before, pts)
                ):
                    yield int(wanted[done]), _upright(before, info), 1
                    done += 1
                if done < len(wanted) and wanted[done] == pts:
                    yield pts, _upright((pts, frame), info), int(damaged or refusals.touch(pts))
                    done += 1
                if done == len(wanted):
                    return
                if wanted[done] < pts:
                    break
                before = (pts, frame)
        reason = refusals.reason or "the decoder gave no frame for this time"
    except av.error.FFmpegError as error:
        reason = reason_of(error)
    if cut is not None and done == 0:
        raise _CutMissedError(overshot=False)
    reached_s = float((int(wanted[done]) - int(info.pts[0])) * info.time_base)
    message = (
        f"{info.uri}: decoding stopped at {reached_s:.3f} s of {info.duration_s:.3f} s ({reason}); "
        "what comes before is good, copy or convert the file again for the rest"
    )
    raise MediaError(message, stage="decode", kind="decode_failed")


class _Refusals:
    """Packets that the decoder refused: pictures that never come. Those before them stay on screen, marked as damaged.

    Counted by the run between two clean cut points that they are in, so that it does not depend on where decoding began.
    """

    def __init__(self, info: VideoInfo) -> None:
        self.reason = ""
        self._info = info
        self._runs: set[int] = set()

    def add(self, packet: Any, error: av.error.FFmpegError) -> None:
        """Takes note of a packet."""
        self.reason = reason_of(error)
        time = packet.pts if packet.pts is not None else packet.dts
        self._runs.add(self._run(int(self._info.pts[0]) if time is None else int(time)))

    def touch(self, pts: int) -> bool:
        """Whether a packet of the same run was refused."""
        return bool(self._runs) and self._run(pts) in self._runs

    def explain(self, missing: int, before: tuple[int, Any] | None, after: int) -> bool:
        """Whether the picture `before` may stand for the one at `missing`: not for longer than pictures ever do."""
        if before is None or not self.touch(missing):
            return False
        return (after - before[0]) * self._info.time_base <= MAX_STILL_S

    def _run(self, pts: int) -> int:
        return int(np.searchsorted(self._info.cut_pts, pts, side="right"))


def _upright(shown: tuple[int, Any] | None, info: VideoInfo) -> npt.NDArray[np.uint8]:
    assert shown is not None
    return np.rot90(shown[1].to_ndarray(format="rgb24"), info.rotation // 90)
