"""Which questions of a file an evaluation can score, and of which videos."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from echoprune.errors import ConfigError
from echoprune.evaluation_folder import EVENT_COLUMNS
from echoprune.question import Question
from echoprune.questions import QuestionFile
from echoprune.sources import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorable:
    """The questions that can be scored, those about one video together; the label of each; uris of their videos."""

    questions: tuple[Question, ...]
    labels: dict[str, str | None]
    videos: tuple[str, ...]


def scorable(file: QuestionFile, sources: Sequence[Source], *, by: str, where: str) -> Scorable:
    """What can be scored of `file`, whose name in messages is `where`, about the videos `sources`, labelled by the column `by`.

    Raises ConfigError for a row that is no question, times of events that are no numbers, a video that is not among
    `sources`, and where no question has an answer or a label.
    """
    bad = [question for question in file.questions if question.error_class]
    if bad:
        raise ConfigError(
            f"{where}: rows that are no questions: {len(bad)}, such as {bad[0].error}: mend them"
        )
    for name in EVENT_COLUMNS:
        kind = file.extra.get(name, pa.float64())
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise ConfigError(f"column {name} of {where} is {kind}: give seconds from the first frame")
    scored = [question for question in file.questions if question.answer is not None]
    if not scored:
        raise ConfigError(f"none of the {where} has an `answer`: without one nothing can be scored")
    if len(scored) < len(file.questions):
        log.warning("%d questions without an answer are left out", len(file.questions) - len(scored))
    if by != "kind" and by not in file.extra:
        raise ConfigError(f"--by is {by!r}: give kind or a further column of {where}")
    labels = {each.question_id: each.kind if by == "kind" else _label(each.extra.get(by)) for each in scored}
    if not any(labels.values()):
        raise ConfigError(f"none of the {where} has a `{by}`: add it, or give another --by")
    uris = _uris(scored, sources, where=where)
    if unasked := len(sources) - len(set(uris)):
        log.warning("%d videos have no question and are left out", unasked)
    # Stable: the tokens of a video are read once for all its questions.
    order = sorted(range(len(scored)), key=lambda index: uris[index])
    return Scorable(tuple(scored[index] for index in order), labels, tuple(sorted(set(uris))))


def _label(value: object) -> str | None:
    return None if value is None else str(value)


def _uris(questions: Sequence[Question], sources: Sequence[Source], *, where: str) -> list[str]:
    """The uri of the video of each question, named as a store takes it. Raises ConfigError for a video that is not among them."""
    exact: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for source in sources:
        exact[source.uri] = exact[source.video_id] = source.uri
        names.setdefault(Path(source.uri).name, []).append(source.uri)
    found = []
    for question in questions:
        video = question.video
        path = os.path.abspath(video) if os.sep in video and "://" not in video else video  # noqa: PTH100  (as sources.py does)
        same_name = names.get(video, [])
        if video in exact or path in exact:
            found.append(exact.get(video) or exact[path])
        elif len(same_name) == 1:
            found.append(same_name[0])
        else:
            raise ConfigError(
                f"question {question.question_id} of {where} is about {video!r}, which is the name of {len(same_name)} of "
                f"the {len(sources)} VIDEOS: name each by its id, uri, path or unique file name"
            )
    return found
