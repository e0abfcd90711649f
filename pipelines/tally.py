"""Running totals of a run: what the progress line shows while it runs, and `run_report.json` says at the end."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from echoprune.s3_objects import S3Counts, s3_counts
from echoprune.schema import STATUSES
from pipelines.events import CellsDone, Event, ShardCommitted, VideoDone
from pipelines.metrics import worker_totals

# A million failures would be a report of 200 MB; each has its row in the tables.
MOST_FAILURES = 1000


@dataclass
class Tally:
    """Totals of this run, fed with events. "Before" counts what earlier runs had finished.

    `failures`: (uri, error_class, error) of the first MOST_FAILURES.
    """

    videos: int
    source_bytes: int
    done_before: int = 0
    started_s: float = field(default_factory=time.monotonic)
    done: int = 0
    done_bytes: int = 0
    status: Counter[str] = field(default_factory=Counter)
    error_classes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    video_s: float = 0.0
    tokens: int = 0
    kept: int = 0
    store_bytes: int = 0
    shards: int = 0
    worker_s: Counter[str] = field(default_factory=Counter)
    s3: Counter[str] = field(default_factory=Counter)
    decoders: int = 0
    _s3_before: S3Counts = field(default_factory=s3_counts)
    # wait_s, encode_s of shards under way.
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)
    _running: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    _uncommitted: dict[str, dict[str, VideoDone]] = field(default_factory=dict)

    def add(self, shard_id: str, event: Event) -> None:
        """Counts an event. Totals of a shard that had to be run again are not counted twice."""
        if isinstance(event, CellsDone):
            self._running[shard_id, event.video_id] = (event.tokens, event.video_s)
            self._spent[shard_id] = (event.wait_s, event.encode_s)
        elif isinstance(event, VideoDone):
            # A shard that is run again announces its videos again: the last word counts.
            self._uncommitted.setdefault(shard_id, {})[event.video_id] = event
            self._running.pop((shard_id, event.video_id), None)
        elif isinstance(event, ShardCommitted):
            for video in self._uncommitted.pop(shard_id, {}).values():
                self._count(video)
            self._running = {key: value for key, value in self._running.items() if key[0] != shard_id}
            self.shards += 1
            self.store_bytes += event.bytes
            self.worker_s.update({"wait": event.wait_s, "encode": event.encode_s, "commit": event.commit_s})
            self.s3.update(asdict(event.s3))
            self.decoders = max(self.decoders, event.decoders)
            self._spent.pop(shard_id, None)

    def _count(self, video: VideoDone) -> None:
        self.done += 1
        self.done_bytes += video.source_bytes
        self.status[video.status] += 1
        self.video_s += video.video_s
        self.tokens += video.tokens
        self.kept += video.kept
        if video.status != "ok":
            self.error_classes[video.error_class] += 1
        if video.status == "failed" and len(self.failures) < MOST_FAILURES:
            self.failures.append((video.uri, video.error_class, video.error))

    @property
    def failed(self) -> int:
        """Failed videos so far, those of shards that are not committed yet included."""
        pending = sum(
            video.status == "failed" for shard in self._uncommitted.values() for video in shard.values()
        )
        return self.status["failed"] + pending

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started_s

    def snapshot(self) -> dict[str, Any]:
        """The numbers of a progress line, videos still in an uncommitted shard included."""
        pending = [video for shard in self._uncommitted.values() for video in shard.values()]
        video_s = self.video_s + sum(v.video_s for v in pending) + sum(s for _, s in self._running.values())
        tokens = self.tokens + sum(v.tokens for v in pending) + sum(n for n, _ in self._running.values())
        done = self.done + len(pending)
        elapsed = self.elapsed_s
        # By bytes, since long videos come first; by number where sizes are not known.
        share = (self.done_bytes + sum(v.source_bytes for v in pending)) / (self.source_bytes or 1)
        if not self.source_bytes:
            share = done / (self.videos or 1)
        return {
            "videos_done": done + self.done_before,
            "videos": self.videos + self.done_before,
            "failed": self.failed,
            "partial": self.status["partial"] + sum(v.status == "partial" for v in pending),
            "video_hours": video_s / 3600,
            "video_hours_per_hour": video_s / elapsed if elapsed > 0 else 0.0,
            "tokens_seen": tokens,
            "tokens_kept": self.kept + sum(v.kept for v in pending),
            "elapsed_s": elapsed,
            "eta_s": elapsed / share * (1 - share) if share else None,
        }

    def report(self) -> dict[str, Any]:
        """The totals for `run_report.json`: committed work only."""
        worker_s = sum(self.worker_s.values())
        return {
            "videos": {"done": self.done, "of": self.videos, "before": self.done_before, **dict(self.status)},
            "errors": dict(self.error_classes),
            "failures": self.failures,
            "failures_left_out": self.status["failed"] - len(self.failures),
            "video_hours": self.video_s / 3600,
            "video_hours_per_hour": self.video_s / self.elapsed_s if self.elapsed_s else 0.0,
            "tokens_seen": self.tokens,
            "tokens_kept": self.kept,
            "store_bytes": self.store_bytes,
            "shards": self.shards,
            "elapsed_s": self.elapsed_s,
            "worker_s": dict(self.worker_s),
            "s3": self.s3_requests(),
            "decoders": self.decoders,
            "encoder_busy": self.worker_s["encode"] / worker_s if worker_s else None,
        }

    def totals(self) -> dict[tuple[str, str], float]:
        """The same as `report` has, by the names of metrics.py, zeros too; seconds of shards that are under way included."""
        seconds = Counter({"wait": 0.0, "encode": 0.0, "commit": 0.0})
        seconds.update(self.worker_s)
        for wait_s, encode_s in self._spent.values():
            seconds.update({"wait": wait_s, "encode": encode_s})
        return {("echoprune_videos_total", status): float(self.status[status]) for status in STATUSES} | {
            ("echoprune_video_seconds_total", ""): self.video_s,
            ("echoprune_tokens_seen_total", ""): float(self.tokens),
            ("echoprune_tokens_kept_total", ""): float(self.kept),
            ("echoprune_shards_total", ""): float(self.shards),
            ("echoprune_bytes_total", ""): float(self.store_bytes),
            **worker_totals(seconds, self.s3_requests()),
        }

    def s3_requests(self) -> dict[str, int]:
        """Requests to S3 of this run: the driver's, and those of workers for shards that are committed."""
        return dict(self.s3 + Counter(asdict(s3_counts() - self._s3_before)))
