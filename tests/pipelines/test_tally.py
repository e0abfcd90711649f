"""Running totals: nothing counted twice, whatever is run again."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from echoprune.s3_objects import S3Counts
from pipelines.events import (
    CellsDone,
    QuestionDone,
    QuestionsStarted,
    ShardCommitted,
    VideoDone,
    VideoStarted,
    in_hand,
)
from pipelines.metrics import METRICS
from pipelines.tally import MOST_FAILURES, Tally


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


def test_totals_for_metrics_are_those_of_the_report_and_seconds_grow_with_the_work() -> None:
    tally = Tally(videos=2, source_bytes=1)
    for event in (done("a"), CellsDone("b", 40, 4.0, wait_s=0.25, encode_s=1.5)):
        tally.add("s", event)
    under_way = tally.totals()
    assert under_way["echoprune_worker_seconds_total", "encode"] == 1.5
    assert under_way["echoprune_tokens_seen_total", ""] == 0
    for event in (done("b", status="failed"), replace(committed("s"), s3=S3Counts(7, 2, 1))):
        tally.add("s", event)
    totals, report = tally.totals(), tally.report()
    # All are there from the beginning on.
    assert totals.keys() == Tally(videos=2, source_bytes=1).totals().keys()
    assert report["s3"] == {"requests": 7, "retries": 2, "slow_downs": 1}
    assert {name for name, _ in totals} < set(METRICS)
    assert totals == {
        ("echoprune_videos_total", "ok"): 1,
        ("echoprune_videos_total", "partial"): 0,
        ("echoprune_videos_total", "failed"): 1,
        ("echoprune_video_seconds_total", ""): report["video_hours"] * 3600,
        ("echoprune_tokens_seen_total", ""): report["tokens_seen"],
        ("echoprune_tokens_kept_total", ""): report["tokens_kept"],
        ("echoprune_shards_total", ""): 1,
        ("echoprune_bytes_total", ""): 1000,
        ("echoprune_worker_seconds_total", "wait"): 1.0,
        ("echoprune_worker_seconds_total", "encode"): 3.0,
        ("echoprune_worker_seconds_total", "commit"): 0.5,
        ("echoprune_s3_requests_total", "asked"): 7,
        ("echoprune_s3_requests_total", "repeated"): 2,
        ("echoprune_s3_requests_total", "refused"): 1,
    }


def test_time_left_follows_the_bytes_done_or_the_videos_where_sizes_are_unknown() -> None:
    for source_bytes, videos in ((4000, 9), (0, 4)):
        tally = Tally(videos=videos, source_bytes=source_bytes)
        assert tally.snapshot()["eta_s"] is None
        tally.add("s", done("a"))
        found = tally.snapshot()
        assert found["eta_s"] == pytest.approx(3 * found["elapsed_s"])


def test_a_report_has_a_bounded_list_of_failures() -> None:
    tally = Tally(videos=MOST_FAILURES + 5, source_bytes=1)
    for number in range(MOST_FAILURES + 5):
        tally.add("s", done(f"v{number}", status="failed"))
    tally.add("s", committed("s"))
    report = tally.report()
    assert report["failures"] == [(f"/v{n}.mp4", "empty", "0 bytes") for n in range(MOST_FAILURES)]
    assert report["failures_left_out"] == 5 and report["videos"]["failed"] == MOST_FAILURES + 5


def test_events_of_a_large_shard_cost_the_same_each() -> None:
    """A merged shard has up to 20,000 videos, all of them announced by a retry before its receipt."""
    tally = Tally(videos=1, source_bytes=1)
    events = [done(f"v{number}") for number in range(20_000)]
    began = time.process_time()
    for event in events:
        tally.add("s", event)
    # 0.02 s here; 14 s where each event looked at those before it.
    assert time.process_time() - began < 3
    tally.add("s", committed("s"))
    assert tally.report()["videos"]["done"] == 20_000


def test_what_a_worker_has_in_hand() -> None:
    assert in_hand(VideoStarted("a")) == ("a",) and in_hand(QuestionsStarted(("a", "b"))) == ("a", "b")
    assert in_hand(CellsDone("a", 1, 1.0)) is None
    assert in_hand(QuestionDone("a", "ok", "", "", 1, 1)) == ()
    assert in_hand(ShardCommitted("s", 1, 0.0, 0.0, 0.0)) == ()
