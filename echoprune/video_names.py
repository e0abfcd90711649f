"""Which video a person means by a text: its id, its uri or path, or its file name where that is unique."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echoprune.errors import NoSuchVideoError


def file_names(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The file name of each uri: 0.3 s for a million."""
    return pc.replace_substring_regex(uris, pattern=".*/", replacement="")


def find_video(
    table: pa.Table, video: str, *, where: str, names: Callable[[], pa.ChunkedArray] | None = None
) -> int:
    """The row of a table with columns `video_id` and `uri` that `video` means.

    `names`: gives the `file_names` of its uris, where they are at hand. `where`: what holds the table, for messages. Raises
    NoSuchVideoError if there is none, or several of that file name.
    """
    forms = [("video_id", video), ("uri", video)]
    # A bare file name is not taken for a path: which video it means must not depend on the current folder.
    if os.sep in video:
        forms.append(("uri", os.path.abspath(video)))  # noqa: PTH100  (as sources.py does, links not followed)
    for column, value in forms:
        at = pc.index(table[column], pa.scalar(value, pa.string())).as_py()
        if at >= 0:
            return int(at)
    matches = np.flatnonzero(pc.equal(names() if names else file_names(table["uri"]), video).to_numpy())
    if len(matches) == 1:
        return int(matches[0])
    if len(matches):
        uris = table["uri"].take(pa.array(matches[:3])).to_pylist()
        raise NoSuchVideoError(
            f"{len(matches)} videos are named {video}, such as {', '.join(uris)}: give the whole uri",
            several=True,
        )
    example = f", such as {table['video_id'][0]} ({table['uri'][0]})" if len(table) else ""
    raise NoSuchVideoError(
        f"no video {video!r} among the {len(table)} of {where}: "
        f"give an id of 20 hex digits, a uri or a file name{example}"
    )
