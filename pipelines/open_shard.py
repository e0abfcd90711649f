"""The shard that a worker has in hand: rows of videos that ended one way or another, and the commit.

A shard that is committed already is written again: its failed attempts are kept, and what is not to be redone is copied.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from echoprune.errors import MediaError
from echoprune.index import IndexedVideo
from echoprune.plan import Shard
from echoprune.receipt import Receipt, receipt_name
from echoprune.rewrite import CommittedShard
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import Source
from echoprune.storage import Storage
from pipelines.config import IndexConfig
from pipelines.decode_actor import Opened
from pipelines.events import VideoDone
from pipelines.rows import cell_columns, failed_row, failure_row, one_line, video_row
from pipelines.versions import versions

# Rows read from the spill file at a time at most; the file itself hands out no more than 4 MB.
CHUNK_ROWS = 8192


def committed_shard(
    storage: Storage, settings: StoreSettings, shard: Shard, *, lease_epoch: int
) -> CommittedShard | None:
    """What is committed of a shard with videos to be done again, by now under this lease maybe; None of one that is new."""
    if not shard.redo:
        return None
    ours = receipt_name(shard.shard_id, lease_epoch=lease_epoch)
    return CommittedShard.open(storage, settings, ours if storage.exists(ours) else shard.receipt)


class OpenShard:
    """The files of a shard's next generation, built in `folder`. Its videos must be added in order."""

    def __init__(
        self, folder: Path, settings: StoreSettings, shard_id: str, committed: CommittedShard | None
    ) -> None:
        # Of a shard with videos that are copied: when the first of them was made.
        self._started_at = committed.receipt.started_at if committed else datetime.now(UTC).isoformat()
        self._shard_id = shard_id
        self._committed = committed
        self._generation = committed.receipt.generation + 1 if committed else 0
        self._writer = ShardWriter(folder, settings, shard_id, generation=self._generation)
        for failure in committed.failures if committed else ():
            self._writer.add_failure(failure)

    def copy(self, source: Source) -> None:
        """Adds a committed video as it is."""
        assert self._committed is not None
        self._committed.copy(self._writer, source.video_id)

    def store(self, source: Source, opened: Opened, indexed: IndexedVideo) -> VideoDone:
        """Adds an ok or partial video; of a part that is shorter than the one that is stored, only the failed attempt."""
        error = indexed.error or opened.error
        if error and self._committed and self._committed.videos[source.video_id]["cells"] > indexed.cells:
            return self.failed(source, error)
        status = "partial" if error else "ok"
        self._writer.add_video(
            video_row(source, opened, indexed, status=status, error=error),
            cell_columns(indexed),
            indexed.selection.chunks(CHUNK_ROWS),
        )
        if error:
            self._add_failure(source, error, decoder=indexed.decoder)
        return VideoDone(
            source.video_id,
            source.uri,
            status,
            source_bytes=source.size_bytes or 0,
            video_s=indexed.covered_s,
            cells=indexed.cells,
            tokens=indexed.seen,
            kept=indexed.kept,
            error_class=error.kind if error else "",
            error=one_line(str(error)) if error else "",
        )

    def failed(self, source: Source, error: MediaError) -> VideoDone:
        """Adds a failed video: its row says why, and the failures table too.

        A video that is stored in part keeps that part, and its row: so much of it could be read once.
        """
        status = self._committed.videos[source.video_id]["status"] if self._committed else "failed"
        if status == "failed":
            self._writer.add_video(failed_row(source, error))
        else:
            self.copy(source)
        self._add_failure(source, error, decoder=None)
        return VideoDone(
            source.video_id,
            source.uri,
            status,
            source_bytes=source.size_bytes or 0,
            video_s=0.0,
            cells=0,
            tokens=0,
            kept=0,
            error_class=error.kind,
            error=one_line(str(error)),
        )

    def commit(
        self,
        storage: Storage,
        config: IndexConfig,
        *,
        run_id: str,
        lease_epoch: int,
        check_epoch: Callable[[], None],
    ) -> Receipt:
        """The receipt with which the shard is committed."""
        files = self._writer.close()
        outcomes = self._writer.outcomes
        receipt = Receipt(
            shard_id=self._shard_id,
            generation=self._generation,
            files=tuple(file.entry for file in files),
            ok=outcomes["ok"],
            partial=outcomes["partial"],
            failed=outcomes["failed"],
            lease_epoch=lease_epoch,
            run_id=run_id,
            host=socket.gethostname(),
            started_at=self._started_at,
            finished_at=datetime.now(UTC).isoformat(),
            versions=versions(),
            config=config.as_dict() | {"paths": len(config.paths)},
            replaces=self._committed.receipt.replaces if self._committed else (),
        )
        commit(storage, files, receipt, check_epoch=check_epoch)
        return receipt

    def _add_failure(self, source: Source, error: MediaError, *, decoder: str | None) -> None:
        before = self._committed.attempts(source.video_id) if self._committed else 0
        self._writer.add_failure(failure_row(source, error, decoder=decoder, attempt=before + 1))
