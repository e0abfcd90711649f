"""Opening a video file, and its decoded frames in order. The one place that knows what a uri is: a path, or s3://.

Both the scan and PyAV decoding go through here, so that they agree on which packets count and what time a frame has.
"""

from __future__ import annotations

import errno
import io
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import av.error

from echoprune.backoff import OutOfPatienceError
from echoprune.errors import MediaError, StoreError, StoreUnavailableError
from echoprune.needed import NOTHING
from echoprune.s3_options import current_s3, is_s3, s3_place

# What FFmpeg opens as well: text (shown as on a terminal), and lists that pull in other files.
_NO_VIDEO_FORMATS = frozenset({"tty", "concat", "hls", "dash", "imf", "sdp"})

# FFmpeg looks at up to 5 MB of a file whose header does not tell.
_AHEAD_BYTES = 1 << 20

# How sources.py shows bytes of a file name that are not UTF-8.
_ESCAPED = re.compile(r"\\x[89a-f][0-9a-f]")


def open_video(uri: str, *, path: str = "", stage: str = "probe") -> Any:
    """An open PyAV input container of the file at `uri`, or at `path` if it lies there; the caller closes it (context manager).

    An s3:// uri without a path is read over the network, bit by bit: good for headers, not for decoding. Raises MediaError
    of kind "missing", "not_a_file", "empty", "unreadable", "source_unreachable" or "not_a_video".
    """
    file: Any = path or uri
    try:
        if is_s3(file):
            file, size = _remote(uri)
        else:
            status = Path(file).stat()
            if not stat.S_ISREG(status.st_mode):
                what = "is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file"
                raise MediaError(f"{uri}: {what}; give a video file", stage=stage, kind="not_a_file")
            # Names may hold a colon, and playlists may point elsewhere: only this file is opened.
            file, size = f"file:{file}", status.st_size
        if size == 0:
            raise MediaError(f"{uri}: 0 bytes; copy the file again", stage=stage, kind="empty")
        container = av.open(file, options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (OutOfPatienceError, StoreUnavailableError) as error:
        raise MediaError(
            f"{uri}: {error}; retry when it can be reached", stage=stage, kind="source_unreachable"
        ) from None
    except StoreError as error:
        raise MediaError(f"{uri}: {error}", stage=stage, kind="unreadable") from None
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


def _remote(uri: str) -> tuple[io.RawIOBase, int]:
    """An object in S3 as a file of bytes, and its size."""
    # Loads s3fs, which takes half a second.
    from echoprune.object_files import ObjectReader  # noqa: PLC0415
    from echoprune.s3_client import s3_client  # noqa: PLC0415

    reader = ObjectReader(s3_client(current_s3()), s3_place(uri), ahead_bytes=_AHEAD_BYTES)
    return reader, reader.fill().size_bytes


def shown_pts(frame: Any) -> int | None:
    """Presentation time of a decoded frame in ticks of its stream; its decode time where it has none; or None."""
    pts = frame.pts if frame.pts is not None else frame.dts
    return None if pts is None else int(pts)


def whole_frames(
    container: Any,
    stream: Any,
    *,
    refused: Callable[[Any, av.error.FFmpegError], None] | None = None,
    needed: Callable[[Any], str] | None = None,
) -> Iterator[Any]:
    """Decoded frames in the order shown. Packets that the container itself calls damaged are left out.

    A file that broke off ends in half a packet: the decoder would fail on it and withhold the frames before.
    `refused`: called with each packet that the decoder finds invalid, which is then left out too; without it the first
    one raises. `needed`: what to decode of a packet (needed.py), all where it is None. Before packets are left out the frames
    that wait for their turn come, and after them decoding begins anew, as after a seek. Raises FFmpegError where reading
    stops early.
    """
    context = stream.codec_context
    begun = left_out = False
    for packet in packets_of(container, stream):
        if packet.is_corrupt:
            continue
        if needed is not None:
            skip = needed(packet)
            if skip == NOTHING:
                if begun:
                    yield from context.decode(None)
                begun, left_out = False, True
                continue
            if left_out:
                # HEVC numbers pictures from the last one decoded: without this a later run referred to pictures of this one.
                context.flush_buffers()
                left_out = False
            context.skip_frame = skip
            begun = True
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            # The flush at the end fails over and over: nothing comes after it.
            if refused is None or packet.size == 0:
                raise
            refused(packet, error)
            continue
        yield from frames


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
