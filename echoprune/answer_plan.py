"""The plan of an answer run: the frozen list of questions, cut into shards.

A shard is a list of questions, about one video after another, with an id that is a hash of their content. The plan only
grows: questions that were not in it become a new part. Which shards are done is said by receipts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.errors import ConfigError, StoreError
from echoprune.question import Question
from echoprune.questions import question_key
from echoprune.storage import Storage

# A hundred questions spread over a few workers, ten thousand and more are committed in pieces of minutes.
SHARDS, MOST_IN_SHARD = 32, 512
_FOLDER = "plan"


@dataclass(frozen=True)
class AnswerShard:
    """Questions that are answered and committed together. `shard_id`: 16 hex digits of their content."""

    shard_id: str
    questions: tuple[Question, ...] = field(repr=False)


@dataclass(frozen=True)
class AnswerPlan:
    """All parts of a plan, shard after shard, in the order of planning.

    `table`: columns `shard_id`, `row` (of the question in its file, from 0), `question_id`, `key`, `question` (JSON) and
    `extra` (a struct of the file's further columns, absent if there are none).
    """

    table: pa.Table = field(repr=False)

    def __len__(self) -> int:
        """How many questions."""
        return int(self.table.num_rows)

    def pending(self, done: Collection[str]) -> list[AnswerShard]:
        """The shards whose id is not in `done`, in order."""
        ids = self.table["shard_id"].to_pylist()
        left = [row for row, shard_id in enumerate(ids) if shard_id not in done]
        rows = self.table.take(pa.array(left, pa.int64()))
        texts = rows["question"].to_pylist()
        extras = rows["extra"].to_pylist() if "extra" in rows.column_names else [{}] * len(rows)
        questions = map(_question, texts, extras)
        found = zip((ids[row] for row in left), questions, strict=True)
        return [
            AnswerShard(shard_id, tuple(question for _, question in members))
            for shard_id, members in groupby(found, key=lambda pair: pair[0])
        ]


def load_plan(storage: Storage) -> AnswerPlan:
    """The plan of an answer run's folder; empty if nothing was planned yet. Raises StoreError for a damaged part."""
    parts = []
    for name in _parts(storage):
        try:
            with storage.open_input(name) as file:
                parts.append(pq.read_table(file))
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"plan part {storage.url_of(name)} is damaged ({reason}): use another --out"
            ) from error
    return AnswerPlan(pa.concat_tables(parts) if parts else plan_schema({}).empty_table())


def extend_plan(
    storage: Storage,
    questions: Sequence[Question],
    *,
    extra: Mapping[str, pa.DataType],
    shard_questions: int | None = None,
    batch: int = 1,
) -> list[AnswerShard]:
    """The shards of those questions that the plan does not hold yet, written as its next part; [] if there are none.

    Cut as by `make_shards`. Raises ConfigError for a question whose id was planned with other content, StoreError if
    another process planned meanwhile.
    """
    planned = load_plan(storage).table
    keys = set(planned["key"].to_pylist())
    ids = set(planned["question_id"].to_pylist())
    fresh: dict[str, tuple[int, Question]] = {}
    for row, question in enumerate(questions):
        key = question_key(question)
        if key in keys:
            continue
        if question.question_id in ids:
            raise ConfigError(
                f"question {question.question_id!r} was planned with other content: append new questions under new "
                "ids, or use another --out"
            )
        fresh.setdefault(key, (row, question))
    if not fresh:
        return []
    rows = {key: row for key, (row, _) in fresh.items()}
    shards = _cut(
        [(key, question) for key, (_, question) in fresh.items()],
        size=shard_questions or shard_size(len(fresh), batch=batch),
    )
    name = f"{_FOLDER}/part-{len(_parts(storage)):04d}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(_table(shards, rows, extra), sink, compression="zstd")
    if not storage.create_exclusive(name, sink.getvalue().to_pybytes()):
        raise StoreError(f"{storage.url_of(name)} was written by another run: let it finish, then run again")
    return [AnswerShard(_shard_id(members), tuple(each for _, each in members)) for members in shards]


def shard_size(count: int, *, batch: int) -> int:
    """Questions of a shard where nothing else was asked for: of `count` a 32nd, in whole batches, at most 512."""
    share = -(-count // SHARDS)
    return max(batch, min(MOST_IN_SHARD, -(-share // batch) * batch))


def make_shards(questions: Iterable[Question], *, size: int) -> list[AnswerShard]:
    """Shards of about `size` questions: sorted by video, as the questions name it, then as they come.

    A video's questions share a shard where they fit, so that its tokens are read once; more than `size` of them are cut. Shards
    have at most `size` x 3/2 questions.
    """
    cut = _cut([(question_key(question), question) for question in questions], size=size)
    return [AnswerShard(_shard_id(members), tuple(each for _, each in members)) for members in cut]


def plan_schema(extra: Mapping[str, pa.DataType]) -> pa.Schema:
    """The pyarrow schema of plan/part-*.parquet, `extra` being the question file's further columns."""
    columns = [
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
    ]
    if extra:
        columns.append(pa.field("extra", pa.struct([pa.field(name, kind) for name, kind in extra.items()])))
    return pa.schema(columns)


_Keyed = tuple[str, Question]


def _cut(keyed: Sequence[_Keyed], *, size: int) -> list[list[_Keyed]]:
    if size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    shards: list[list[_Keyed]] = []
    members: list[_Keyed] = []
    # A stable sort: questions about one video stay in the file's order.
    by_video = sorted(keyed, key=lambda pair: pair[1].video)
    for _, group in groupby(by_video, key=lambda pair: pair[1].video):
        about = list(group)
        if members and len(members) + len(about) / 2 > size:
            shards.append(members)
            members = []
        while len(about) > size:
            shards.append(about[:size])
            about = about[size:]
        members += about
        if len(members) >= size:
            shards.append(members)
            members = []
    return [*shards, members] if members else shards


def _shard_id(members: Iterable[_Keyed]) -> str:
    return hashlib.sha256(json.dumps([key for key, _ in members]).encode()).hexdigest()[:16]


def _table(
    shards: Sequence[Sequence[_Keyed]], rows: Mapping[str, int], extra: Mapping[str, pa.DataType]
) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in plan_schema(extra).names}
    for members in shards:
        shard_id = _shard_id(members)
        for key, question in members:
            columns["shard_id"].append(shard_id)
            columns["row"].append(rows[key])
            columns["question_id"].append(question.question_id)
            columns["key"].append(key)
            columns["question"].append(_text(question))
            if extra:
                columns["extra"].append({name: question.extra.get(name) for name in extra})
    schema = plan_schema(extra)
    return pa.table(
        [pa.array(columns[each.name], type=each.type) for each in schema],
        schema=schema,
    )


def _parts(storage: Storage) -> list[str]:
    return [name for name in storage.names(_FOLDER) if name.endswith(".parquet")]


def _text(question: Question) -> str:
    """A question as JSON, without its further columns."""
    values = {name: value for name, value in vars(question).items() if name != "extra"}
    return json.dumps(values, ensure_ascii=False)


def _question(text: str, extra: Mapping[str, Any] | None) -> Question:
    values = json.loads(text)
    values["options"] = tuple(values["options"])
    present = {name: value for name, value in (extra or {}).items() if value is not None}
    return Question(**values, extra=present)
