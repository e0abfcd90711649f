"""The folder of an answer run: what answers.json pins down, and the file of answers that a shard gives.

    <out>/answers.json                 first: all that decides an answer beside the question; a mismatch is an error
    <out>/plan/part-*.parquet          the frozen list of questions and shards (answer_plan.py)
    <out>/answers/<shard>-<digest>.parquet   one row per question (answer_schema.py); <shard>.g1-... of a shard that ran again
    <out>/receipts/<shard>-<epoch>.json      last

Reading is in answer_store.py; committing, and the receipt, are those of a store (shard.py, receipt.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from echoprune.answer_schema import answers_schema, answers_table
from echoprune.answer_settings import AnswerSettings
from echoprune.answer_store import MARKER
from echoprune.errors import ConfigError, StoreError, StoreMismatchError
from echoprune.question import Answer
from echoprune.receipt import ANSWERS
from echoprune.row_groups import BuiltFile, GroupedTable
from echoprune.storage import Storage, checked_name, store_errors
from echoprune.templates import AUTO, load_template

SCHEMA_VERSION = 1
JOBS = ("answer", "caption")
# Rows of one row group. A row of 4,096 kept positions takes 35 kB.
GROUP_ROWS = 1024
# Answers made into a table at a time: their kept positions are Python objects meanwhile, about 1 MB each.
_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class AnswerRun:
    """The contents of answers.json: all that decides an answer beside the question; see `answer_run`.

    `model_fingerprint`: of the vision part, the store's too; `model_digest`: of the whole checkpoint. `store_digest`: of
    the store's settings, wherever it lies. `settings`: an AnswerSettings as a dict. `template_hash`: of
    `settings["template"]`, None for "auto". `window_s`: of captions. `extra`: the question file's further columns with
    their Arrow types in words.
    """

    schema_version: int = SCHEMA_VERSION
    job: str
    model_fingerprint: str
    model_digest: str
    compute_dtype: str
    store_digest: str
    settings: Mapping[str, Any]
    template_hash: str | None
    window_s: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of answers.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = MARKER) -> AnswerRun:
        """What an answers.json says; StoreError naming `where` for another version, or a file that cannot be one."""
        try:
            values = json.loads(text)
            version = values.get("schema_version")
            if version == SCHEMA_VERSION and set(values) != {each.name for each in fields(cls)}:
                raise ValueError(f"it has the fields {', '.join(sorted(values))}")
        except (ValueError, AttributeError) as error:
            raise StoreError(f"{where} is damaged ({error}): restore it, or use another --out") from error
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{where} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: use the version of "
                "echoprune that made it, or another --out"
            )
        return cls(**values)

    def require_same(self, other: AnswerRun) -> None:
        """Raise StoreMismatchError for the first field in which `other`, asked for now, differs from this run's."""
        ours, theirs = _flat(self), _flat(other)
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if ours.get(name) != theirs.get(name):
                raise StoreMismatchError(
                    f"the answers were made with {name} = {ours.get(name)!r}, this run has {theirs.get(name)!r}: "
                    f"{_cure(name)}, or write to another --out"
                )


def with_engine(run: AnswerRun, settings: AnswerSettings, engine: str) -> tuple[AnswerRun, AnswerSettings]:
    """Both with another engine, which decides an answer as any other setting does."""
    chosen = replace(settings, engine=engine)
    values = {name: value for name, value in run.settings.items() if name != "engine"}
    named = chosen.named()
    return replace(
        run, settings=values | {name: named[name] for name in ("engine",) if name in named}
    ), chosen


def answer_run(
    settings: AnswerSettings,
    *,
    job: str,
    model_fingerprint: str,
    model_digest: str,
    compute_dtype: str,
    store_digest: str,
    extra: Mapping[str, pa.DataType],
    window_s: float | None = None,
) -> AnswerRun:
    """The AnswerRun of these settings. Raises ConfigError for a template that is not there, or a column named as ours."""
    try:
        answers_schema(extra)
    except ValueError as error:
        raise ConfigError(f"{error}: rename them in the question file") from error
    values = settings.named()
    template = None if settings.template == AUTO else load_template(settings.template)
    if template is not None:
        # A file is known by its name: where it lies may differ between two machines.
        values["template"] = template.name
    return AnswerRun(
        job=job,
        model_fingerprint=model_fingerprint,
        model_digest=model_digest,
        compute_dtype=compute_dtype,
        store_digest=store_digest,
        settings=values,
        template_hash=None if template is None else template.digest,
        window_s=window_s,
        extra={name: str(kind) for name, kind in extra.items()},
    )


def create_answers(path: str | os.PathLike[str], run: AnswerRun) -> Storage:
    """The storage of an answer run's folder, made if it is not there.

    Raises StoreMismatchError if it was made with something else, NotAStoreError if it holds other things.
    """
    storage = Storage(path)
    found = storage.claim(MARKER, run.to_json().encode(), lacks="it holds no answers", option="--out")
    AnswerRun.from_json(found, where=storage.url_of(MARKER)).require_same(run)
    return storage


def build_answers(
    folder: Path,
    shard_id: str,
    answers: Sequence[Answer],
    *,
    extra: Mapping[str, pa.DataType],
    provenance: Mapping[str, str],
    generation: int = 0,
) -> BuiltFile:
    """The file of a shard's answers, one at least, built in a local folder; its bytes depend on the rows alone.

    `generation`: how often the shard was committed before; a part of the file's name.

    Raises StoreError when the disk does not take it, or a value does not fit its column.
    """
    stem = checked_name(f"{shard_id}.g{generation}" if generation else shard_id)
    table = GroupedTable(
        folder,
        iter([f"{ANSWERS}/{stem}.parquet"]),
        answers_schema(extra),
        group_rows=GROUP_ROWS,
        file_bytes=None,
    )
    with store_errors(f"build answers in {folder}"):
        try:
            for start in range(0, len(answers), _CHUNK):
                chunk = answers[start : start + _CHUNK]
                table.push(answers_table(chunk, extra=extra, provenance=provenance))
                table.settle()
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"answers of shard {shard_id} do not fit their columns ({reason}): use another --out"
            ) from error
        return table.close()[0].named_by_content()


def _flat(run: AnswerRun) -> dict[str, Any]:
    """The fields to compare by name, those of the settings and of the further columns one by one."""
    values = asdict(run)
    settings, extra = values.pop("settings"), values.pop("extra")
    columns = {f"column {name}": kind for name, kind in extra.items()}
    return {**values, **settings, **columns}


_CURES = {
    "model_fingerprint": "give the --model they were made with",
    "model_digest": "give the --model they were made with",
    "store_digest": "name the STORE they were made from",
    "job": "run the command they were made with",
    "score": "use the version of echoprune that they were made with",
    "template_hash": "give the --template they were made with",
}


def _cure(name: str) -> str:
    if name in _CURES:
        return _CURES[name]
    if name.startswith("column "):
        return "give questions with the same further columns"
    option = name.removesuffix("_s").replace("_", "-")
    return f"give the --{option} they were made with"
