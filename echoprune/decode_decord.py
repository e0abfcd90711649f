"""Pictures of a video through decord (package decord2), only where its frames are provably the right ones.

decord counts frames instead of reading their times, and says nothing when it is off: HEVC with open GOPs and
MPEG-TS came out wrong without an error, and so did H.264 with intra refresh. It is used for H.264, VP9 and AV1,
8-bit 4:2:0, in MP4, MOV, Matroska and WebM, when its own list of times and keyframes equals that of the packets.
`skip_frames` is wrong on variable frame rates and never used.

What remains: it patches damaged pictures silently. Of 60 copies of a clip with 1 or 3 bits flipped, 37 gave smeared
pictures at the right times without a word; PyAV flagged all 37 (`Frames.damaged`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from echoprune.data import IntArray, VideoInfo
from echoprune.errors import MediaError

# decord decodes ahead for as long as a reader lives: with a consumer slower than the decoder it grew to 2.1 GB at
# 1280x720 and 1.9 GB at 1920x1080 within a minute of video (PyAV: 0.1 and 0.17 GB). A reader therefore lives on only
# if all frames of the video together fit in this many bytes; otherwise each group of frames gets a new reader (0.5 GB
# at 1280x720), which reads all packets again. "auto" leaves those videos to PyAV: at 1280x720 it is faster anyway
# (531 source frames/s against 428, one thread; at 640x360 1,429 against 1,775).
AHEAD_BYTES = 512 * 2**20

_GROUP_BYTES = 64 * 2**20
_GROUP_FRAMES = 16

# Spins before decord gives up on frames that never come. 64 failed on sound files, 256 never did; its own default
# is 10,240.
_EOF_RETRIES = "2048"


def fits(info: VideoInfo) -> bool:
    """Whether all frames of the video, decoded, fit in the memory that decord may take by decoding ahead."""
    return len(info.pts) * info.width * info.height * 3 <= AHEAD_BYTES


def open_exact(info: VideoInfo, *, threads: int = 1) -> Any:
    """A decord reader of the same stream and the same frames as `info`.

    Raises MediaError of kind "decoder_unfit" where decord would not be exact, or cannot open the file.
    """
    reason = _unfit(info)
    if not reason:
        reader, reason = _reader(info, threads=threads)
        reason = reason or _differs(info, reader)
    if reason:
        message = f"{info.uri}: decord is not exact here ({reason}); use --decoder auto or pyav"
        raise MediaError(message, stage="decode", kind="decoder_unfit")
    return reader


def pictures(
    info: VideoInfo, wanted: IntArray, *, reader: Any = None, threads: int = 1
) -> Iterator[tuple[int, npt.NDArray[np.uint8], int]]:
    """For each of `wanted` (presentation times, strictly ascending, all of `info.pts`): (pts, picture, 0).

    The picture is uint8 (H, W, 3), RGB, native size, upright. The 0 stands for damaged frames, which decord patches
    without saying so. `reader`: from `open_exact`; made here if None. Raises MediaError (stage "decode").
    """
    decord = _decord()
    bounded = fits(info)
    frame_bytes = info.width * info.height * 3
    group = max(1, min(_GROUP_FRAMES, _GROUP_BYTES // frame_bytes))
    index = np.searchsorted(info.pts, wanted)
    for begin in range(0, len(wanted), group):
        if reader is None:
            reader = open_exact(info, threads=threads)
        reason = ""
        pixels = np.empty((0, 0, 0, 3), np.uint8)
        try:
            pixels = reader.get_batch(index[begin : begin + group].tolist()).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
            reason = _first_line(error)
        if not bounded:
            reader = None
        if not reason and pixels.shape[1:3] != (info.height, info.width):
            reason = f"frames of {pixels.shape[1:3]} pixels instead of {(info.height, info.width)}"
        if reason:
            reached_s = float((int(wanted[begin]) - int(info.pts[0])) * info.time_base)
            message = (
                f"{info.uri}: decord stopped at {reached_s:.3f} s of {info.duration_s:.3f} s ({reason}); "
                "use --decoder auto"
            )
            raise MediaError(message, stage="decode", kind="decode_failed")
        for pts, picture in zip(wanted[begin : begin + group], pixels, strict=True):
            yield int(pts), picture, 0


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


def _reader(info: VideoInfo, *, threads: int) -> tuple[Any, str]:
    try:
        decord = _decord()
    except (ImportError, OSError) as error:
        return None, f"decord cannot be imported: {_first_line(error)}"
    try:
        # Any frame that decord replaced by a neighbour is one too many: a threshold below one frame.
        return decord.VideoReader(info.uri, num_threads=threads, fault_tol=1e-9), ""
    # Names that are no UTF-8 cannot be handed to it.
    except (decord.DECORDError, RuntimeError, AssertionError, UnicodeEncodeError) as error:
        return None, f"decord cannot open it: {_first_line(error)}"


def _decord() -> Any:
    os.environ.setdefault("DECORD_EOF_RETRY_MAX", _EOF_RETRIES)
    import decord  # noqa: PLC0415 - loads a second FFmpeg, only when used

    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _first_line(error: Exception) -> str:
    # Without the time and source line that each of decord's checks puts in front.
    lines = re.sub(r"\[[\d:]+\] \S+?:\d+: ?", "", str(error)).strip().splitlines()
    return (lines or [type(error).__name__])[0][:200]
