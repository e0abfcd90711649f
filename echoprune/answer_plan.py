"""The plan of an answer run: the frozen list of questions, cut into shards.

A shard is a list of questions, about one video after another, with an id that is a hash of their content. The plan only
grows: questions that were not in it become a new part. Which shards are done is said by receipts.

A row that is no question never stands in the way of a run: it is known by what is wrong with it, not by its place in the
file, and once it was mended the part with its question says that it supersedes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from echoprune.cycles import no_search_for_cycles
from echoprune.errors import ConfigError, StoreError
from echoprune.question import Question
from echoprune.questions import question_key
from echoprune.receipt import Receipt
from echoprune.storage import Storage

# A hundred questions spread over a few workers, ten thousand and more are committed in pieces of minutes.
SHARDS, MOST_IN_SHARD = 32, 512
_FOLDER = "plan"
# How questions.py begins the error of a bad row, and the id that it gives to a row without one.
_ROW, _ROW_ID = re.compile(r"row \d+: "), re.compile(r"row-\d+")


@dataclass(frozen=True)
class AnswerShard:
    """Questions that are answered and committed together. `shard_id`: 16 hex digits of their content when planned.

    `generation`: how often it was committed before.
    """

    shard_id: str
    questions: tuple[Question, ...] = field(repr=False)
    generation: int = 0


@dataclass(frozen=True, eq=False)
class PlannedShard:
    """A shard as rows of the plan. Its questions are made by `load`, and where it is pickled, as an AnswerShard.

    A million questions are 2.6 GB as objects and 0.2 GB as rows.
    """

    shard_id: str
    generation: int
    rows: pa.Table = field(repr=False)

    def __len__(self) -> int:
        """How many questions."""
        return int(self.rows.num_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        loaded = self.load()
        return AnswerShard, (loaded.shard_id, loaded.questions, loaded.generation)

    def load(self) -> AnswerShard:
        """The shard with its questions."""
        extras = self.rows["extra"].to_pylist() if "extra" in self.rows.column_names else [{}] * len(self)
        questions = map(_question, self.rows["question"].to_pylist(), extras)
        return AnswerShard(self.shard_id, tuple(questions), self.generation)


@dataclass(frozen=True)
class AnswerPlan:
    """All parts of a plan, shard after shard, in the order of planning.

    `table`: columns `shard_id`, `row` (of the question in its file, from 0), `question_id`, `key`, `question` (JSON),
    `supersedes` (keys of bad rows of earlier parts that no longer count, null for none) and `extra` (a struct of the
    file's further columns, absent if there are none).
    """

    table: pa.Table = field(repr=False)

    def __len__(self) -> int:
        """How many questions, superseded ones left out."""
        return int(self.table.num_rows) - int(pc.sum(self._superseded).as_py() or 0)

    @no_search_for_cycles()
    def pending(self, receipts: Mapping[str, Receipt], *, retry_failed: bool = False) -> list[PlannedShard]:
        """The shards that have no receipt, or one of rows that were superseded since, in order.

        With `retry_failed` also those whose receipt counts failed answers. Superseded rows are left out.
        """
        found = []
        live = pc.invert(self._superseded)
        for shard_id, start, count in self._shards():
            rows = self.table.slice(start, count).filter(live.slice(start, count))
            receipt = receipts.get(shard_id)
            if receipt is None:
                if len(rows):
                    found.append(PlannedShard(shard_id, 0, rows))
            elif receipt.ok + receipt.partial + receipt.failed != len(rows) or (
                retry_failed and receipt.failed
            ):
                found.append(PlannedShard(shard_id, receipt.generation + 1, rows))
        return found

    def _shards(self) -> Iterator[tuple[str, int, int]]:
        """Id, first row and number of rows of each shard."""
        ids = self.table["shard_id"].to_pylist()
        start = 0
        for shard_id, members in groupby(ids):
            count = sum(1 for _ in members)
            yield shard_id, start, count
            start += count

    @cached_property
    def superseded(self) -> frozenset[str]:
        """The keys of rows that no longer count."""
        lists = self.table["supersedes"].drop_null()
        return frozenset(key for keys in lists.to_pylist() for key in keys)

    @cached_property
    def _superseded(self) -> pa.ChunkedArray:
        return pc.is_in(self.table["key"], value_set=pa.array(sorted(self.superseded), pa.string()))


def load_plan(storage: Storage) -> AnswerPlan:
    """The plan of an answer run's folder; empty if nothing was planned yet. Raises StoreError for a damaged part."""
    parts = []
    for name in _parts(storage):
        try:
            with storage.open_input(name) as file:
                parts.append(pq.ParquetFile(file, page_checksum_verification=True).read())
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"plan part {storage.url_of(name)} is damaged ({reason}): use another --out"
            ) from error
    # A part without `supersedes` was made before there was one.
    table = pa.concat_tables([plan_schema({}).empty_table(), *parts], promote_options="default")
    return AnswerPlan(table)


@no_search_for_cycles()
def extend_plan(
    storage: Storage,
    questions: Sequence[Question],
    *,
    extra: Mapping[str, pa.DataType],
    shard_questions: int | None = None,
    batch: int = 1,
) -> list[AnswerShard]:
    """The shards of those questions that the plan does not hold yet, written as its next part; [] if there are none.

    Cut as by `make_shards`. A bad row is never refused. A bad row of the plan that `questions` hold no longer is superseded
    by what has its id now. Raises ConfigError for a question whose id was planned for another question, StoreError if
    another process planned meanwhile.
    """
    plan = load_plan(storage)
    keys = set(plan.table["key"].to_pylist())
    current: set[str] = set()
    fresh: dict[str, tuple[int, Question]] = {}
    for row, (key, question) in enumerate(_keyed(questions)):
        current.add(key)
        if key not in keys:
            fresh.setdefault(key, (row, question))
    supersedes = _supersedes(plan, {key: question for key, (_, question) in fresh.items()}, current)
    if not fresh:
        return []
    rows = {key: row for key, (row, _) in fresh.items()}
    shards = _cut(
        [(key, question) for key, (_, question) in fresh.items()],
        size=shard_questions or shard_size(len(fresh), batch=batch),
    )
    name = f"{_FOLDER}/part-{len(_parts(storage)):04d}.parquet"
    sink = pa.BufferOutputStream()
    table = _table(shards, rows, supersedes, extra)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
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
    cut = _cut(list(_keyed(questions)), size=size)
    return [AnswerShard(_shard_id(members), tuple(each for _, each in members)) for members in cut]


def plan_schema(extra: Mapping[str, pa.DataType]) -> pa.Schema:
    """The pyarrow schema of plan/part-*.parquet, `extra` being the question file's further columns."""
    columns = [
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("supersedes", pa.list_(pa.string())),
    ]
    if extra:
        columns.append(pa.field("extra", pa.struct([pa.field(name, kind) for name, kind in extra.items()])))
    return pa.schema(columns)


_Keyed = tuple[str, Question]


def _keyed(questions: Iterable[Question]) -> Iterator[_Keyed]:
    """Each question with its key; that of a bad row stays when rows above it come and go, and no two have the same."""
    times: Counter[str] = Counter()
    for question in questions:
        if not question.error_class:
            yield question_key(question), question
            continue
        named = "" if _ROW_ID.fullmatch(question.question_id) else question.question_id
        key = question_key(replace(question, question_id=named, error=_ROW.sub("", question.error, count=1)))
        times[key] += 1
        if times[key] > 1:
            key = hashlib.sha256(f"{key} {times[key]}".encode()).hexdigest()[:16]
        yield key, question


def _supersedes(
    plan: AnswerPlan, fresh: Mapping[str, Question], current: Collection[str]
) -> dict[str, list[str]]:
    """By key of a fresh row, the keys of planned bad rows of the same id that are not in the file (`current`) any more."""
    ids = pa.array(sorted({question.question_id for question in fresh.values()}), pa.string())
    table = plan.table.filter(pc.is_in(plan.table["question_id"], value_set=ids))
    good: set[str] = set()
    bad: defaultdict[str, list[str]] = defaultdict(list)
    columns = (table[name].to_pylist() for name in ("question_id", "key", "question"))
    for question_id, key, text in zip(*columns, strict=True):
        if not json.loads(text)["error_class"]:
            good.add(question_id)
        elif key not in current and key not in plan.superseded and not _ROW_ID.fullmatch(question_id):
            bad[question_id].append(key)
    for question in fresh.values():
        if question.question_id in good and not question.error_class:
            raise ConfigError(
                f"question {question.question_id!r} was planned with other content: append new questions under new "
                "ids, or use another --out"
            )
    return {key: found for key, question in fresh.items() if (found := bad.pop(question.question_id, []))}


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
    shards: Sequence[Sequence[_Keyed]],
    rows: Mapping[str, int],
    supersedes: Mapping[str, list[str]],
    extra: Mapping[str, pa.DataType],
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
            columns["supersedes"].append(supersedes.get(key))
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
