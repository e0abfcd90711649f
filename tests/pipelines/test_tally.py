"""Running totals: nothing counted twice, whatever is run again."""

from __future__ import annotations

import pytest

from pipelines.events import CellsDone, ShardCommitted, VideoDone, VideoStarted
from pipelines.tally import Tally


def done(video: str, *, status: str = "ok", tokens: int = 100) -> VideoDone:
    failed = status == "failed"
    return VideoDone(
        video, f"/{video}.mp4", status, 1000, 0.0 if failed else 10.0, 0 if failed else 10, 0 if failed else tokens,
        0 if failed else 25, "empty" if failed else "", "0 bytes" if failed else "",
    )  # fmt: skip


def committed(shard: str) -> ShardCommitted:
    return ShardCommitted(shard, bytes=1000, wait_s=1.0, encode_s=3.0, commit_s=0.5)


def test_totals_of_committed_shards() -> None:
    tally = Tally(videos=3, source_bytes=1, done_before=2)
    for event in (
        VideoStarted("a"),
        done("a"),
        VideoStarted("b"),
        done("b", status="failed"),
        committed("s"),
    ):
        tally.add("s", event)
    report = tally.report()
    assert report["videos"] == {"done": 2, "of": 3, "before": 2, "ok": 1, "failed": 1}
    assert (report["tokens_seen"], report["tokens_kept"], report["store_bytes"]) == (100, 25, 1000)
    assert report["errors"] == {"empty": 1} and tally.failures == [("/b.mp4", "empty", "0 bytes")]
    assert report["encoder_busy"] == 3.0 / 4.5


def test_a_snapshot_shows_work_in_progress_and_the_report_does_not() -> None:
    tally = Tally(videos=2, source_bytes=1)
    tally.add("s", done("a"))
    tally.add("s", CellsDone("b", tokens=40, video_s=4.0))
    seen = tally.snapshot()
    assert (seen["videos_done"], seen["tokens_seen"], seen["video_hours"]) == (1, 140, 14.0 / 3600)
    assert tally.report()["tokens_seen"] == 0
    tally.add("s", CellsDone("b", tokens=60, video_s=6.0))
    assert tally.snapshot()["tokens_seen"] == 160


def test_a_shard_that_is_run_again_counts_once() -> None:
    tally = Tally(videos=2, source_bytes=1)
    for event in (done("a"), CellsDone("b", 40, 4.0), done("a"), done("b", status="failed"), committed("s")):
        tally.add("s", event)
    assert tally.report()["videos"]["done"] == 2
    assert tally.snapshot()["tokens_seen"] == tally.report()["tokens_seen"] == 100
    assert tally.snapshot()["failed"] == 1


def test_time_left_follows_the_bytes_done_or_the_videos_where_sizes_are_unknown() -> None:
    for source_bytes, videos in ((4000, 9), (0, 4)):
        tally = Tally(videos=videos, source_bytes=source_bytes)
        assert tally.snapshot()["eta_s"] is None
        tally.add("s", done("a"))
        found = tally.snapshot()
        assert found["eta_s"] == pytest.approx(3 * found["elapsed_s"])
