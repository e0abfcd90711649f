"""Many small shards as few larger ones: fewer files to list and open, the same rows.

The merged shard has an id of its own and a receipt that names the shards it replaces. That receipt is the commit: until it is
there readers see the shards, from then on the merged one, though the old receipts and files are removed only afterwards.
The plan stays as it is; a planned shard is done if a receipt is its own or replaces it.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from echoprune.plan import Plan
from echoprune.receipt import Receipt
from echoprune.rewrite import CommittedShard
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.storage import Storage

# The videos rows of a shard are held while it is written: about 3 kB each.
MOST_VIDEOS = 20_000


def merge_groups(
    plan: Plan, receipts: Mapping[str, Receipt], *, target_bytes: int, most_videos: int = MOST_VIDEOS
) -> list[list[Receipt]]:
    """Which shards to merge with one another: neighbours in the plan, of at most `target_bytes` together.

    Only shards of at most half of that, and of half of `most_videos`, take part. So each merged one but the last is about
    as large as that half at least: merging again merges the last one with what came since, and little else.
    """
    place = {shard_id: at for at, shard_id in enumerate(plan.shard_ids)}
    ordered = sorted(
        receipts.values(),
        key=lambda each: (min(place.get(one, len(place)) for one in each.planned), each.shard_id),
    )
    groups: list[list[Receipt]] = [[]]
    filled = videos = 0
    for receipt in ordered:
        if 2 * receipt.size_bytes > target_bytes or 2 * receipt.videos > most_videos:
            continue
        if filled + receipt.size_bytes > target_bytes or videos + receipt.videos > most_videos:
            groups.append([])
            filled = videos = 0
        groups[-1].append(receipt)
        filled += receipt.size_bytes
        videos += receipt.videos
    return [group for group in groups if len(group) > 1]


def merge_shards(
    storage: Storage,
    settings: StoreSettings,
    group: Sequence[Receipt],
    *,
    run_id: str,
    lease_epoch: int,
    check_epoch: Callable[[], None],
) -> Receipt:
    """The receipt of the shard that has the videos of `group`, in order; what it replaces is removed already.

    Only for the holder of the lease. Memory: the videos of the group, and a row group.
    """
    shard_id = hashlib.sha256(json.dumps([each.planned for each in group]).encode()).hexdigest()[:16]
    newest = max(group, key=lambda receipt: receipt.finished_at)
    with storage.tmp_dir() as folder:
        writer = ShardWriter(folder, settings, shard_id)
        for receipt in group:
            old = CommittedShard(storage, settings, receipt)
            for failure in old.failures:
                writer.add_failure(failure)
            for video_id in old.videos:
                old.copy(writer, video_id)
        files = writer.close()
        merged = Receipt(
            shard_id=shard_id,
            generation=0,
            files=tuple(file.entry for file in files),
            ok=writer.outcomes["ok"],
            partial=writer.outcomes["partial"],
            failed=writer.outcomes["failed"],
            lease_epoch=lease_epoch,
            run_id=run_id,
            host=socket.gethostname(),
            started_at=min(receipt.started_at for receipt in group),
            finished_at=datetime.now(UTC).isoformat(),
            versions=newest.versions,
            config=newest.config,
            replaces=tuple(each for receipt in group for each in receipt.planned),
        )
        commit(storage, files, merged, check_epoch=check_epoch)
    for receipt in group:
        for name in (receipt.name, *(file.name for file in receipt.files)):
            check_epoch()
            storage.remove(name)
    return merged
