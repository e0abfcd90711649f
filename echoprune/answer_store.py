"""Reading the folder of an answer run: the answers of finished shards, as they were when it was opened.

    answers.json                 marks the folder; the run's settings
    answers/<shard>-<digest>.parquet   one row per question; columns in answer_schema.py
    receipts/<shard>-<epoch>.json      written last: this shard is done, and these are its files

Only what a receipt names counts. Writing is not here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.answer_schema import answers_schema
from echoprune.errors import NotAStoreError, StoreError
from echoprune.receipt import ANSWERS, StoredFile, read_receipts
from echoprune.storage import Storage
from echoprune.store_files import in_one

MARKER = "answers.json"


def open_answers(path: str | os.PathLike[str]) -> AnswerStore:
    """The answers in a folder or URL, as they are now. Raises NotAStoreError where there are none."""
    storage = Storage(path)
    if not storage.exists(MARKER):
        storage.require_bucket()
        raise NotAStoreError(
            f"{storage.url} holds no answers (it has no {MARKER}): name the --out of an answer or caption run"
        )
    return AnswerStore(storage)


class AnswerStore:
    """Answers opened for reading. `receipts` are those that were there when it was opened, by shard."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.receipts = read_receipts(storage)

    def __repr__(self) -> str:
        return f"AnswerStore({self.storage.url!r}, {len(self.receipts)} shards)"

    @property
    def files(self) -> list[StoredFile]:
        """The files that receipts cover, in order of the shards' ids."""
        return [file for receipt in self.receipts.values() for file in receipt.files_of(ANSWERS)]

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, sorted by question_id; `columns` in that order, None for all.

        A column that only some shards have is null in the others. Raises StoreError where a file is damaged,
        KeyError for a column that no shard has.
        """
        wanted = None if columns is None else list(dict.fromkeys([*columns, "question_id"]))
        found = in_one(
            (pa.Table.from_batches([batch]) for batch in self.batches(wanted)), promote="permissive"
        )
        if found is None:
            schema = answers_schema({})
            table = schema.empty_table() if wanted is None else schema.empty_table().select(wanted)
        else:
            table = found.sort_by("question_id")
        return table if columns is None else table.select(list(columns))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in pieces of bounded size, shard after shard, in the order in which they were written.

        `columns` that a shard has not are left out of its pieces.
        """
        for file in self.files:
            try:
                with self.storage.open_input(file.name) as source:
                    parquet = pq.ParquetFile(source, page_checksum_verification=True)
                    have = parquet.schema_arrow.names
                    names = have if columns is None else [name for name in columns if name in have]
                    # A row may carry thousands of kept positions, 8 bytes each.
                    yield from parquet.iter_batches(batch_size=1024, columns=names)
            except (pa.ArrowException, OSError) as error:
                reason = " ".join(str(error).split())
                shard_id = file.name.rsplit("/", 1)[-1].split(".")[0].split("-")[0]
                raise StoreError(
                    f"{self.storage.url_of(file.name)} is damaged ({reason}): remove receipts/{shard_id}-*.json and run "
                    "the same command again, which redoes that shard"
                ) from error
