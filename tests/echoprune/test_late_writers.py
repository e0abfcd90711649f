"""A writer that has lost the store, and whose last put lands all the same: under way when its lease was followed.

It looks at the lease before each put, so that one put alone can be late. Here it is held back between the look and the put
while the next run takes over, at each step of a commit, and lands before that run writes the same shard or after it ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from echoprune import s3_client
from echoprune.compact import merge_groups, merge_shards
from echoprune.errors import StoreError
from echoprune.lease import Lease, _encode, _name, check
from echoprune.plan import extend_plan, load_plan, pending
from echoprune.receipt import Receipt, committed, read_receipts, sweep
from echoprune.rewrite import rewrite_shard
from echoprune.s3_options import S3Options, use_s3
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import Source
from echoprune.storage import Storage
from echoprune.store import create_store, open_store
from echoprune.verify import verify
from tests import stores as made

BAD = "/archive/bad.mp4"
# Tokens, cells, failures, videos, receipt.
STEPS = 5
# Files by name and rows of a run that nothing disturbed.
Clean = tuple[dict[str, str], list[tuple[str, str, int]]]


@dataclass(frozen=True)
class Archive:
    """A store of two shards, each of two clips, and of a file that cannot be read in the first."""

    storage: Storage
    settings: StoreSettings

    @classmethod
    def planned(cls, url: str | Path) -> Archive:
        settings = made.settings()
        storage = create_store(url, settings)
        uris = [f"/archive/{number}.mp4" for number in range(4)]
        sources = [*(Source(uri, 1000) for uri in uris[:2]), Source(BAD, 1000)]
        extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=9)
        extend_plan(storage, [Source(uri, 1000) for uri in uris[2:]], shard_bytes=1 << 30, shard_videos=9)
        return cls(storage, settings)

    def index(
        self,
        lease: Lease,
        looked: Callable[[], None] = lambda: None,
        *,
        receipts: Mapping[str, Receipt] | None = None,
        most: int = 9,
    ) -> None:
        """Commits what is pending, `most` shards; `looked` is called after each look at the lease. `receipts`: of its sweep."""
        if receipts is None:
            receipts = sweep(self.storage).receipts
        looked()
        for shard in pending(load_plan(self.storage), committed(receipts))[:most]:
            with self.storage.tmp_dir() as folder:
                writer = ShardWriter(folder, self.settings, shard.shard_id)
                for source in shard.sources:
                    if source.uri == BAD:
                        # When and where it failed differs between two runs.
                        made.add_failed(writer, BAD, host=uuid.uuid4().hex)
                    else:
                        number = int(Path(source.uri).stem)
                        clip = made.clip(source.uri, self.settings, cells=3 + number, seed=number)
                        made.add_clip(writer, self.settings, clip)
                files = writer.close()
                receipt = made.receipt(writer, files, shard.shard_id)
                receipt = replace(receipt, run_id=lease.holder.run_id, lease_epoch=lease.epoch)
                commit(self.storage, files, receipt, check_epoch=partial(self._look, lease, looked))
        if lease.took_over:
            sweep(self.storage)

    def rewrite(self, lease: Lease, looked: Callable[[], None]) -> None:
        """Writes the first shard again, as `retry` and `forget` do."""
        looked()
        receipt = next(each for each in read_receipts(self.storage).values() if each.failed)
        keep = set(load_plan(self.storage).table["video_id"].to_pylist())
        rewrite_shard(
            self.storage, self.settings, receipt, keep=keep, run_id=lease.holder.run_id, lease_epoch=lease.epoch,
            check_epoch=partial(self._look, lease, looked),
        )  # fmt: skip

    def merge(self, lease: Lease, looked: Callable[[], None]) -> None:
        """Makes one shard of the two."""
        looked()
        (group,) = merge_groups(load_plan(self.storage), read_receipts(self.storage), target_bytes=1 << 30)
        merge_shards(
            self.storage, self.settings, group, run_id=lease.holder.run_id, lease_epoch=lease.epoch,
            check_epoch=partial(self._look, lease, looked),
        )  # fmt: skip

    def _look(self, lease: Lease, looked: Callable[[], None]) -> None:
        check(self.storage, lease.epoch)
        looked()

    def lease(self, run_id: str) -> Lease:
        """The lease of a process that is gone by the time that the next run looks."""
        lease = Lease.acquire(self.storage, run_id=run_id)
        gone = replace(lease.holder, process_start="long ago")
        self.storage.write_bytes(_name(lease.epoch), _encode(gone))
        return lease

    def counted(self) -> dict[str, str]:
        """The sha256 of each file of the tables that two runs must not differ in, by its name: of those that count."""
        files = [file for receipt in read_receipts(self.storage).values() for file in receipt.files]
        return {file.name: file.sha256 for file in files if file.table != "failures"}

    def rows(self) -> list[tuple[str, str, int]]:
        """What a reader sees of all videos; raises StoreError where it cannot read all that it is told of."""
        store = open_store(self.storage.url)
        for video in store.videos().to_pylist():
            if video["status"] != "failed":
                assert len(store.tokens(video["uri"])) == video["kept"]
        assert [row["uri"] for row in store.failures().to_pylist()] == [BAD]
        return [(row["uri"], row["status"], row["kept"]) for row in store.videos().to_pylist()]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Files and rows of a run that nothing disturbed."""
    archive = Archive.planned(tmp_path_factory.mktemp("clean"))
    archive.index(archive.lease("clean"))
    assert list(verify(archive.storage.url)) == []
    return archive.counted(), archive.rows()


@pytest.fixture
def rclone_url(rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty place on a server that ignores conditions of puts."""
    # Nobody races for the lease here.
    monkeypatch.setattr(s3_client, "SETTLE_S", 0.0)
    use_s3(S3Options(endpoint=rclone_endpoint, patience_s=20))
    yield f"s3://bucket/{uuid.uuid4().hex}"
    use_s3(S3Options())


class Held:
    """Lets a writer pass until its look number `at`, then does `meanwhile`, and lets it go on."""

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        self._at, self._meanwhile, self.looks = at, meanwhile, 0

    def __call__(self) -> None:
        self.looks += 1
        if self.looks == self._at + 2:
            self._meanwhile()


def overtaken(archive: Archive, job: str, step: int, *, before: bool) -> None:
    """A run that is overtaken with the put of `step` under way, and the one that follows.

    `before`: the put lands when that has begun, and has written nothing yet; else once it has ended.
    """
    follower: list[tuple[Lease, Mapping[str, Receipt]]] = []

    def follow() -> None:
        follower.append((archive.lease("follower"), sweep(archive.storage).receipts))
        if not before:
            archive.index(follower[0][0], receipts=follower[0][1])

    late = archive.lease("late")
    work = {"index": partial(archive.index, most=1), "rewrite": archive.rewrite, "merge": archive.merge}
    # In a folder what it was about to put lies in `.tmp`, which the follower has cleared: a receipt alone can be late.
    with pytest.raises(StoreError, match=r"took over|No such file"):
        work[job](late, Held(step, follow))
        # The receipt was the last put: nobody tells the writer.
        check(archive.storage, late.epoch)
    if before:
        archive.index(follower[0][0], receipts=follower[0][1])


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("job", ["index", "rewrite", "merge"])
def test_a_late_put_changes_nothing_that_counts(
    tmp_path: Path, clean: Clean, job: str, step: int, before: bool
) -> None:
    assert_unharmed(Archive.planned(tmp_path), clean, job, step, before=before)


# A file of failures, of which no two are alike, and receipts.
@pytest.mark.parametrize(
    ("job", "step", "before"),
    [("index", 2, False), ("index", 4, True), ("index", 4, False), ("rewrite", 4, False)],
)
def test_nor_does_it_on_a_server_that_ignores_conditions(
    rclone_url: str, clean: Clean, job: str, step: int, before: bool
) -> None:
    assert_unharmed(Archive.planned(rclone_url), clean, job, step, before=before)


def assert_unharmed(archive: Archive, clean: Clean, job: str, step: int, *, before: bool) -> None:
    if job != "index":
        archive.index(archive.lease("first"))
    overtaken(archive, job, step, before=before)
    if job == "index" or before or step < STEPS - 1:
        # Each video once, all of it there, for readers too.
        assert archive.rows() == clean[1] and archive.counted() == clean[0]
        assert all("run gc" in line for line in verify(archive.storage.url))
    else:
        # A receipt of files that the follower had removed: a reader is told so, and sees no row of another video.
        with pytest.raises(StoreError, match="is gone"):
            archive.rows()
    if before:
        assert list(verify(archive.storage.url)) == []
    sweep(archive.storage)
    assert archive.rows() == clean[1] and archive.counted() == clean[0]
    assert list(verify(archive.storage.url)) == []


def test_two_writers_at_once_count_once(tmp_path: Path, clean: Clean) -> None:
    """A machine that Ray takes for lost goes on writing under the lease of the run that has given its shard to another."""
    archive = Archive.planned(tmp_path)
    lease = archive.lease("both")
    other = partial(archive.index, lease, receipts={}, most=1)
    archive.index(lease, Held(STEPS - 1, other), receipts={}, most=1)
    archive.index(lease, receipts=read_receipts(archive.storage))
    assert archive.rows() == clean[1] and archive.counted() == clean[0]
    sweep(archive.storage)
    assert list(verify(archive.storage.url)) == []


def test_a_driver_that_has_lost_the_store_removes_nothing_more(tmp_path: Path, clean: Clean) -> None:
    """What it was to remove, since a killed run had left it without a receipt, its successor has written again."""
    archive = Archive.planned(tmp_path)
    archive.index(archive.lease("killed"))
    for receipt in read_receipts(archive.storage).values():
        archive.storage.remove(receipt.name)
    slow = archive.lease("slow")
    follow = Held(-1, lambda: archive.index(archive.lease("follower"), receipts={}))
    with pytest.raises(StoreError, match="took over"):
        sweep(archive.storage, check_epoch=partial(archive._look, slow, follow))
    # The first was past its look.
    lost = [line for line in verify(archive.storage.url) if "run gc" not in line]
    assert len(lost) <= 1 and follow.looks == 1


def test_damage_is_not_taken_for_a_late_receipt(tmp_path: Path) -> None:
    archive = Archive.planned(tmp_path)
    archive.index(archive.lease("first"))
    one, other = read_receipts(archive.storage).values()
    archive.storage.remove(one.files[0].name)
    assert sweep(archive.storage).left == [] and len(read_receipts(archive.storage)) == 2
    for receipt in (one, other):
        for file in receipt.files:
            archive.storage.remove(file.name)
    # Of a store none of whose files are there, as where their disk is not mounted, nothing is known.
    assert sweep(archive.storage).left == [] and len(read_receipts(archive.storage)) == 2
