"""Full text over answers and captions: an SQLite FTS5 index of the rows of answer runs, made again when they change.

The index is derived, beside the answers of one run (`search.sqlite`) or in a file of its own for several: removing it
loses nothing. It is made under a temporary name and renamed, never changed in place, so that readers need no lock and of
two processes that make it at once either one's is right. Searching tokens is in search.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoprune.answer_store import AnswerStore
from echoprune.errors import ConfigError, StoreError
from echoprune.storage import store_errors

INDEX_FILE = "search.sqlite"
# Of the text that the index is made from; changes with anything below that would make another.
_VERSION = 1
_COLUMNS = ("text", "question")
# A word of an answer counts as much as two words of its question, which says what was asked, not what was seen.
_WEIGHTS = "1.0, 0.5"
_READ = (
    "question_id",
    "video_id",
    "uri",
    "kind",
    "question",
    "start_s",
    "end_s",
    "status",
    "raw_text",
    "evidence",
)
_SNIPPET_WORDS = 24
# Marks that no indexed text has: control characters are taken out of it.
_OPEN, _CLOSE = "\x02", "\x03"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
# A phrase in quotes, whose end may be missing, or a word up to the next space or quote; * only where it ends one.
_PART = re.compile(r'"(?P<phrase>[^"]*)(?:"|$)(?P<phrase_star>\*)?|(?P<word>[^\s"]+)')


@dataclass(frozen=True)
class TextHit:
    """A row of the answers whose text matches, and the moment it is about; `source`: its folder.

    `start_s`, `end_s`: of a caption its window; of an answer its strongest evidence, else the range that was asked
    about; None where there is neither. `matched`: "text" (what the model said), "question", or both. `snippet`: the
    words around the match, matches in [brackets]. `score`: higher is better, comparable within one search.
    """

    source: str
    question_id: str
    video_id: str | None
    uri: str | None
    start_s: float | None
    end_s: float | None
    matched: tuple[str, ...]
    snippet: str
    score: float


def build_index(answers: Sequence[AnswerStore], path: str | os.PathLike[str]) -> bool:
    """True if the index at `path` was made, False if it was there and the receipts are those it was made from.

    ok rows only: `raw_text`, and the question unless the row is a caption. Raises StoreError where it cannot be
    written or answers are damaged.
    """
    target = Path(path)
    digest = _digest(answers)
    if _stored_digest(target) == digest:
        return False
    with store_errors(f"make the text index {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with store_errors(f"write the text index {target}"):
            _write(temporary, answers, digest)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def search_text(path: str | os.PathLike[str], query: str, *, limit: int) -> list[TextHit]:
    """Rows of the index at `path` that have all words of `query`, best first by bm25; ties by source and question_id.

    Words match whatever their case and accents; "words in quotes" match one after another; a word or phrase that
    ends in * matches words that begin so. Nothing else in `query` has a meaning. Raises ConfigError for a query without
    words or a limit below 1, StoreError where there is no index or it is damaged.
    """
    if limit < 1:
        raise ConfigError(f"limit {limit} is not accepted: give a number of at least 1")
    expression = match_expression(query)
    target = Path(path)
    if not target.is_file():
        raise StoreError(f"{target} is not there: make the text index first")
    marks = ", ".join(f"highlight(moments, {column}, ?1, ?2)" for column in range(len(_COLUMNS)))
    sql = (
        "SELECT source, question_id, video_id, uri, start_s, end_s, "
        f"snippet(moments, -1, '[', ']', '…', {_SNIPPET_WORDS}), bm25(moments, {_WEIGHTS}) AS rank_, {marks} "
        "FROM moments WHERE moments MATCH ?3 ORDER BY rank_, source, question_id LIMIT ?4"
    )
    try:
        with closing(_open(target)) as connection:
            rows = connection.execute(sql, (_OPEN, _CLOSE, expression, limit)).fetchall()
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"text index {target} is damaged ({error}): remove it, it is made again from the answers"
        ) from error
    hits = []
    for source, question_id, video_id, uri, start_s, end_s, snippet, rank, *marked in rows:
        matched = tuple(
            name for name, text in zip(_COLUMNS, marked, strict=True) if text is not None and _OPEN in text
        )
        hits.append(
            TextHit(
                source, question_id, video_id, uri, start_s, end_s, matched, " ".join(snippet.split()), -rank
            )
        )
    return hits


def match_expression(query: str) -> str:
    """The FTS5 expression that means what `search_text` says of `query`. Raises ConfigError if it has no words."""
    parts = []
    for part in _PART.finditer(_clean(query)):
        text = part["word"] if part["phrase"] is None else part["phrase"]
        # What has no letter or digit is no word to the tokenizer either.
        if any(character.isalnum() for character in text):
            star = "*" if part["phrase_star"] or (part["word"] and text.endswith("*")) else ""
            parts.append(f'"{text}"{star}')
    if not parts:
        raise ConfigError(f"{query!r} has no words to search for: give at least one")
    return " ".join(parts)


def _clean(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _digest(answers: Sequence[AnswerStore]) -> str:
    """Changes with the rows that receipts cover, and with where they are."""
    files = sorted((store.storage.url, file.name, file.sha256) for store in answers for file in store.files)
    return hashlib.sha256(json.dumps([_VERSION, files]).encode()).hexdigest()


def _stored_digest(path: Path) -> str | None:
    """What the index at `path` was made from; None if there is none, or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with closing(_open(path)) as connection:
            row = connection.execute("SELECT digest FROM made_from").fetchone()
    except sqlite3.DatabaseError:
        return None
    return str(row[0]) if row else None


def _open(path: Path) -> sqlite3.Connection:
    # Immutable: the file is only ever replaced, so that SQLite need not lock it, nor write beside it.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _write(path: Path, answers: Sequence[AnswerStore], digest: str) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            # A file that is thrown away if anything goes wrong needs no journal.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute(
                "CREATE VIRTUAL TABLE moments USING fts5(text, question, source UNINDEXED, question_id UNINDEXED, "
                "video_id UNINDEXED, uri UNINDEXED, start_s UNINDEXED, end_s UNINDEXED, "
                "tokenize = 'unicode61 remove_diacritics 2')"
            )
            connection.executemany("INSERT INTO moments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _rows(answers))
            connection.execute("CREATE TABLE made_from (digest TEXT NOT NULL)")
            connection.execute("INSERT INTO made_from VALUES (?)", (digest,))
            connection.commit()
    except sqlite3.OperationalError as error:
        if "fts5" in str(error):
            raise ConfigError(
                f"this Python's SQLite {sqlite3.sqlite_version} has no full text search (FTS5): use another build of Python"
            ) from error
        raise StoreError(f"cannot write the text index {path.parent}: {error}; free space there") from error


def _rows(answers: Sequence[AnswerStore]) -> Iterator[tuple[Any, ...]]:
    for store in answers:
        for batch in store.batches(_READ):
            for row in batch.to_pylist():
                if row["status"] == "ok":
                    caption = row["kind"] == "caption"
                    yield (
                        _clean(row["raw_text"] or ""),
                        "" if caption else _clean(row["question"]),
                        store.storage.url,
                        row["question_id"],
                        row["video_id"],
                        row["uri"],
                        *_moment(row, caption=caption),
                    )


def _moment(row: Mapping[str, Any], *, caption: bool) -> tuple[float | None, float | None]:
    if row["evidence"] and not caption:
        best = max(row["evidence"], key=lambda moment: moment["score"])
        return best["start_s"], best["end_s"]
    return row["start_s"], row["end_s"]
