"""Writing a committed shard again under the next generation, for `retry` and `forget`.

What stays is copied from the files that the receipt names; nothing is encoded again, and the new files are those that an
index of the same videos would have given. The new receipt takes the old one's place in one put: until then readers see the old
shard, from then on the new one. What it superseded is removed by `receipt.sweep`.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.errors import StoreError
from echoprune.plan import Plan, Shard, Source
from echoprune.receipt import Receipt, committed, read_receipt
from echoprune.schema import StoreSettings, table_schema
from echoprune.shard import ShardWriter, commit
from echoprune.storage import Storage
from echoprune.store_files import RowGroup, StoreFiles


class CommittedShard:
    """A shard as its receipt has it: its videos in order, and their rows for another generation of it.

    Memory: the videos and failures tables of the shard, and one row group. Damage is a StoreError that names the file.
    """

    def __init__(self, storage: Storage, settings: StoreSettings, receipt: Receipt) -> None:
        self.receipt = receipt
        self._settings = settings
        self._files = StoreFiles(storage, {receipt.shard_id: receipt})
        self._groups: dict[str, list[RowGroup]] = {}
        self._held: dict[str, tuple[RowGroup, pa.Table]] = {}

    @classmethod
    def open(cls, storage: Storage, settings: StoreSettings, receipt: str) -> CommittedShard:
        """The shard as the receipt of that name has it now; StoreError where there is none."""
        return cls(storage, settings, read_receipt(storage, receipt))

    @cached_property
    def videos(self) -> dict[str, dict[str, Any]]:
        """The rows of the videos table by video id, in order, with `cell_row`: the rows of cells before its first."""
        rows: dict[str, dict[str, Any]] = {}
        cell_row = 0
        for row in self._rows("videos"):
            rows[row["video_id"]] = row | {"cell_row": cell_row}
            cell_row += row["cells"]
        return rows

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """The rows of the failures table, in order."""
        return self._rows("failures")

    def attempts(self, video_id: str) -> int:
        """How many failed attempts there were at a video."""
        return self._attempts.get(video_id, 0)

    @cached_property
    def _attempts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in self.failures:
            counts[row["video_id"]] = max(row["attempt"], counts.get(row["video_id"], 0))
        return counts

    def copy(self, writer: ShardWriter, video_id: str) -> None:
        """Adds one of its videos, with its cells and tokens, to `writer`."""
        row = self.videos[video_id]
        video = {name: value for name, value in row.items() if name != "cell_row"}
        cells = self._pieces("cells", row, row["cell_row"], row["cells"])
        try:
            writer.copy_video(video, cells, self._pieces("tokens", row, row["token_row"], row["kept"]))
        except ValueError as error:
            raise StoreError(
                f"shard {self.receipt.shard_id} is damaged ({error}): remove {self.receipt.name} and run "
                "index again, which redoes that shard"
            ) from error

    def _rows(self, table: str) -> list[dict[str, Any]]:
        schema = table_schema(table, self._settings)
        found: list[dict[str, Any]] = []
        for group in self._files.row_groups(table, self.receipt.shard_id):
            for _, rows in self._files.read_groups([group], schema.names):
                found += rows.to_pylist()
        return found

    def _pieces(self, table: str, video: Mapping[str, Any], first: int, count: int) -> Iterator[pa.Table]:
        """Rows [first, first + count) of a table, all of them the video's, a row group at a time."""
        schema = table_schema(table, self._settings)
        if table not in self._groups:
            self._groups[table] = self._files.row_groups(table, self.receipt.shard_id)
        for group in self._groups[table]:
            begin, end = max(first, group.first), min(first + count, group.first + group.rows)
            if begin >= end:
                continue
            piece = self._group(table, group, schema).slice(begin - group.first, end - begin)
            with self._files.damage(group.name):
                if not pc.all(pc.equal(piece["video_id"], video["video_id"])).as_py():
                    raise pa.ArrowInvalid(f"rows of {video['uri']} are not where its videos row says")
            yield piece

    def _group(self, table: str, group: RowGroup, schema: pa.Schema) -> pa.Table:
        """A row group; the last one of each table is held, since small videos share one."""
        held = self._held.get(table)
        if held is None or held[0] != group:
            self._held.pop(table, None)
            ((_, rows),) = self._files.read_groups([group], schema.names)
            with self._files.damage(group.name):
                if not rows.schema.equals(schema, check_metadata=True):
                    raise pa.ArrowInvalid("its columns or metadata are not those of this store")
            held = self._held[table] = (group, rows)
        return held[1]


def shards_to_redo(
    storage: Storage,
    settings: StoreSettings,
    receipts: Mapping[str, Receipt],
    *,
    classes: Collection[str] = (),
    partial: bool = False,
) -> list[Shard]:
    """The committed shards with failed videos, in the order of `receipts`, as shards that redo those.

    `classes`: only videos of these error classes; empty: all. `partial`: also videos that are stored in part.
    """
    wanted = {"failed", "partial"} if partial else {"failed"}
    found = []
    for receipt in receipts.values():
        if not receipt.failed and not (partial and receipt.partial):
            continue
        videos = CommittedShard(storage, settings, receipt).videos
        redo = frozenset(
            video_id
            for video_id, row in videos.items()
            if row["status"] in wanted and (not classes or row["error_class"] in classes)
        )
        if redo:
            sources = (Source(row["uri"], row["size_bytes"], row["etag"]) for row in videos.values())
            found.append(Shard(receipt.shard_id, tuple(sources), redo, receipt.name))
    return found


def rewrite_shard(
    storage: Storage,
    settings: StoreSettings,
    receipt: Receipt,
    *,
    keep: Collection[str],
    run_id: str,
    lease_epoch: int,
    check_epoch: Callable[[], None],
) -> Receipt:
    """The receipt of the shard's next generation, which holds only the videos whose ids are in `keep`, and is committed.

    Versions, configuration and the start in it stay those of the run that made the tokens. Only for the holder of the lease.
    """
    old = CommittedShard(storage, settings, receipt)
    with storage.tmp_dir() as folder:
        writer = ShardWriter(folder, settings, receipt.shard_id, generation=receipt.generation + 1)
        for video_id in old.videos:
            if video_id in keep:
                old.copy(writer, video_id)
        for failure in old.failures:
            if failure["video_id"] in keep:
                writer.add_failure(failure)
        files = writer.close()
        outcomes: Counter[str] = writer.outcomes
        written = replace(
            receipt,
            generation=receipt.generation + 1,
            files=tuple(file.entry for file in files),
            ok=outcomes["ok"],
            partial=outcomes["partial"],
            failed=outcomes["failed"],
            lease_epoch=lease_epoch,
            run_id=run_id,
            host=socket.gethostname(),
            finished_at=datetime.now(UTC).isoformat(),
        )
        commit(storage, files, written, check_epoch=check_epoch)
    return written


def holding_forgotten(plan: Plan, receipts: Mapping[str, Receipt]) -> list[Receipt]:
    """The receipts of shards that hold more videos than the plan, since some were forgotten; in order of planning."""
    if not len(plan.forgotten):
        return []
    live = Counter(plan.table["shard_id"].to_pylist())
    by_shard = committed(receipts)
    holders = (by_shard.get(shard_id) for shard_id in plan.forgotten["shard_id"].to_pylist())
    return [
        receipt
        for receipt in {each.shard_id: each for each in holders if each is not None}.values()
        if receipt.videos > sum(live[shard_id] for shard_id in receipt.planned)
    ]


def drop_forgotten(
    storage: Storage,
    settings: StoreSettings,
    plan: Plan,
    receipts: Mapping[str, Receipt],
    *,
    run_id: str,
    lease_epoch: int,
    check_epoch: Callable[[], None],
) -> list[str]:
    """The ids of shards that held forgotten videos, which are written again without them.

    Only for the holder of the lease. `index` and `retry` call it too: what a killed `forget` began is finished.
    """
    rewritten = []
    for receipt in holding_forgotten(plan, receipts):
        planned = pc.is_in(plan.table["shard_id"], value_set=pa.array(receipt.planned, pa.string()))
        keep = set(plan.table.filter(planned)["video_id"].to_pylist())
        rewrite_shard(
            storage,
            settings,
            receipt,
            keep=keep,
            run_id=run_id,
            lease_epoch=lease_epoch,
            check_epoch=check_epoch,
        )
        rewritten.append(receipt.shard_id)
    return rewritten
