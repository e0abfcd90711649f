"""Which worker does which shard, and who is to blame when a worker dies. Knows ids and events, never tensors.

Ray restarts nothing (`max_restarts=0`): this module counts. A worker announces the items that it has in hand, one video
or a batch of questions, so that a death is blamed on those. An item that kills its worker twice is quarantined: its
shard runs again without it, and it becomes a failed row. Of a batch that does, each item is had in hand alone from then
on. Deaths that no item explains, and errors of disk and Ray, count against the shard: three end the run.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray

from echoprune.errors import ConfigError, EchoPruneError, ModelError, StoreError
from pipelines.events import Event, in_hand

log = logging.getLogger(__name__)

DEATHS_PER_VIDEO = 2
DEATHS_PER_SHARD = 3
# An encoder that dies while loading may have been killed from outside; this often it is the model.
LOADS = 3
# Disk, network and Ray's own memory: no video's doing, even while one is being encoded.
NO_VIDEOS_DOING = (
    OSError,
    ray.exceptions.ObjectStoreFullError,
    ray.exceptions.OutOfDiskError,
    ray.exceptions.ObjectLostError,
)
# Seconds without any event after which the driver looks whether it was interrupted.
POLL_S = 0.5


class ShardLike(Protocol):
    """What the scheduler needs to know of a shard."""

    @property
    def shard_id(self) -> str:
        """Its id, the same in every run."""
        ...


@dataclass(eq=False)
class _Job:
    """One worker at work on one shard."""

    worker: Any
    shard: Any
    events: Any
    current: tuple[str, ...] = ()


@dataclass
class Scheduler:
    """Runs shards on workers until all are committed.

    `make_worker()` returns a fresh actor handle with `load()` and `run_shard(shard, quarantined)`, the latter a
    streaming generator of events; where it announces several items at once, it also takes the set of those to be had in
    hand `alone`. `on_event(shard_id, event)` is called for each event in the driver. `what`, `worker_name`: an item and a
    worker in words.
    """

    make_worker: Callable[[], Any]
    workers: int
    on_event: Callable[[str, Event], None]
    what: str = "video"
    worker_name: str = "encoder"
    quarantined: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)
    _item_deaths: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _shard_deaths: Counter[str] = field(default_factory=Counter)

    def run(self, shards: Iterable[Any]) -> None:
        """Returns when every shard is committed; raises what broke the run (ConfigError, StoreError, ModelError)."""
        waiting = deque(shards)
        idle = [self._loaded_worker() for _ in range(min(self.workers, len(waiting)))]
        jobs: dict[Any, _Job] = {}
        try:
            while waiting or jobs:
                while waiting and idle:
                    job = self._start(idle.pop(), waiting.popleft())
                    jobs[job.events] = job
                ready, _ = ray.wait(list(jobs), num_returns=1, timeout=POLL_S)
                for events in ready:
                    job = jobs[events]
                    try:
                        event = ray.get(next(events))
                    except StopIteration:
                        del jobs[events]
                        idle.append(job.worker)
                        continue
                    except ray.exceptions.RayError as error:
                        del jobs[events]
                        self._take_back(job, error)
                        waiting.appendleft(job.shard)
                        idle.append(self._loaded_worker())
                        continue
                    items = in_hand(event)
                    if items is not None:
                        job.current = items
                    self.on_event(job.shard.shard_id, event)
        finally:
            for worker in [*idle, *(job.worker for job in jobs.values())]:
                ray.kill(worker)

    def _start(self, worker: Any, shard: Any) -> _Job:
        # The worker waits until an event is consumed: one that dies at once has announced its video all the same
        # (without this the announcement was lost in 2 of 13 runs on a busy machine).
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        known = [frozenset(self.quarantined), *([frozenset(self.alone)] if self.alone else [])]
        events = worker.run_shard.options(**options).remote(shard, *known)
        return _Job(worker, shard, events)

    def _loaded_worker(self) -> Any:
        """A worker whose model is loaded; a model that cannot be loaded ends the run with its own error."""
        for attempt in range(1, LOADS + 1):
            worker = self.make_worker()
            try:
                ray.get(worker.load.remote())
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, EchoPruneError):
                    raise error.cause from None
                raise ModelError(
                    f"the {self.worker_name} could not be started: {_first_line(error.cause)}"
                ) from error
            except ray.exceptions.RayActorError as error:
                log.warning("the %s died while loading the model: %s", self.worker_name, _first_line(error))
                if attempt == LOADS:
                    raise ModelError(
                        f"the {self.worker_name} process died {LOADS} times while loading the model ({_first_line(error)}); "
                        "is there memory enough?"
                    ) from error
            else:
                return worker
        raise AssertionError("the last attempt returns or raises")

    def _take_back(self, job: _Job, error: ray.exceptions.RayError) -> None:
        """Counts a worker's failure against the items it had in hand, or the shard; raises what ends the run."""
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, ConfigError | StoreError | ModelError):
            raise cause from None
        ray.kill(job.worker)
        reason = _first_line(cause)
        if job.current and not isinstance(cause, NO_VIDEOS_DOING):
            self._item_deaths[job.current] += 1
            log.warning("a worker died with %s %s in hand: %s", self.what, ", ".join(job.current), reason)
            if self._item_deaths[job.current] >= DEATHS_PER_VIDEO:
                (self.quarantined if len(job.current) == 1 else self.alone).update(job.current)
            return
        self._shard_deaths[job.shard.shard_id] += 1
        log.warning("a worker died on shard %s: %s", job.shard.shard_id, reason)
        if self._shard_deaths[job.shard.shard_id] >= DEATHS_PER_SHARD:
            raise StoreError(
                f"shard {job.shard.shard_id} broke its worker {DEATHS_PER_SHARD} times with no {self.what} to blame: {reason}"
            )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
