"""A worker at work: the shards that it has, what it has of them in hand, and to which of them its end is held against.

A worker has one shard, and the next one too once it is ready for that: while one is encoded, the one before is committed, and
videos of the next one are decoded. Its end is one end, however many shards it had, and it is judged when all their streams of events
have ended. One that has raised an error in one shard is ended when all that it has told of the others is heard: a commit counts.
What a process that dies has told and nobody has heard goes with it (Ray 2.60), so that such a shard is done again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray

from pipelines.events import Event, ReadyForNext, ShardCommitted, in_hand
from pipelines.loading import Worker
from pipelines.lost_nodes import Death
from pipelines.ray_errors import GONE

# Of one worker: one that is committed, one that is encoded, one that is decoded. With two the decoders had nothing to do while
# one was committed: 468 frames/s where three gave 489 and 501 (`benchmarks.decode_ahead --in-flight-mb 1024 --shard-clips 9`).
SHARDS_AT_MOST = 3


@dataclass(eq=False)
class Job:
    """One shard at a worker. `current`: what is in hand of it. `is_ready`: another one may be given beside it.

    `error`: with what its stream of events ended, if not by itself.
    """

    shard: Any
    current: tuple[str, ...] = ()
    is_ready: bool = False
    is_committed: bool = False
    error: ray.exceptions.RayError | None = None

    def heard(self, event: Event) -> None:
        """Takes in what the worker told."""
        items = in_hand(event)
        if items is not None:
            self.current = items
        self.is_ready |= isinstance(event, ReadyForNext)
        self.is_committed |= isinstance(event, ShardCommitted)


@dataclass(eq=False)
class AtWork:
    """A loaded worker with its shards. `jobs`: by their streams of events, those that are under way.

    `death`: how it ended; then it is given nothing more, and `lost` are the jobs that ended with it, uncommitted. `is_back`: their
    shards have been given back since.
    """

    worker: Worker
    jobs: dict[Any, Job] = field(default_factory=dict)
    lost: list[Job] = field(default_factory=list)
    death: Death | None = None
    is_back: bool = False
    _is_killed: bool = False

    @property
    def has_room(self) -> bool:
        """Whether it may be given one shard more."""
        ready = all(job.is_ready for job in self.jobs.values())
        return self.death is None and ready and len(self.jobs) < SHARDS_AT_MOST

    def start(self, shard: Any, *known: object) -> None:
        """Gives it a shard, with what is `known` of items."""
        # The worker waits until an event is consumed: one that dies at once has announced its video all the same
        # (without this the announcement was lost in 2 of 13 runs on a busy machine).
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
        events = self.worker.handle.run_shard.options(**options).remote(shard, *known)
        self.jobs[events] = Job(shard)

    def hear(self, events: Any) -> Event | None:
        """The next event of a job; None if it has ended, by itself or with its worker."""
        job = self.jobs[events]
        try:
            event: Event = ray.get(next(events))
        except StopIteration:
            del self.jobs[events]
            return None
        except ray.exceptions.RayError as error:
            del self.jobs[events]
            if not job.is_committed:
                job.error = error
                self.lost.append(job)
            self.death = self.death or Death(error, self.worker.place)
            return None
        job.heard(event)
        return event

    def end(self) -> None:
        """Ends the process of one that has failed, once nothing is left to be heard."""
        if self.death is None or self._is_killed:
            return
        if not self.jobs or not ray.wait([*self.jobs], num_returns=1, timeout=0)[0]:
            ray.kill(self.worker.handle)
            self._is_killed = True

    def blamed(self) -> list[Job]:
        """The lost jobs that its end is held against.

        Those whose call ended by itself, if one did: the others were ended for that. Else the process died of what it had in
        hand of any of them, or nobody knows of what.
        """
        raised = [job for job in self.lost if not isinstance(job.error, GONE)]
        in_hand = [job for job in self.lost if job.current]
        return raised or in_hand or self.lost
