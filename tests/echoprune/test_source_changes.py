"""Source files that are no longer those that a store was made from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from echoprune.plan import Source, extend_plan, load_plan
from echoprune.receipt import read_receipts
from echoprune.source_changes import _changes_in_s3, source_changes
from echoprune.sources import content_id, list_sources
from echoprune.storage import Storage
from echoprune.store import create_store, open_store
from tests import stores as made

BEGUN = 1_800_000_000


def test_what_changed_and_what_vanished(tmp_path: Path) -> None:
    """The store was made at BEGUN from files of 1,000 bytes; then all kinds of things happened to them."""
    archive = tmp_path / "archive"
    archive.mkdir()
    settings = made.settings()
    names = ("same", "touched", "rewritten", "grown", "gone", "waiting", "waiting gone")
    sources = []
    for name in names:
        path = archive / f"{name}.mp4"
        path.write_bytes(name.encode().ljust(1000, b"."))
        os.utime(path, (BEGUN - 100, BEGUN - 100))
        sources.append(Source(str(path), 1000))
    # Not there when they were planned; the last came later, and a retry indexed it.
    (archive / "retried.mp4").write_bytes(b"retried")
    sources += [Source(str(archive / f"{name}.mp4")) for name in ("never there", "came", "retried")]
    sources += [Source("https://host/far.mp4", 5)]
    storage = create_store(tmp_path / "store", settings)
    shards = extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=99)
    assert len(shards) == 1
    with storage.tmp_dir() as folder:
        writer = made.ShardWriter(folder, settings, shards[0].shard_id)
        for source in [*sources[:5], sources[9]]:
            made.add_clip(writer, settings, made.clip(source.uri, settings))
            # The made-up row has no content id: give it that of the file.
            writer._videos[-1] |= {"content_id": content_id(source.uri), "size_bytes": source.size_bytes}
        for source in [*sources[7:9], sources[10]]:
            made.add_failed(writer, source.uri)
        files = writer.close()
        receipt = replace(
            made.receipt(writer, files, shards[0].shard_id), started_at="2027-01-15T08:00:00+00:00"
        )
        made.commit(storage, files, receipt, check_epoch=lambda: None)
    assert list(read_receipts(storage))
    later = BEGUN + 100
    os.utime(archive / "touched.mp4", (later, later))
    (archive / "rewritten.mp4").write_bytes(b"x" * 1000)
    os.utime(archive / "rewritten.mp4", (later, later))
    (archive / "grown.mp4").write_bytes(b"x" * 1001)
    (archive / "gone.mp4").unlink()
    (archive / "waiting gone.mp4").unlink()
    (archive / "came.mp4").write_bytes(b"x")
    store = open_store(tmp_path / "store")
    found = source_changes(store, load_plan(storage))
    assert {Path(uri).name for uri in found["changed"]} == {"rewritten.mp4", "grown.mp4", "came.mp4"}
    assert {Path(uri).name for uri in found["vanished"]} == {"gone.mp4", "waiting gone.mp4"}
    assert found["unchecked"] == 1


def test_what_changed_and_what_vanished_in_s3(tmp_path: Path, s3_url: str) -> None:
    archive, settings = Storage(s3_url), made.settings()
    names = ("same", "other bytes", "grown", "gone", "waiting", "came")
    for name in names[:-1]:
        archive.write_bytes(f"{name.replace(' ', '-')}.mp4", name.encode())
    sources = list_sources([f"{s3_url}/", f"{s3_url}/came.mp4", f"{s3_url}/never.mp4"])
    storage = create_store(tmp_path / "store", settings)
    extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=99)
    archive.write_bytes("other-bytes.mp4", b"OTHER BYTES")
    archive.write_bytes("grown.mp4", b"grown and more")
    archive.remove("gone.mp4")
    archive.write_bytes("came.mp4", b"came")
    found = source_changes(open_store(tmp_path / "store"), load_plan(storage))
    assert sorted(Path(uri).stem for uri in found["changed"]) == ["came", "grown", "other-bytes"]
    assert [Path(uri).stem for uri in found["vanished"]] == ["gone"] and found["unchecked"] == 0
    # It came after it was planned, and a retry indexed it: its size and etag then are not kept.
    row = {"uri": f"{s3_url}/came.mp4", "size_bytes": None, "etag": None, "content_id": "c" * 32}
    assert list(_changes_in_s3([row])) == ["unchecked"]
