"""Pictures of a video through decord (package decord2), only where its frames are provably the right ones.

decord counts frames instead of reading their times, and says nothing when it is off: HEVC with open GOPs and
MPEG-TS came out wrong without an error, and so did H.264 with intra refresh. It is used for H.264, VP9 and AV1,
8-bit 4:2:0, in MP4, MOV, Matroska and WebM, when its own list of times and keyframes equals that of the packets.
`skip_frames` is wrong on variable frame rates and never used.

It also patches damaged pictures silently: of 420 copies of six H.264 clips with 1 bit to 400 bytes changed, 321 gave
wrong pictures without an error. So its FFmpeg is listened to (decord_log), and one complaint while a reader lives is
decord's own failure. 25 are left: in 24 the damaged stream is another valid one, and PyAV does not notice either; in
one two pictures changed places (PyAV noticed: it sees the time of each, decord does not tell). Of 12 smeared copies
of a VP9 clip, neither noticed 9. 12 of the 420 go to PyAV though all of their pictures are right.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from echoprune.data import IntArray, VideoInfo
from echoprune.decord_log import listening
from echoprune.errors import MediaError
from echoprune.time_jumps import TIME_JUMP

_log = logging.getLogger(__name__)

# decord decodes ahead for as long as a reader lives: with a consumer slower than the decoder it grew to 2.1 GB at
# 1280x720 and 1.9 GB at 1920x1080 within a minute of video (PyAV: 0.1 and 0.17 GB). A video is therefore read by one
# reader only if all of its frames together fit in this many bytes; otherwise each group of frames gets a new reader
# (0.5 GB at 1280x720), which reads all packets again. "auto" leaves those videos to PyAV: at 1280x720 it is faster
# anyway (531 source frames/s against 428, one thread; at 640x360 1,390 to 1,660 against 1,970). A video of 461 MB took
# 0.09 GB at 2 frames/s, 0.57 GB with every frame wanted.
AHEAD_BYTES = 512 * 2**20

_GROUP_BYTES = 64 * 2**20
_GROUP_FRAMES = 16

# Spins before decord gives up on frames that never come. 64 failed on sound files, 256 never did; its own default
# is 10,240.
_EOF_RETRIES = "2048"


def fits(info: VideoInfo) -> bool:
    """Whether all frames of the video, decoded, fit in the memory that decord may take by decoding ahead."""
    return len(info.pts) * info.width * info.height * 3 <= AHEAD_BYTES


def may_take(info: VideoInfo) -> bool:
    """Whether "auto" tries decord: the video `fits`, and nothing in its packets speaks against it."""
    return fits(info) and not _unfit(info)


def pictures(
    info: VideoInfo, wanted: IntArray, *, threads: int = 1
) -> Iterator[tuple[int, npt.NDArray[np.uint8], int]]:
    """For each of `wanted` (presentation times, strictly ascending, all of `info.pts`): (pts, picture, 0).

    The picture is uint8 (H, W, 3), RGB, native size, upright; the 0 stands for damaged frames. Of a video that
    `fits`, all frames are decoded before the first picture is yielded, wanted or not, so that what comes of it depends
    on the file alone, not on how far decord got ahead. Raises MediaError (stage "decode"): kind "decoder_unfit" where
    decord would not be exact, or cannot open the file; "decode_failed" where it gives up, or its FFmpeg reports an
    error (in a larger video before the damage is shown, by as much as decord got ahead).
    """
    whole = fits(info)
    size = max(1, len(wanted)) if whole else _group(info)
    for begin in range(0, len(wanted), size):
        run = wanted[begin : begin + size]
        kept = _read(info, run, whole=whole, threads=threads)
        for pts in run:
            yield int(pts), kept.popleft(), 0


def _read(info: VideoInfo, wanted: IntArray, *, whole: bool, threads: int) -> deque[npt.NDArray[np.uint8]]:
    """The pictures at `wanted` from a reader of their own; after decoding all frames of the video if `whole`."""
    unfit = _unfit(info)
    if not unfit:
        decord, unfit = _decord()
    if unfit:
        raise _not_exact(info, unfit)
    index = np.searchsorted(info.pts, wanted)
    failed = ""
    kept: deque[npt.NDArray[np.uint8]] = deque()
    with listening(getattr(decord._ffi.base, "_LIB", None)) as heard:
        reader, unfit = _reader(decord, info, threads=threads)
        if not unfit:
            unfit = _differs(info, reader) if heard.messages else "what its FFmpeg reports cannot be heard"
        if not unfit:
            steps = np.union1d(index, _last_of_groups(info)) if whole else index
            kept, failed = _decoded(decord, info, reader, steps=steps, index=index)
        # Its threads end with it, and nothing is said after that.
        del reader
    if unfit:
        raise _not_exact(info, unfit)
    if failed or heard.complaint:
        # What decord says depends on how far it got ahead, and a store's bytes must not.
        _log.debug(
            "%s: decord: %s; its FFmpeg: %s", info.uri, failed or "done", heard.complaint or "no errors"
        )
        begin_s, end_s = (float((int(pts) - int(info.pts[0])) * info.time_base) for pts in wanted[[0, -1]])
        message = (
            f"{info.uri}: decord cannot decode what is shown from {begin_s:.3f} to {end_s:.3f} s, or only by patching "
            "pictures; use --decoder auto"
        )
        raise MediaError(message, stage="decode", kind="decode_failed")
    return kept


def _decoded(
    decord: Any, info: VideoInfo, reader: Any, *, steps: IntArray, index: IntArray
) -> tuple[deque[npt.NDArray[np.uint8]], str]:
    """Walks through the frames numbered `steps`; (the pictures of those in `index`, why it stopped early or "")."""
    kept: deque[npt.NDArray[np.uint8]] = deque()
    size = _group(info)
    for begin in range(0, len(steps), size):
        step = steps[begin : begin + size]
        try:
            pixels = reader.get_batch(step.tolist()).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
            return kept, _first_line(error)
        if pixels.shape[1:3] != (info.height, info.width):
            return kept, f"frames of {pixels.shape[1:3]} pixels instead of {(info.height, info.width)}"
        # Copies, so that the frames between them go with their group.
        kept.extend(picture.copy() for picture in pixels[np.isin(step, index)])
    return kept, ""


def _last_of_groups(info: VideoInfo) -> IntArray:
    """Numbers of the last frame before each clean cut point and of the last one of all.

    decord seeks when the next frame asked for is not in the group of pictures that it is in. Asked for these too it
    never does, and decodes every frame.
    """
    return np.append(np.searchsorted(info.pts, info.cut_pts[1:]) - 1, len(info.pts) - 1)


def _group(info: VideoInfo) -> int:
    """How many frames to take from decord at a time."""
    return max(1, min(_GROUP_FRAMES, _GROUP_BYTES // (info.width * info.height * 3)))


def _not_exact(info: VideoInfo, reason: str) -> MediaError:
    message = f"{info.uri}: decord is not exact here ({reason}); use --decoder auto or pyav"
    return MediaError(message, stage="decode", kind="decoder_unfit")


def _unfit(info: VideoInfo) -> str:
    """Why decord is not to be trusted with this video, from the packets alone; "" if it is."""
    checks = (
        (info.container in {"mov", "matroska"}, f"container {info.container}"),
        (info.codec in {"h264", "vp9", "av1"}, f"codec {info.codec}"),
        (info.pix_fmt in {"yuv420p", "yuvj420p"}, f"pixel format {info.pix_fmt}"),
        # It turns pictures itself, and fails where the new width is no multiple of 64 (96 x 128).
        (info.rotation == 0, f"picture turned by {info.rotation} degrees"),
        # Its colours at the border of odd sizes differ from those of PyAV, and so would the store's bytes.
        (info.width % 2 == info.height % 2 == 0, f"odd size {info.width}x{info.height}"),
        # It ends the process when it opens a file with a jump of years.
        (not info.incomplete.startswith(TIME_JUMP), "its time stamps jump"),
        (len(info.cut_pts) > 0 and info.cut_pts[0] == info.pts[0], "it does not start with a clean keyframe"),
    )
    return next((reason for good, reason in checks if not good), "")


def _differs(info: VideoInfo, reader: Any) -> str:
    """How decord's list of frames differs from that of the packets; "" if it does not."""
    if len(reader) != len(info.pts):
        return f"it sees {len(reader)} frames of {len(info.pts)}"
    keys = np.asarray(reader.get_key_indices(), np.int64)
    if not np.array_equal(info.pts[keys], info.cut_pts):
        return "some keyframes are no clean cut points"
    # decord counts from 0 in float32: 1 ms at three hours. Frames a quarter of a gap away would be others.
    times_s = reader.get_frame_timestamp(list(range(len(reader))))[:, 0].astype(np.float64)
    shown_s = (info.pts - info.pts[0]) * float(info.time_base)
    gap_s = float(np.diff(shown_s).min()) if len(shown_s) > 1 else 1.0
    if not np.all(np.abs(times_s - times_s[0] - shown_s) < gap_s / 4):
        return "its times differ from those of the packets"
    return ""


def _reader(decord: Any, info: VideoInfo, *, threads: int) -> tuple[Any, str]:
    """(a reader, "") or (None, why there is none)."""
    try:
        # Any frame that decord replaced by a neighbour is one too many: a threshold below one frame.
        return decord.VideoReader(info.path or info.uri, num_threads=threads, fault_tol=1e-9), ""
    # Names that are no UTF-8 cannot be handed to it.
    except (decord.DECORDError, RuntimeError, AssertionError, UnicodeEncodeError) as error:
        return None, f"decord cannot open it: {_first_line(error)}"


def _decord() -> tuple[Any, str]:
    """(the package, "") or (None, why it cannot be used)."""
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", _EOF_RETRIES)
    try:
        import decord  # noqa: PLC0415 - loads a second FFmpeg, only when used
    except (ImportError, OSError) as error:
        return None, f"decord cannot be imported: {_first_line(error)}"
    decord.logging.set_level(decord.logging.QUIET)
    return decord, ""


def _first_line(error: Exception) -> str:
    # Without the time and source line that each of decord's checks puts in front.
    lines = re.sub(r"\[[\d:]+\] \S+?:\d+: ?", "", str(error)).strip().splitlines()
    return (lines or [type(error).__name__])[0][:200]
