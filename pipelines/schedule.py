"""Which worker does which shard, and who is to blame when a worker dies. Knows ids and events, never tensors.

Ray restarts nothing (`max_restarts=0`): this module counts. A worker announces the items that it has in hand, one video
or a batch of questions, so that a death is blamed on those; so is an error that it raised, of CUDA, of memory or of this
program: which of these it was is seen by doing it again. An item that has ended its worker is had in hand alone from
then on, with nothing prepared beside it, on another GPU or machine if there is one at work; one that does so again is
quarantined: its shard runs again without it, and it becomes a failed row. Of a batch that kills twice each item is had in
hand alone. Where one item after another goes that way, and none is done between, it is the machine: the run ends.

A death that no item explains, and an error of disk, store or Ray, counts against the shard, which runs again elsewhere:
three end the run, and one does where no other worker is left that might fare better. A machine that goes takes its
workers along, which counts against nobody (lost_nodes.py).

A worker that says that it is ready is given its next shard while it works on others (at_work.py), as long as no other one waits for
work. A shard that a worker had when it ended is done by itself from then on, whatever it ended of: what is in hand in one shard may
end the worker in the name of the other. So what is to be had in hand alone is alone in its worker.

Workers load while others work, and the run goes on with those that there are (loading.py): a machine that never comes back
is missed by nobody but the clock.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray

from echoprune.errors import ConfigError, LeaseLostError, ModelError, StoreError
from pipelines import interrupted
from pipelines.at_work import AtWork, Job
from pipelines.events import Event
from pipelines.loading import Loading, Worker, first_line
from pipelines.lost_nodes import LOST_NODES_PER_ITEM, Death, Place
from pipelines.ray_errors import RAYS_OWN

log = logging.getLogger(__name__)

DEATHS_PER_VIDEO = 2
DEATHS_PER_SHARD = 3
# Items quarantined one after another, with none done between, after which it is taken for the machine: a GPU that fails on
# everything ends the run after eight deaths, and not when every video has failed.
QUARANTINED_IN_A_ROW = 4
# They end the run as they are, unless another worker may fare better.
SAID_TO_USERS = (ConfigError, StoreError, ModelError)
# Disk, network, store and Ray's own memory: no video's doing, even while one is being encoded.
NO_VIDEOS_DOING = (OSError, *SAID_TO_USERS, *RAYS_OWN)
# Seconds without a worker at work, after which a warning says so.
ROOM_S = 60.0
# Seconds without any event after which the driver looks whether it was interrupted.
POLL_S = 0.5


class ShardLike(Protocol):
    """What the scheduler needs to know of a shard."""

    @property
    def shard_id(self) -> str:
        """Its id, the same in every run."""
        ...


@dataclass
class Scheduler:
    """Runs shards on workers until all are committed.

    `make_worker()` returns a fresh actor handle with `load()` and `run_shard(shard, quarantined[, alone])`, the latter a
    streaming generator of events; `quarantined` says of each item to be left out what it ended its worker with, `alone` are
    the items to be had in hand alone, given where there are any. `workers`: how
    many there may be, or a function that says so by now, since nodes come and go. A worker that the cluster has no room for
    keeps nobody waiting. `on_event(shard_id, event)` is called for each event in the driver, and may raise to end the run.
    `what`, `worker_name`: an item and a worker in words. `deaths`: how many workers ended with a shard in hand, whatever of
    it they had put already.
    """

    make_worker: Callable[[], Any]
    workers: int | Callable[[], int]
    on_event: Callable[[str, Event], None]
    what: str = "video"
    worker_name: str = "encoder"
    quarantined: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    deaths: int = 0
    _item_deaths: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _shard_deaths: Counter[str] = field(default_factory=Counter)
    # By item, or shard: the nodes that it had a worker on when they went.
    _lost_nodes: defaultdict[tuple[str, ...], set[str]] = field(default_factory=lambda: defaultdict(set))
    _in_a_row: int = 0
    # Where a shard has ended a worker.
    _ended_at: defaultdict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    # Shards to be done with no other one beside them.
    _by_itself: set[str] = field(default_factory=set)
    _unexplained: list[AtWork] = field(default_factory=list)
    _loading: Loading = field(init=False)

    def run(self, shards: Iterable[Any]) -> None:
        """Returns when every shard is committed; raises what broke the run (ConfigError, StoreError, ModelError)."""
        waiting = deque(shards)
        idle: list[Worker] = []
        busy: list[AtWork] = []
        self._loading = Loading(self.make_worker, self.worker_name)
        worked_at = time.monotonic()
        try:
            while waiting or busy or self._held:
                interrupted.check()
                alive = len(idle) + sum(each.death is None for each in busy)
                waiting.extendleft(reversed(self._judge(at_work=alive)))
                self._loading.settle(at_work=alive)
                most = self.workers if isinstance(self.workers, int) else self.workers()
                most = min(most - self._loading.lacking, len(waiting) + len(busy) + self._held)
                while len(idle) + len(self._loading) + len(busy) < most:
                    self._loading.begin()
                self._give(waiting, idle, busy)
                if busy:
                    worked_at = time.monotonic()
                elif time.monotonic() - worked_at > ROOM_S:
                    log.warning(
                        "no %s for %d s: the cluster has no room, or it is loading", self.worker_name, ROOM_S
                    )
                    worked_at = time.monotonic()
                awaited = [*(events for each in busy for events in each.jobs), *self._loading.refs]
                if not awaited:
                    time.sleep(POLL_S)
                    continue
                if not ray.wait(awaited, num_returns=1, timeout=POLL_S)[0]:
                    continue
                # All that has come: who has become idle is known before the next shard is given away.
                for ref in ray.wait(awaited, num_returns=len(awaited), timeout=0)[0]:
                    idle += self._heard(ref, busy)
        finally:
            for worker in [*idle, *(each.worker for each in busy)]:
                ray.kill(worker.handle)
            self._loading.close()

    def _give(self, waiting: deque[Any], idle: list[Worker], busy: list[AtWork]) -> None:
        """Gives shards to idle workers first, which are `busy` then, so that all end together, and to those ready for another one."""
        before = list(busy)
        places = {each.where for each in [*idle, *(each.worker for each in busy if each.death is None)]}
        for worker in idle[:]:
            shard = self._next(waiting, worker.where, places)
            if shard is not None:
                waiting.remove(shard)
                # Never in neither of the two: an interrupt here must find it to end it.
                busy.append(AtWork(worker))
                idle.remove(worker)
                busy[-1].start(shard, *self._known())
        for each in before:
            if each.has_room and not self._are_by_themselves(job.shard for job in each.jobs.values()):
                others = (shard for shard in waiting if not self._are_by_themselves([shard]))
                shard = self._next(others, each.worker.where, places)
                if shard is not None:
                    waiting.remove(shard)
                    each.start(shard, *self._known())

    def _are_by_themselves(self, shards: Iterable[Any]) -> bool:
        return any(shard.shard_id in self._by_itself for shard in shards)

    def _heard(self, ref: Any, busy: list[AtWork]) -> list[Worker]:
        """Takes in what `ref` has brought; the worker that has nothing to do since, if any."""
        at_work = next((each for each in busy if ref in each.jobs), None)
        if at_work is None:
            loaded = self._loading.take(ref)
            return [loaded] if loaded is not None else []
        job = at_work.jobs[ref]
        event = at_work.hear(ref)
        if event is not None:
            if getattr(event, "status", "failed") != "failed":
                self._in_a_row = 0
                self._loading.has_worked(at_work.worker)
            self.on_event(job.shard.shard_id, event)
        at_work.end()
        if at_work.jobs:
            return []
        busy.remove(at_work)
        if at_work.death is None:
            return [at_work.worker]
        if at_work.lost:
            self.deaths += 1
            self._unexplained.append(at_work)
            self._by_itself.update(job.shard.shard_id for job in at_work.lost)
        return []

    @property
    def _held(self) -> int:
        """Shards that nobody has until it is known what ended their worker."""
        return sum(len(ended.lost) for ended in self._unexplained if not ended.is_back)

    def _next(self, waiting: Iterable[Any], place: Place, places: set[Place]) -> Any:
        """The shard for a worker at `place`: one that has ended a worker there is left to the other `places`, if any."""
        for shard in waiting:
            ended_at = self._ended_at.get(shard.shard_id, set())
            if place not in ended_at or places <= ended_at:
                return shard
        return None

    def _known(self) -> list[object]:
        return [dict(self.quarantined), *([frozenset(self.alone)] if self.alone else [])]

    def _judge(self, *, at_work: int) -> list[Any]:
        """Counts the deaths whose cause is known by now, beside `at_work` living workers; the shards to be run again.

        For what is known soon a shard waits, so that no video is had in hand a second time before the first is counted.
        """
        back: list[Any] = []
        for ended in list(self._unexplained):
            assert ended.death is not None
            with_node = ended.death.with_node
            if not ended.is_back and (with_node is not None or not ended.death.may_settle):
                ended.is_back = True
                back += [job.shard for job in ended.lost]
            if with_node is None:
                continue
            self._unexplained.remove(ended)
            blamed = ended.blamed()
            if with_node:
                blamed = [job for job in blamed if self._has_lost_too_many(job, ended.death)]
                if not blamed:
                    continue
            self._loading.has_failed(ended.worker, at_work=at_work)
            for job in blamed:
                self._ended_at[job.shard.shard_id].add(ended.worker.where)
                self._blame(job, at_work=at_work)
        return back

    def _has_lost_too_many(self, job: Job, death: Death) -> bool:
        """Whether the machine that went with `job` was one too many for what was in hand."""
        log.warning("shard %s begins again: its machine went away", job.shard.shard_id)
        lost = self._lost_nodes[job.current or (job.shard.shard_id,)]
        # One node counts once: a worker that was idle there may be given the shard before its end is known.
        lost.add(death.place_known.node_id or f"unknown {self.deaths}")
        return len(lost) > LOST_NODES_PER_ITEM

    def _blame(self, job: Job, *, at_work: int) -> None:
        """Counts a worker's failure against the items it had in hand, or the shard; raises what ends the run."""
        error = job.error
        assert error is not None
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        lost = isinstance(cause, LeaseLostError)
        if lost or (isinstance(cause, SAID_TO_USERS) and not at_work and not self._loading.up):
            raise cause from None
        reason = first_line(cause)
        if job.current and not isinstance(cause, NO_VIDEOS_DOING):
            log.warning("a worker died with %s %s in hand: %s", self.what, ", ".join(job.current), reason)
            self._blame_items(job.current, cause)
            return
        self._shard_deaths[job.shard.shard_id] += 1
        log.warning("a worker died on shard %s: %s", job.shard.shard_id, reason)
        if self._shard_deaths[job.shard.shard_id] >= DEATHS_PER_SHARD:
            if isinstance(cause, SAID_TO_USERS):
                raise cause from None
            raise StoreError(
                f"shard {job.shard.shard_id} broke its worker {DEATHS_PER_SHARD} times with no {self.what} to blame: {reason}"
            )

    def _blame_items(self, items: tuple[str, ...], cause: BaseException) -> None:
        self._item_deaths[items] += 1
        if len(items) > 1:
            if self._item_deaths[items] >= DEATHS_PER_VIDEO:
                self.alone.update(items)
        elif self._item_deaths[items] < DEATHS_PER_VIDEO:
            self.alone.update(items)
        else:
            self.quarantined[items[0]] = type(cause).__name__
            self._in_a_row += 1
            if self._in_a_row == QUARANTINED_IN_A_ROW:
                raise ModelError(
                    f"{QUARANTINED_IN_A_ROW} {self.what}s one after another ended their {self.worker_name} twice, and none was "
                    f"done between: is that machine sound, and its memory enough? The last error was {first_line(cause)}"
                )
