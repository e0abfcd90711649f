"""The driver's part of any run of shards: workers start, their events are counted, shown and measured, failures limited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipelines.crew import Crew, workers_now
from pipelines.events import Event, QuestionDone, VideoDone
from pipelines.max_failed import MaxFailed
from pipelines.metrics import RunMetrics
from pipelines.schedule import Scheduler, ShardLike
from pipelines.throttle import SNAPSHOT_EVERY_S, Throttle

OnProgress = Callable[[dict[str, Any]], None]


class RunTally(Protocol):
    """Running totals of videos or of questions: `Tally`, `AnswerTally`."""

    @property
    def failed(self) -> int:
        """Failed items so far."""
        ...

    @property
    def error_classes(self) -> Mapping[str, int]:
        """How often which class, of shards that are committed."""
        ...

    def add(self, shard_id: str, event: Event) -> None:
        """Counts an event."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """The numbers of a progress line."""
        ...

    def totals(self) -> dict[tuple[str, str], float]:
        """The totals by the names of metrics.py."""
        ...


def drive(
    shards: Sequence[ShardLike],
    make_worker: Callable[[], Any],
    tally: RunTally,
    *,
    job: str,
    people: Crew,
    fixed: bool,
    of: int,
    max_failed: str | None,
    on_progress: OnProgress,
    what: str = "video",
    worker_name: str = "encoder",
) -> Scheduler:
    """Runs the shards on the connected Ray, over `of` items in all; returns who ran them.

    `fixed`: whether the user said how many workers. `max_failed`: as of `MaxFailed.parse`. `what`, `worker_name`: what an
    item and a worker are called.
    """
    metrics = RunMetrics(job)
    limit = MaxFailed.parse(max_failed, of=of)
    snapshots = Throttle(SNAPSHOT_EVERY_S)

    def on_event(shard_id: str, event: Event) -> None:
        tally.add(shard_id, event)
        if isinstance(event, VideoDone | QuestionDone) and event.status == "failed":
            limit.check(tally.failed, of=of, what=f"{what}s", classes=tally.error_classes)
        if snapshots.is_due():
            on_progress(tally.snapshot())
        if metrics.is_due():
            metrics.show(tally.totals())

    metrics.show(tally.totals())
    on_progress(tally.snapshot())
    scheduler = Scheduler(
        make_worker=make_worker,
        workers=workers_now(people, fixed=fixed),
        on_event=on_event,
        what=what,
        worker_name=worker_name,
    )
    try:
        scheduler.run(shards)
    finally:
        metrics.show(tally.totals())
    on_progress(tally.snapshot())
    return scheduler
