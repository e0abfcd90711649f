"""Workers on their way: asked for, loading their model, or failed to. Knows nothing of shards.

A worker that cannot load is one machine's trouble (a driver, a full disk, a hub that refuses) as long as another one can:
its place is asked for again, later each time. Where none can, the run ends with what the first one said.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from echoprune.errors import EchoPruneError, ModelError
from pipelines.lost_nodes import NOWHERE, Death, Place, place_of
from pipelines.ray_errors import GONE

log = logging.getLogger(__name__)

# Times that every worker on its way may fail. One whose process dies may have been killed from outside; this often it is
# the model.
LOADS = 3
# Seconds, times the failures in a row there, for which a place is not asked for again while others are at work. A GPU that
# fails on everything is tried 50 times a day. The first failure at work is free: it may be that of what was in hand.
REST_S = 60.0


@dataclass(eq=False)
class Worker:
    """One actor. `place`: a reference to what `place_of` gives; `where`: that, once its model is loaded."""

    handle: Any
    place: Any
    where: Place = NOWHERE

    def is_up(self) -> bool:
        """Whether its process has started, so that it loads or has failed to; never waits."""
        return bool(ray.wait([self.place], timeout=0)[0])


@dataclass
class Loading:
    """The workers that `make_worker()` makes, until each is loaded. `name`: one in words."""

    make_worker: Callable[[], Any]
    name: str
    _coming: dict[Any, Worker] = field(default_factory=dict)
    # Where workers failed that have not been asked for again, and with what.
    _failed: list[tuple[Place, BaseException]] = field(default_factory=list)
    _rounds: int = 0
    _rests: list[float] = field(default_factory=list)
    # Failures in a row, of loading and at work, by place.
    _failures: Counter[Place] = field(default_factory=Counter)

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._coming)

    @property
    def refs(self) -> list[Any]:
        """What is answered when one of them is loaded, or has failed: for `take`."""
        return list(self._coming)

    @property
    def up(self) -> int:
        """How many of them load by now, or have failed to."""
        return sum(each.is_up() for each in self._coming.values())

    @property
    def lacking(self) -> int:
        """How many are not to be asked for now."""
        now = time.monotonic()
        self._rests = [until for until in self._rests if until > now]
        return len(self._failed) + len(self._rests)

    def begin(self) -> None:
        """Asks for one worker more. Nobody waits for it: it may have no room yet, and others are at work."""
        handle = self.make_worker()
        worker = Worker(handle, place_of(handle))
        self._coming[handle.load.remote()] = worker

    def take(self, ref: Any) -> Worker | None:
        """The worker whose load has ended; None where it failed, which `settle` judges."""
        worker = self._coming.pop(ref)
        try:
            ray.get(ref)
            worker.where = ray.get(worker.place)
        except ray.exceptions.RayError as error:
            ray.kill(worker.handle)
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            log.warning("an %s could not load the model: %s", self.name, first_line(cause))
            death = Death(error, worker.place)
            if not (death.with_node or death.is_silent):
                self._failures[death.place_known] += 1
                self._failed.append((death.place_known, cause))
            return None
        self._rounds = 0
        return worker

    def settle(self, *, at_work: int) -> None:
        """Judges those that failed to load, beside `at_work` that did not; raises what ends the run."""
        if not at_work and not self._coming:
            self._rests.clear()
        if not self._failed:
            return
        if at_work:
            for place, _ in self._failed:
                self._rest(max(1, self._failures[place]))
        elif self.up:
            return  # they may load what this one could not
        else:
            self._rounds += 1
            died = [error for _, error in self._failed if isinstance(error, GONE)]
            raised = [error for _, error in self._failed if not isinstance(error, GONE)]
            if self._rounds == LOADS or (raised and not self._coming):
                raise self._end([*raised, *died][0]) from None
        self._failed.clear()

    def has_failed(self, worker: Worker, *, at_work: int) -> None:
        """Takes note that a worker has ended at its work, which counts against its place."""
        self._failures[worker.where] += 1
        if at_work:
            self._rest(self._failures[worker.where] - 1)

    def has_worked(self, worker: Worker) -> None:
        """Takes note that a worker has done something: its place is sound."""
        self._failures.pop(worker.where, None)

    def close(self) -> None:
        """Ends those that are on their way."""
        for worker in self._coming.values():
            ray.kill(worker.handle)
        self._coming.clear()

    def _rest(self, failures: int) -> None:
        self._rests.append(time.monotonic() + REST_S * failures)

    def _end(self, error: BaseException) -> EchoPruneError:
        if isinstance(error, EchoPruneError):
            return error
        if isinstance(error, GONE):
            return ModelError(
                f"the {self.name} process died {LOADS} times while loading the model ({first_line(error)}); "
                "is there memory enough?"
            )
        return ModelError(f"the {self.name} could not be started: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """Class and first line of what `error` says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
