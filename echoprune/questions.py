"""Reading a question file: each row becomes a question, a bad one with what is wrong with it.

Formats are in question_rows.py, the types of further columns in extra_columns.py. Whether the video is in a store, and
a template's name is known, is found out when the question is answered.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa

from echoprune.answer_schema import OWN_COLUMNS
from echoprune.cycles import no_search_for_cycles
from echoprune.errors import ConfigError
from echoprune.extra_columns import fitted, json_columns, text_columns, writable
from echoprune.letters import MOST_OPTIONS, answer_letter, letter
from echoprune.question import Question
from echoprune.question_rows import QuestionRow, RowFile, open_rows

REQUIRED = ("question_id", "video", "question")
COLUMNS = (*REQUIRED, "options", "answer", "kind", "start_s", "end_s", "prompt")
# A table of more columns is a list of names that were meant as values.
MOST_EXTRA_COLUMNS = 1000
_TAKEN = {name.lower(): name for name in (*COLUMNS, *OWN_COLUMNS)}


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file in its order, bad rows among them, and the Arrow type of each further column."""

    questions: tuple[Question, ...]
    extra: dict[str, pa.DataType]


class _BadRowError(Exception):
    """One thing wrong with a row: its class and what to do."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


@no_search_for_cycles()
def read_questions(path: str) -> QuestionFile:
    """The questions of a local JSON lines (.jsonl, .ndjson, .json), CSV (.csv) or Parquet (.parquet) file.

    Columns: `question_id`, `video`, `question`, and optionally `options` (a list of 2 to 26 texts, or one text with
    them as a JSON list or separated by |; letters before them, "A. ", are taken off), `answer`, `kind`, `start_s`,
    `end_s`, `prompt`; all others are passed through in `extra`. Null, absent and an empty CSV field are the same.

    A row that is no question has an `error_class`: "bad_json", "bad_csv", "no_id" (its id is then row-<n>),
    "duplicate_id" (all but the first), "no_video", "empty_question" (without a `prompt`), "bad_options", "bad_answer"
    (means none of the options), "bad_range" or "bad_value"; what could be read of it is there.

    Raises ConfigError if the file is missing, of another kind, not UTF-8, broken as a whole, without a question, lacks a
    column, or has a further one that is named as a column of the answers.
    """
    file = open_rows(path)
    if file.columns is not None:
        _check_columns(path, file.columns)
    # Further columns of a JSON file are known when all of it was read; till then they are kept as they were.
    drafts = list(_questions(path, file))
    if not drafts:
        raise ConfigError(f"questions {path} hold no question: write one a line")
    if file.types is not None:
        return QuestionFile(tuple(drafts), {n: t for n, t in file.types.items() if n not in COLUMNS})
    found = (json_columns if file.columns is None else text_columns)(draft.extra for draft in drafts)
    for i, draft in enumerate(drafts):
        if draft.extra:
            drafts[i] = replace(draft, extra=fitted(draft.extra, found))
    names = found if file.columns is None else [name for name in file.columns if name not in COLUMNS]
    extra = {name: found[name].type if name in found else pa.string() for name in names}
    return QuestionFile(tuple(drafts), extra)


def question_key(question: Question) -> str:
    """16 hex digits that follow everything about a question, its further columns and its error too."""
    content = {part.name: getattr(question, part.name) for part in fields(question)}
    content["extra"] = dict(question.extra)
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_columns(path: str, columns: Sequence[str]) -> None:
    shown = ", ".join(columns[:30]) + (", ..." if len(columns) > 30 else "")
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ConfigError(f"questions {path} have the columns {shown}: add {', '.join(missing)}")
    extra = [name for name in columns if name not in COLUMNS]
    if len(set(columns)) < len(columns) or "" in columns:
        raise ConfigError(f"questions {path} have the columns {shown}: give each a name of its own")
    # Without regard to case, as SQL reads names; and "Answer" would else be lost as something else than the answer.
    if taken := [name for name in extra if name.lower() in _TAKEN]:
        meant = _TAKEN[taken[0].lower()]
        cure = f"write {meant}, or rename it" if meant in COLUMNS and taken[0] != meant else "rename it"
        raise ConfigError(
            f"column {taken[0]} of questions {path} is named as one of the answers' own: {cure}"
        )
    if len(extra) > MOST_EXTRA_COLUMNS:
        raise ConfigError(
            f"questions {path} have {len(extra)} further columns, at most {MOST_EXTRA_COLUMNS} are passed through: "
            "put them into one column as a JSON object"
        )


def _questions(path: str, file: RowFile) -> Iterator[Question]:
    seen: set[str] = set()
    names: set[str] = set()
    for row in file.rows:
        question = _question(row, seen)
        seen.add(question.question_id)
        if not names.issuperset(question.extra):
            names.update(question.extra)
            # Said before a million rows with names of their own have been read.
            _check_columns(path, [*REQUIRED, *names])
        yield question


def _question(row: QuestionRow, seen: set[str]) -> Question:
    """The question of one row; of several things that are wrong, the first is said."""
    problems = [_BadRowError(row.error_class, row.error)] if row.error_class else []
    values = row.values
    found: dict[str, Any] = {}
    for name, read in _READERS.items():
        try:
            found[name] = read(values.get(name), name)
        except _BadRowError as problem:
            problems.append(problem)
            found[name] = None
    options = found["options"] or ()
    checks = (
        _check_id(found["question_id"], seen),
        _check_text(found),
        _check_answer(found["answer"], options),
        _check_range(found["start_s"], found["end_s"]),
    )
    # A value that could not be read is None here, and is not also reported as absent.
    problems += [problem for problem in checks if problem is not None]
    first = problems[0] if problems else None
    return Question(
        question_id=found["question_id"] or f"row-{row.number}",
        video=sys.intern(found["video"] or ""),
        question=found["question"] or "",
        options=options,
        answer=found["answer"],
        kind=sys.intern(found["kind"]) if found["kind"] else None,
        start_s=found["start_s"],
        end_s=found["end_s"],
        prompt=found["prompt"],
        # Values of a row that is none may stand under the wrong columns, and would spoil their types.
        extra={}
        if row.error_class
        else {writable(name): value for name, value in values.items() if name not in COLUMNS},
        error_class=first.error_class if first else "",
        error=writable(f"row {row.number}: {first}") if first else "",
    )


def _check_id(question_id: str | None, seen: set[str]) -> _BadRowError | None:
    if question_id is None:
        return _BadRowError("no_id", "question_id is missing or empty; give each question one of its own")
    if question_id in seen:
        return _BadRowError(
            "duplicate_id", f"question_id {_shown(question_id)} was given to a row above; give another"
        )
    return None


def _check_text(found: Mapping[str, Any]) -> _BadRowError | None:
    if found["video"] is None:
        return _BadRowError("no_video", "video is missing or empty; give an id, a uri or a file name")
    if found["question"] is None and found["prompt"] is None:
        return _BadRowError("empty_question", "question is missing or empty; write one, or give a prompt")
    return None


def _check_answer(answer: str | None, options: Sequence[str]) -> _BadRowError | None:
    if answer is None or not options or answer_letter(answer, options):
        return None
    last = letter(len(options) - 1)
    return _BadRowError(
        "bad_answer", f"answer {_shown(answer)} is no option; give a letter A to {last}, or an option's text"
    )


def _check_range(start_s: float | None, end_s: float | None) -> _BadRowError | None:
    if end_s is None or end_s > (start_s or 0.0):
        return None
    return _BadRowError(
        "bad_range", f"end_s {end_s} is not after start_s {start_s or 0.0}; give seconds in order"
    )


def _text(value: object, name: str) -> str | None:
    """Text as it is; a number as its digits; None for an absent, blank or NaN value."""
    if value is None or _is_nan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 7.0: the id 7 of a column with gaps
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _BadRowError("bad_value", f"{name} {_shown(value)} is no text; give text")
    return writable(value) if value.strip() else None


def _label(value: object, name: str) -> str | None:
    text = _text(value, name)
    return None if text is None else text.strip()


def _options(value: object, name: str) -> tuple[str, ...]:
    if value is None or _is_nan(value) or (isinstance(value, str) and not value.strip()):
        return ()
    given = value
    if isinstance(value, str):
        given = _listed(value.strip())
    try:
        texts = [_label(item, name) for item in given] if isinstance(given, (list, tuple)) else []
    except _BadRowError:
        texts = []
    if not 2 <= len(texts) <= MOST_OPTIONS or None in texts:
        wanted = f'give 2 to {MOST_OPTIONS} texts that are not empty, as ["red", "blue"] or red|blue'
        raise _BadRowError("bad_options", f"options {_shown(value)}: {wanted}")
    return _without_letters([text for text in texts if text is not None])


def _listed(text: str) -> object:
    if not (text.startswith("[") and text.endswith("]")):
        return text.split("|")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """Options without "A. ", "(B) ", "C: " before them, if each has its own letter and a text after it."""
    bare = []
    for i, text in enumerate(texts):
        heads = [form.format(letter(i)) for form in ("{}. ", "{}) ", "{}: ", "({}) ")]
        head = next((head for head in heads if text.startswith(head)), None)
        if head is None or not text[len(head) :].strip():
            return tuple(texts)
        bare.append(text[len(head) :].strip())
    return tuple(bare)


def _seconds(value: object, name: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
            raise ValueError
        seconds = float(value)
    except (ValueError, OverflowError):
        raise _BadRowError(
            "bad_value", f"{name} {_shown(value)} is no number; give seconds from the first frame"
        ) from None
    if not math.isfinite(seconds) or seconds < 0:
        raise _BadRowError(
            "bad_range", f"{name} {_shown(value)} is no time; give seconds of at least 0, or leave it out"
        )
    return seconds


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: dict[str, Any] = {
    "question_id": _label,
    "video": _text,
    "question": _text,
    "options": _options,
    "answer": _label,
    "kind": _label,
    "start_s": _seconds,
    "end_s": _seconds,
    "prompt": _text,
}
