"""Opening a video file, and its decoded frames in order. The one place that knows what a uri is: a local path.

Both the scan and PyAV decoding go through here, so that they agree on which packets count and what time a frame has.
"""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error

from echoprune.errors import MediaError

# What FFmpeg opens as well: text (shown as on a terminal), and lists that pull in other files.
_NO_VIDEO_FORMATS = frozenset({"tty", "concat", "hls", "dash", "imf", "sdp"})

# How sources.py shows bytes of a file name that are not UTF-8.
_ESCAPED = re.compile(r"\\x[89a-f][0-9a-f]")


def open_video(uri: str, *, stage: str = "probe") -> Any:
    """An open PyAV input container of the file at `uri`; the caller closes it (context manager).

    Raises MediaError of kind "missing", "not_a_file", "empty", "unreadable" or "not_a_video".
    """
    path = Path(uri)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file"
            raise MediaError(f"{uri}: {what}; give a video file", stage=stage, kind="not_a_file")
        if status.st_size == 0:
            raise MediaError(f"{uri}: 0 bytes; copy the file again", stage=stage, kind="empty")
        # Names may hold a colon, and playlists may point elsewhere: only this file is opened.
        container = av.open(f"file:{uri}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        cure = (
            "rename it, the escapes stand for bytes that are not UTF-8"
            if _ESCAPED.search(uri)
            else "check the path"
        )
        raise MediaError(f"{uri}: no such file; {cure}", stage=stage, kind="missing") from None
    except PermissionError:
        raise MediaError(
            f"{uri}: permission denied; make it readable", stage=stage, kind="unreadable"
        ) from None
    except av.error.FFmpegError as error:
        message = f"{uri}: cannot be opened as a video ({reason_of(error)}); copy it again, or leave it out"
        raise MediaError(message, stage=stage, kind="not_a_video") from None
    except OSError as error:
        message = f"{uri}: cannot be read ({error.strerror or error}); check the disk and the path"
        raise MediaError(message, stage=stage, kind="unreadable") from None
    name = str(container.format.name)
    if name in _NO_VIDEO_FORMATS or name.startswith("image2") or name.endswith("_pipe"):
        container.close()
        message = f"{uri}: not a video but {name}; give a video file, or rename it if the name misleads"
        raise MediaError(message, stage=stage, kind="not_a_video")
    return container


def shown_pts(frame: Any) -> int | None:
    """Presentation time of a decoded frame in ticks of its stream; its decode time where it has none; or None."""
    pts = frame.pts if frame.pts is not None else frame.dts
    return None if pts is None else int(pts)


def whole_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames in the order shown. Packets that the container itself calls damaged are left out.

    A file that broke off ends in half a packet: the decoder would fail on it and withhold the frames before.
    """
    for packet in packets_of(container, stream):
        if not packet.is_corrupt:
            yield from packet.decode()


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of one stream in file order, the empty one that flushes the decoder last.

    Raises FFmpegError where reading stops early.
    """
    flushed = False
    try:
        for packet in container.demux(stream):
            flushed = packet.size == 0 and packet.pts is None and packet.dts is None
            yield packet
    except IndexError:
        # A transport stream may add streams half way. PyAV 18 fails on them at the end of the file, while flushing one
        # stream after another: once ours is flushed, nothing of it is missing.
        if not flushed:
            raise av.error.InvalidDataError(
                errno.EINVAL, "the file adds a stream half way, and PyAV cannot read on"
            ) from None


def reason_of(error: av.error.FFmpegError) -> str:
    """What FFmpeg says went wrong, one line."""
    return str(error.strerror or error).splitlines()[0]
