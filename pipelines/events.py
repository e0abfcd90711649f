"""What an index worker tells the driver while it works on a shard: small, and never a tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoStarted:
    """From here on the worker's death would be this video's doing."""

    video_id: str


@dataclass(frozen=True)
class CellsDone:
    """Progress inside a video: cells encoded so far, and the seconds of video that they cover."""

    video_id: str
    tokens: int
    video_s: float


@dataclass(frozen=True)
class VideoDone:
    """One video has ended: its row is written to the shard's files, which are not committed yet."""

    video_id: str
    uri: str
    status: str
    source_bytes: int
    video_s: float
    cells: int
    tokens: int
    kept: int
    error_class: str
    error: str


@dataclass(frozen=True)
class ShardCommitted:
    """The shard's receipt is in the store; `*_s` say where the worker's time went."""

    shard_id: str
    bytes: int
    wait_s: float
    encode_s: float
    commit_s: float


Event = VideoStarted | CellsDone | VideoDone | ShardCommitted
