"""Running totals of answers: nothing counted twice, whatever is run again."""

from __future__ import annotations

from pipelines.answer_tally import MOST_FAILURES, AnswerTally
from pipelines.events import QuestionDone, QuestionsStarted, ShardCommitted


def done(question_id: str, *, status: str = "ok", error_class: str = "", error: str = "") -> QuestionDone:
    tokens = 100 if status == "ok" else 0
    return QuestionDone(question_id, status, error_class, error, tokens=tokens, new_tokens=tokens // 10)


def committed(shard: str) -> ShardCommitted:
    return ShardCommitted(shard, bytes=1000, wait_s=0.0, encode_s=3.0, commit_s=1.0)


def test_totals_of_committed_shards() -> None:
    tally = AnswerTally(questions=4, done_before=2)
    for event in (
        QuestionsStarted(("a", "b")),
        done("a"),
        done("b", status="failed", error_class="unknown_video", error="no video"),
        done("c", status="empty"),
        committed("s"),
    ):
        tally.add("s", event)
    tally.add("t", done("d"))
    report = tally.report()
    assert report["questions"] == {"done": 3, "of": 4, "before": 2, "ok": 1, "empty": 1, "failed": 1}
    assert (report["visual_tokens"], report["new_tokens"], report["answer_bytes"]) == (100, 10, 1000)
    assert report["errors"] == {"unknown_video": 1} and report["answerer_busy"] == 0.75
    assert tally.failures == [("b", "unknown_video", "no video")]
    seen = tally.snapshot()
    assert (seen["questions_done"], seen["questions"], seen["failed"], seen["empty"]) == (6, 6, 1, 1)
    assert seen["visual_tokens"] == 200 and seen["eta_s"] == 0.0


def test_a_shard_that_is_run_again_counts_once_and_its_last_word_counts() -> None:
    tally = AnswerTally(questions=2)
    tally.add("s", done("a"))
    tally.add("s", done("b"))
    for event in (
        done("a", status="failed", error_class="killed_worker", error="x"),
        done("b"),
        committed("s"),
    ):
        tally.add("s", event)
    assert tally.report()["questions"] == {"done": 2, "of": 2, "before": 0, "ok": 1, "failed": 1}


def test_bad_rows_that_share_an_id_count_each() -> None:
    tally = AnswerTally(questions=3)
    bad = {"status": "failed", "error_class": "bad_row"}
    for event in (
        done("a"),
        done("a", error="row 2", **bad),
        done("a", error="row 3", **bad),
        committed("s"),
    ):
        tally.add("s", event)
    assert tally.report()["questions"] == {"done": 3, "of": 3, "before": 0, "ok": 1, "failed": 2}


def test_before_anything_is_done_there_is_no_end_in_sight() -> None:
    assert AnswerTally(questions=3).snapshot()["eta_s"] is None


def test_the_report_lists_no_more_failures_than_it_can_hold() -> None:
    tally = AnswerTally(questions=MOST_FAILURES + 5)
    for number in range(MOST_FAILURES + 5):
        tally.add("s", done(f"q{number}", status="failed", error_class="unknown_video", error="x"))
    tally.add("s", committed("s"))
    report = tally.report()
    assert report["failures"] == [(f"q{n}", "unknown_video", "x") for n in range(MOST_FAILURES)]
    assert report["failures_left_out"] == 5 and report["questions"]["failed"] == MOST_FAILURES + 5
