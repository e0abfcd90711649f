"""Opening a file of texts, such as a manifest or questions, wherever it lies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from echoprune.s3_options import S3Options, current_s3, is_s3, s3_place


def open_text(path: str, *, s3: S3Options | None = None) -> BinaryIO:
    """A local file, or an object in S3 fetched whole into memory, as a file of bytes. Raises OSError."""
    if not is_s3(path):
        return Path(path).open("rb")
    # Loads s3fs, which takes half a second.
    from echoprune.s3_client import s3_client  # noqa: PLC0415

    return io.BytesIO(s3_client(s3 or current_s3()).read(s3_place(path)).data)
