"""The decode actors of one encoder: those that are up, those on their way, and what becomes of one that is lost.

An actor is asked for where `Places` says, and used once its process has started: one that waits for a node, or for a
core that somebody else has, keeps nobody waiting. How many there are to be is told by `grow`; never fewer than one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from echoprune.lease import process_start
from echoprune.s3_objects import S3Counts
from pipelines.crew import LOOK_S
from pipelines.decode_process import DecodeProcess
from pipelines.growth import Growth, Rates
from pipelines.memory_watch import DECODER_BYTES, MemoryWatch
from pipelines.places import Place, Places

log = logging.getLogger(__name__)

# Seconds that a decode process may take to start on a busy machine, beside the time it may take to answer.
START_S = 300.0
# Seconds after which one on another node is withdrawn: that has no room. A node that is yet to come has all the time.
PLACE_S = 60.0
# Seconds after which the first one beside the encoder does without a core of its own: others have taken it.
CORE_S = 20.0
# Processes that die one after another while starting, with none up: it is not by chance.
STARTS = 3


@dataclass(eq=False)
class _Coming:
    """An actor on its way; `ready` answers once its process has started."""

    handle: Any
    ready: Any
    place: Place
    since: float


class Decoders:
    """Decode actors that `make_actor(place)` makes, `count` of them at first; `limit`: never more, whatever the room."""

    def __init__(
        self,
        make_actor: Callable[[Place], Any],
        places: Places,
        *,
        count: int,
        limit: int | None = None,
        memory_bytes: int = DECODER_BYTES,
        growth: Growth | None = None,
    ) -> None:
        self._make_actor, self._places, self._limit = make_actor, places, limit
        self._growth = growth or Growth()
        self.memory_bytes = memory_bytes
        self.up: list[DecodeProcess] = []
        self._coming: list[_Coming] = []
        self._count = max(1, count)
        self._failed_starts, self._died_of = 0, ""
        self._asked_at = 0.0
        self._watch = MemoryWatch(memory_bytes)
        self._watch.watched = self.up
        self._ask()

    @property
    def count(self) -> int:
        """How many there are to be."""
        return self._count

    @property
    def most(self) -> int:
        """How many there may be by now."""
        most = self._places.most()
        return max(self._count, most if self._limit is None else min(most, self._limit))

    def grow(self, count: int) -> None:
        """There are to be so many from now on, at least as many as before."""
        self._count = max(self._count, count)
        self._ask()

    def consider(self, rates: Rates) -> bool:
        """Whether `rates` were enough to go by; if so, as many are asked for as the encoder was found to lack."""
        if not self._growth.is_due(rates):
            return False
        # By those that are up: one that has no place yet decodes nothing.
        up = len(self.up)
        count = self._growth.next(up, rates, most=self.most)
        if count > self._count:
            log.info(
                "decode actors %d -> %d: %.1f segments a second come, the encoder would take %.1f",
                up, count, rates.delivered, rates.taken,
            )  # fmt: skip
            self.grow(count)
        return True

    def look(self) -> None:
        """Takes in those that have started, and asks for those that lack. Never waits."""
        if self._coming:
            refs = [each.ready for each in self._coming]
            started, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            for each in [each for each in self._coming if each.ready in started]:
                self._take_in(each)
            if not self.up and self._failed_starts >= STARTS:
                raise ChildProcessError(f"decode actors die while they start: {self._died_of}")
        now = time.monotonic()
        for each in self._coming[:]:
            # A node that is to come may take minutes.
            if each.place.node_id and not each.place.home and now - each.since > PLACE_S:
                self._coming.remove(each)
                ray.kill(each.handle)
                self._places.note_full(each.place.node_id)
            elif each.place.home and each.place.cpus and not self._has_home() and now - each.since > CORE_S:
                log.warning("no core is free beside the encoder for its decode actor, which runs without one")
                self._coming.remove(each)
                ray.kill(each.handle)
                self._begin(replace(each.place, cpus=0))
        if len(self.up) + len(self._coming) < self._count and now - self._asked_at >= LOOK_S:
            self._ask()

    def wait(self, *, home: bool = False) -> None:
        """Waits until one is up, at home if told so; raises ChildProcessError if none starts."""
        deadline = time.monotonic() + START_S
        while not any(each.home or not home for each in self.up):
            if not any(each.place.home or not home for each in self._coming):
                self._ask()
            if time.monotonic() > deadline:
                raise ChildProcessError(
                    f"no decode actor has started within {START_S:.0f} s: are the cores of its node taken by others?"
                )
            refs = [each.ready for each in self._coming]
            ray.wait(refs, timeout=1.0, fetch_local=False)
            self.look()

    def s3(self) -> S3Counts:
        """What those on other nodes have asked of S3 since the last call, as far as they have said so."""
        return sum((each.s3() for each in tuple(self.up)), S3Counts())

    def lose(self, process: DecodeProcess, *, node_too: bool = False) -> None:
        """Ends a process that is of no use any more, and asks for another one. `node_too`: its node is not asked again."""
        process.kill()
        self.up.remove(process)
        if node_too:
            self._places.note_unfit(process.node_id)
        self._ask()

    def close(self) -> None:
        """Ends them all."""
        self._watch.close()
        handles = [each.handle for each in self.up] + [each.handle for each in self._coming]
        for handle in handles:
            ray.kill(handle)
        self.up.clear()
        self._coming.clear()

    def _ask(self) -> None:
        """Asks for as many as lack, as far as there is a place for them; one at home comes first."""
        self._asked_at = time.monotonic()
        while len(self.up) + len(self._coming) < self._count or not self._at_home():
            taken = [each.node_id for each in self.up] + [each.place.node_id for each in self._coming]
            place = self._places.next(taken)
            if place is None:
                return
            self._begin(place)

    def _begin(self, place: Place) -> None:
        handle = self._make_actor(place)
        self._coming.append(_Coming(handle, handle.ready.remote(), place, time.monotonic()))

    def _has_home(self) -> bool:
        """Whether one at home is up, or on its way without waiting for a core."""
        waiting = (each for each in self._coming if each.place.home and not each.place.cpus)
        return any(each.home for each in self.up) or any(waiting)

    def _at_home(self) -> Sequence[object]:
        return [each for each in self.up if each.home] + [each for each in self._coming if each.place.home]

    def _take_in(self, coming: _Coming) -> None:
        self._coming.remove(coming)
        try:
            pid, node_id = ray.get(coming.ready)
            if coming.place.home and not process_start(pid):
                # It started, and was killed before anybody looked: minutes, where a large model was read meanwhile.
                raise ray.exceptions.ActorDiedError
        except ray.exceptions.RayError as error:
            # It died while starting: killed from outside, its node gone, or no memory. No video is to blame.
            self._failed_starts += 1
            self._died_of = str(error).splitlines()[0]
            log.warning("a decode actor died while starting: %s", self._died_of)
            ray.kill(coming.handle)
            if not coming.place.home and coming.place.node_id:
                self._places.note_full(coming.place.node_id)
            self._ask()
            return
        self._failed_starts = 0
        self.up.append(DecodeProcess(coming.handle, pid, node_id, home=coming.place.home))
        if not coming.place.home:
            log.info("a decode actor has started on node %s", node_id)
