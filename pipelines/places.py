"""Where the next decode actor of an encoder goes: beside it while there are cores, then to nodes without an encoder's GPU.

Frames travel through shared memory on the encoder's own node, and over the network from another one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.crew import LOOK_S, Crew, Node, nodes_alive

# The resource, one for each core, by which an autoscaler tells nodes for decode actors from others.
DECODE = "decode"
# Seconds for which a node that had no room is left alone.
FULL_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where a decode actor is to run. `node_id`: "" for any node with the resource `decode`, which may have to come first.

    `home`: on the node of the encoder. `cpus`: cores that Ray counts for it.
    """

    node_id: str
    home: bool
    cpus: int = 1

    def options(self) -> dict[str, Any]:
        """Ray's options for an actor there. Ray restarts nothing by itself."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "max_restarts": 0, "max_task_retries": 0}
        if not self.node_id:
            return options | {"resources": {DECODE: 1}, "scheduling_strategy": "SPREAD"}
        here = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        return options | {"scheduling_strategy": here}


def choose(
    home: Node,
    others: Sequence[Node],
    *,
    beside: int,
    elsewhere: int | None,
    taken: Counter[str],
    may_grow: bool,
) -> Place | None:
    """The place for one decode actor more, None if there is none. `taken`: how many this encoder has by node, "" included.

    `beside`: how many its own node has cores for. `elsewhere`: how many it may have on `others`, None for any number.
    The first is at home in any case, without a core of its own if need be: what goes wrong elsewhere is done again there.
    """
    at_home = taken[home.node_id]
    if at_home < beside or not at_home:
        return Place(home.node_id, home=True, cpus=int(at_home < beside))
    free = [node for node in others if taken[node.node_id] < node.cpus]
    away = sum(taken.values()) - at_home
    if free and (elsewhere is None or away < elsewhere):
        # Spread by load, so that the loss of one node costs few.
        best = min(free, key=lambda node: (taken[node.node_id] / node.cpus, node.node_id))
        return Place(best.node_id, home=False)
    return Place("", home=False) if may_grow else None


class Places:
    """The places of one encoder's decode actors in a cluster whose nodes come and go. `home`: the id of its node."""

    def __init__(self, people: Crew, home: str, *, look: Callable[[], list[Node]] = nodes_alive) -> None:
        self._people, self._home_id, self._look_up = people, home, look
        self._full: dict[str, float] = {}
        self._unfit: set[str] = set()
        self._look()

    def start(self) -> int:
        """Decode actors that the encoder starts with."""
        return self._people.start(self._nodes, self._home)

    def most(self) -> int:
        """Decode actors that it may have by now."""
        self._refresh()
        return self._people.most(self._nodes, self._home)

    def next(self, taken: Iterable[str]) -> Place | None:
        """The place for one decode actor more than those on the nodes `taken`, None if there is none now."""
        self._refresh()
        now = time.monotonic()
        others = [
            node
            for node in self._people.decode_nodes(self._nodes, self._home)
            if node.node_id not in self._unfit and now - self._full.get(node.node_id, -FULL_S) >= FULL_S
        ]
        counted = Counter(taken)
        grow_to = self._people.grow_to
        return choose(
            self._home,
            others,
            beside=self._people.beside(self._home),
            elsewhere=self._people.elsewhere,
            taken=counted,
            may_grow=grow_to is not None and counted.total() < grow_to,
        )

    def note_full(self, node_id: str) -> None:
        """Somebody else has the cores of that node: it is left alone for a while."""
        self._full[node_id] = time.monotonic()

    def note_unfit(self, node_id: str) -> None:
        """That node does not have the videos: it is not asked again."""
        self._unfit.add(node_id)

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._look()

    def _look(self) -> None:
        self._nodes, self._looked_at = self._look_up(), time.monotonic()
        found = [node for node in self._nodes if node.node_id == self._home_id]
        self._home = found[0] if found else Node(self._home_id, 1, 0)
