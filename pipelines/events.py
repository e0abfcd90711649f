"""What a worker tells the driver while it works on a shard: small, and never a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from echoprune.s3_objects import S3Counts


@dataclass(frozen=True)
class VideoStarted:
    """From here on the worker's death would be this video's doing, as far as can be told (video_runs.py)."""

    video_id: str


@dataclass(frozen=True)
class CellsDone:
    """Progress inside a video: cells that the encoder was asked for so far, and the seconds of video that they cover.

    `wait_s`, `encode_s`: where the worker's time on this shard has gone so far.
    """

    video_id: str
    tokens: int
    video_s: float
    wait_s: float = 0.0
    encode_s: float = 0.0


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
class ReadyForNext:
    """The worker may be given its next shard while it goes on with this one: decoders have little left to do for this one.

    Told once a shard, before the encoder has nothing to do, by workers that do what follows the encoder beside it. What it
    has in hand stays what it was.
    """


@dataclass(frozen=True)
class QuestionsStarted:
    """From here on the worker's death would be the doing of one of these questions."""

    question_ids: tuple[str, ...]


@dataclass(frozen=True)
class QuestionDone:
    """One question has its answer, which is not committed yet. `tokens`: visual tokens that the model saw."""

    question_id: str
    status: str
    error_class: str
    error: str
    tokens: int
    new_tokens: int


@dataclass(frozen=True)
class ShardCommitted:
    """The shard's receipt is in the store; `*_s` say where the worker's time went, `encode_s` its work proper.

    `commit_s`: what writing and committing the shard took of it beyond another shard's work, that went on meanwhile. `s3`: the
    requests that the worker has made since it last said so, or was given its first shard. `decoders`: decode actors that it has by now.
    """

    shard_id: str
    bytes: int
    wait_s: float
    encode_s: float
    commit_s: float
    s3: S3Counts = field(default_factory=S3Counts)
    decoders: int = 0


Event = VideoStarted | CellsDone | VideoDone | ReadyForNext | QuestionsStarted | QuestionDone | ShardCommitted


def in_hand(event: Event) -> tuple[str, ...] | None:
    """The ids of what a worker that told `event` has in hand from now on; None if that is what it was before."""
    if isinstance(event, VideoStarted):
        return (event.video_id,)
    if isinstance(event, QuestionsStarted):
        return event.question_ids
    return None if isinstance(event, CellsDone | ReadyForNext) else ()
