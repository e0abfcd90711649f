"""Whether a worker died with its machine: then nothing that it had in hand is to blame."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from pipelines.ray_errors import GONE

# Of one item, or of a shard with none in hand. A spot machine that goes every hour takes a day over so many; what takes
# machine after machine along (memory that the kernel cannot find any more) is the item's doing after all.
LOST_NODES_PER_ITEM = 8
# Ray's own checks find a machine that is silent after 15 s, or after 65 s where nothing even refuses a connection.
NEWS_S = 90.0
# A machine that goes may end the worker first, which its raylet tells at once, and Ray finds that the raylet is gone after
# those 15 s: five checks, as far apart as Ray was told. So long, and a little more, a death is not judged where there is
# another machine.
SETTLE_S = 5 * int(os.environ.get("RAY_health_check_period_ms", "3000")) / 1000 + 5  # noqa: SIM112 - Ray's own spelling


@dataclass(frozen=True)
class Place:
    """Where a worker runs: the id of its node, and the GPUs there that it has."""

    node_id: str
    gpus: tuple[str, ...] = ()


NOWHERE = Place("")


def place_of(worker: Any) -> Any:
    """A reference to the Place that an actor was put on."""
    return worker.__ray_call__.remote(_here)


def _here(_: object) -> Place:
    context = ray.get_runtime_context()
    return Place(context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", ())))


@dataclass(eq=False)
class Death:
    """The end of an actor by `error`; `place` is what `place_of` gave."""

    error: ray.exceptions.RayError
    place: Any
    at_s: float = field(default_factory=time.monotonic)

    @property
    def place_known(self) -> Place:
        """Its place, one without a node where that was never told; never waits."""
        try:
            known: Place = ray.get(self.place, timeout=0)
        except ray.exceptions.RayError:
            return NOWHERE
        return known

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard of it, nor of its node so far."""
        silent = isinstance(self.error, ray.exceptions.ActorUnavailableError)
        return silent and self.with_node is None

    @property
    def may_settle(self) -> bool:
        """Whether it will be known soon enough to wait for."""
        return time.monotonic() < self.at_s + SETTLE_S

    @property
    def with_node(self) -> bool | None:
        """Whether the actor went since its node did; None as long as that is not known.

        Unavailable is one of which nothing is heard, nor of its node. One that Ray ended for memory had a node.
        """
        if getattr(self.error, "preempted", False):
            return True
        if not isinstance(self.error, GONE) or isinstance(self.error, ray.exceptions.OutOfMemoryError):
            return False
        node_id = self.place_known.node_id
        if not node_id:
            return False
        alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
        if node_id not in alive:
            return True
        silent = isinstance(self.error, ray.exceptions.ActorUnavailableError)
        wait_s = NEWS_S if silent else SETTLE_S if len(alive) > 1 else 0.0
        return None if time.monotonic() < self.at_s + wait_s else False
