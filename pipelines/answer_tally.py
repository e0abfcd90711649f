"""Running totals of an answer run: what the progress line shows while it runs, and `run_report.json` says at the end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from echoprune.s3_objects import S3Counts, s3_counts
from pipelines.events import Event, QuestionDone, ShardCommitted
from pipelines.metrics import worker_totals
from pipelines.tally import MOST_FAILURES


@dataclass
class AnswerTally:
    """Totals of this run, fed with events. "Before" counts what earlier runs had finished.

    `failures`: (question_id, error_class, error) of the first MOST_FAILURES.
    """

    questions: int
    done_before: int = 0
    started_s: float = field(default_factory=time.monotonic)
    done: int = 0
    status: Counter[str] = field(default_factory=Counter)
    error_classes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    visual_tokens: int = 0
    new_tokens: int = 0
    answer_bytes: int = 0
    shards: int = 0
    worker_s: Counter[str] = field(default_factory=Counter)
    s3: Counter[str] = field(default_factory=Counter)
    _s3_before: S3Counts = field(default_factory=s3_counts)
    _uncommitted: dict[str, dict[tuple[str, str], QuestionDone]] = field(default_factory=dict)

    def add(self, shard_id: str, event: Event) -> None:
        """Counts an event. Totals of a shard that had to be run again are not counted twice."""
        if isinstance(event, QuestionDone):
            # Bad rows may share the id of a good one; their error names the row.
            key = (event.question_id, event.error if event.error_class == "bad_row" else "")
            # A shard that is run again answers its questions again: the last word counts.
            self._uncommitted.setdefault(shard_id, {})[key] = event
        elif isinstance(event, ShardCommitted):
            for each in self._uncommitted.pop(shard_id, {}).values():
                self._count(each)
            self.shards += 1
            self.answer_bytes += event.bytes
            self.worker_s.update({"answer": event.encode_s, "commit": event.commit_s})
            self.s3.update(asdict(event.s3))

    def _count(self, each: QuestionDone) -> None:
        self.done += 1
        self.status[each.status] += 1
        self.visual_tokens += each.tokens
        self.new_tokens += each.new_tokens
        if each.status == "failed":
            self.error_classes[each.error_class] += 1
            if len(self.failures) < MOST_FAILURES:
                self.failures.append((each.question_id, each.error_class, each.error))

    @property
    def failed(self) -> int:
        """Failed questions so far, those of shards that are not committed yet included."""
        pending = sum(
            each.status == "failed" for shard in self._uncommitted.values() for each in shard.values()
        )
        return self.status["failed"] + pending

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started_s

    def snapshot(self) -> dict[str, Any]:
        """The numbers of a progress line, answers still in an uncommitted shard included."""
        pending = [each for shard in self._uncommitted.values() for each in shard.values()]
        done, elapsed = self.done + len(pending), self.elapsed_s
        rate = done / elapsed if elapsed > 0 else 0.0
        return {
            "questions_done": done + self.done_before,
            "questions": self.questions + self.done_before,
            "failed": self.failed,
            "empty": self.status["empty"] + sum(each.status == "empty" for each in pending),
            "questions_per_s": rate,
            "visual_tokens": self.visual_tokens + sum(each.tokens for each in pending),
            "new_tokens": self.new_tokens + sum(each.new_tokens for each in pending),
            "elapsed_s": elapsed,
            "eta_s": (self.questions - done) / rate if rate else None,
        }

    def report(self) -> dict[str, Any]:
        """The totals for `run_report.json`: committed work only."""
        worker_s = sum(self.worker_s.values())
        return {
            "questions": {
                "done": self.done,
                "of": self.questions,
                "before": self.done_before,
                **dict(self.status),
            },
            "errors": dict(self.error_classes),
            "failures": self.failures,
            "failures_left_out": self.status["failed"] - len(self.failures),
            "questions_per_s": self.done / self.elapsed_s if self.elapsed_s else 0.0,
            "visual_tokens": self.visual_tokens,
            "new_tokens": self.new_tokens,
            "answer_bytes": self.answer_bytes,
            "shards": self.shards,
            "elapsed_s": self.elapsed_s,
            "worker_s": dict(self.worker_s),
            "s3": self.s3_requests(),
            "answerer_busy": self.worker_s["answer"] / worker_s if worker_s else None,
        }

    def totals(self) -> dict[tuple[str, str], float]:
        """The same as `report` has, by the names of metrics.py, zeros too."""
        seconds = {doing: self.worker_s[doing] for doing in ("answer", "commit")}
        return {
            ("echoprune_questions_total", status): float(self.status[status])
            for status in ("ok", "empty", "failed")
        } | {
            ("echoprune_visual_tokens_total", ""): float(self.visual_tokens),
            ("echoprune_new_tokens_total", ""): float(self.new_tokens),
            ("echoprune_shards_total", ""): float(self.shards),
            ("echoprune_bytes_total", ""): float(self.answer_bytes),
            **worker_totals(seconds, self.s3_requests()),
        }

    def s3_requests(self) -> dict[str, int]:
        """Requests to S3 of this run: the driver's, and those of workers for shards that are committed."""
        return dict(self.s3 + Counter(asdict(s3_counts() - self._s3_before)))
