"""What a run tells Prometheus: totals by name, shown by the driver through Ray's own exporter.

All of them come from the driver, which learns of everything that workers do: a worker that is killed at the end of a run
takes no number with it. They are the numbers of `run_report.json`, and count what was committed; seconds of workers also
count what is under way. `infra/grafana.json` draws them.

The label of a run's command is `command`: Prometheus gives a label `job` of its own to everything from one place. Each
counter is there from the beginning of a run, at zero: Prometheus counts from the first value that it has seen on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray.util.metrics import Counter

from pipelines.throttle import Throttle

# As good as zero, and so many times smaller than 1 that it vanishes beside it: Ray (2.60) takes no zero.
_ZERO = 5e-324
# Seconds between two looks at the totals; Ray exports every 10 s.
_EVERY_S = 1.0


@dataclass(frozen=True)
class Metric:
    """A counter. `label`: what its parts are told apart by, beside `command`; empty where it has none."""

    description: str
    label: str = ""


# By the names that Ray puts `ray_` before.
METRICS = {
    "echoprune_videos_total": Metric("Videos indexed.", "status"),
    "echoprune_video_seconds_total": Metric("Seconds of video indexed."),
    "echoprune_tokens_seen_total": Metric("Visual tokens that were scored."),
    "echoprune_tokens_kept_total": Metric("Visual tokens that were stored."),
    "echoprune_questions_total": Metric("Questions answered.", "status"),
    "echoprune_visual_tokens_total": Metric("Visual tokens that the language model saw."),
    "echoprune_new_tokens_total": Metric("Tokens of text that were generated."),
    "echoprune_shards_total": Metric("Shards committed."),
    "echoprune_bytes_total": Metric("Bytes committed."),
    "echoprune_worker_seconds_total": Metric(
        "Time of workers: wait (for frames), encode, answer, commit (with no other work beside it).", "doing"
    ),
    "echoprune_s3_requests_total": Metric("Requests to S3, by outcome: asked, repeated, refused.", "outcome"),
}

# (name, value of its label) -> total of this run so far.
Totals = Mapping[tuple[str, str], float]


class RunMetrics:
    """Shows the totals of one run of `command` as they grow."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._counters: dict[str, Counter] = {}
        self._shown: dict[tuple[str, str], float] = {}
        self._looks = Throttle(_EVERY_S)

    def is_due(self) -> bool:
        """Whether it is time for another look."""
        return self._looks.is_due()

    def show(self, totals: Totals) -> None:
        """Adds what `totals` are above what was shown before; one that fell (a shard is run again) stays as it was."""
        for (name, value), total in totals.items():
            before = self._shown.get((name, value))
            if before is None or total > before:
                self._counter(name).inc(total - (before or 0.0) or _ZERO, tags=self._tags(name, value))
                self._shown[name, value] = total

    def _tags(self, name: str, value: str) -> dict[str, str]:
        label = METRICS[name].label
        return {"command": self._command} | ({label: value} if label else {})

    def _counter(self, name: str) -> Counter:
        if name not in self._counters:
            metric = METRICS[name]
            keys = ("command", metric.label) if metric.label else ("command",)
            self._counters[name] = Counter(name, description=metric.description, tag_keys=keys)
        return self._counters[name]


def worker_totals(seconds: Mapping[str, float], s3: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """What index and answer runs have in common: seconds of workers, and requests to S3 as in the report."""
    outcomes = {"requests": "asked", "retries": "repeated", "slow_downs": "refused"}
    return {("echoprune_worker_seconds_total", doing): spent for doing, spent in seconds.items()} | {
        ("echoprune_s3_requests_total", outcome): float(s3.get(name, 0)) for name, outcome in outcomes.items()
    }
