"""How many encoders and decode actors a cluster has room for, node by node; and starting a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from echoprune.errors import ConfigError

# Decode actors that an encoder starts with at most: 16 cores of software decoding give 3,504 frames/s of 720p, and no
# encoder measured so far takes more than 691. Further ones come when measured rates ask for them (growth.py).
START_DECODERS = 15
# Seconds between two looks at what the cluster has.
LOOK_S = 5.0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, alive: CPU cores and GPUs as Ray counts them."""

    node_id: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Crew:
    """How many actors run, and what each is given.

    `threads`: CPU threads of one encoder. `decoders`: decode actors of each encoder, of an `auto` crew those it starts
    with at most; 0: it decodes itself. `share`: cores of an encoder without a GPU and its decoders on its node; 0 with one.
    `elsewhere`: decode actors of an encoder that other nodes have room for, None for whatever they have. `grow_to`:
    decode actors that an encoder may have beyond what there is room for now, so that an autoscaler brings nodes.
    """

    encoders: int
    decoders: int
    gpus_each: int
    threads: int
    auto: bool = False
    share: int = 0
    elsewhere: int | None = 0
    grow_to: int | None = None

    def beside(self, node: Node) -> int:
        """Cores for decode actors of an encoder on its own node: those of every encoder that the node can have are left."""
        if not self.gpus_each:
            return max(0, self.share - self.threads)
        return max(0, node.cpus // max(1, min(node.gpus, self.encoders)) - 1)

    def decode_nodes(self, nodes: Sequence[Node], home: Node) -> list[Node]:
        """The nodes that may hold decode actors of an encoder on `home`, beside that: with GPUs those that have none."""
        others = [node for node in nodes if node.node_id != home.node_id and node.cpus]
        return [node for node in others if not (self.gpus_each and node.gpus)]

    def start(self, nodes: Sequence[Node], home: Node) -> int:
        """Decode actors that an encoder on `home` starts with; at least one unless it is to decode itself."""
        if not self.auto or not self.gpus_each:
            return self.decoders
        beside = min(self.decoders, self.beside(home))
        return beside or int(bool(self.decode_nodes(nodes, home) or self.grow_to))

    def most(self, nodes: Sequence[Node], home: Node) -> int:
        """Decode actors that an encoder on `home` may have: those that it is told to, else whatever there is room for."""
        if not self.auto:
            return self.decoders
        if self.grow_to is not None:
            return self.grow_to
        others = sum(node.cpus for node in self.decode_nodes(nodes, home))
        room = others if self.elsewhere is None else min(others, self.elsewhere)
        return max(self.start(nodes, home), self.beside(home) + room)


def nodes_alive() -> list[Node]:
    """The nodes of the connected cluster."""
    return [
        Node(each["NodeID"], int(each["Resources"].get("CPU", 0)), int(each["Resources"].get("GPU", 0)))
        for each in ray.nodes()
        if each["Alive"]
    ]


def crew(
    nodes: Sequence[Node],
    *,
    encoders: int | None,
    decoders: int | None,
    device: str,
    grow_to: int | None = None,
    may_join: bool = False,
    option: str = "--encoders",
) -> Crew:
    """The actors that there is room for on `nodes`; `decoders` None: as many as the rates that are measured ask for.

    With GPUs: an encoder each, the CPU cores of its node shared out as decoders. Without: one encoder, and a decoder for
    every four cores (one on 2 cores, none on 1, where decoding happens in the encoder). `may_join`: nodes may come
    later, so that more `encoders` than there are GPUs for is no error. `option`: what asks for them; an answer run's
    `--workers` are encoders without decoders.

    Raises ConfigError where there is no room for what is asked for.
    """
    gpus = sum(node.gpus for node in nodes)
    if device == "cuda" and not gpus and not (may_join and encoders):
        cure = f"; or say with {option} how many to wait for" if may_join else ""
        raise ConfigError(
            f"--device cuda, but Ray finds no GPU in this cluster: use --device cpu or auto{cure}"
        )
    use_gpus = device == "cuda" or (device != "cpu" and gpus > 0)
    if use_gpus and not may_join and encoders is not None and encoders > gpus:
        raise ConfigError(f"{option} is {encoders}, but the cluster has {gpus} GPUs: give at most that many")
    count = encoders or (gpus if use_gpus else 1)
    cpus = sum(node.cpus for node in nodes)
    needed = count * (1 + (decoders or 0))
    if needed > cpus and not (grow_to and count <= cpus) and not (use_gpus and count > gpus):
        each = f" with {decoders} decode actors each" if decoders else ""
        lower = f"{option} or --decoders-per-gpu" if each else option
        raise ConfigError(
            f"{count} {option.removeprefix('--')}{each} take {needed} CPU cores, the cluster has {cpus}: lower {lower}"
        )
    if use_gpus:
        people = Crew(
            encoders=count,
            decoders=START_DECODERS if decoders is None else decoders,
            gpus_each=1,
            threads=1,
            auto=decoders is None,
            elsewhere=None,
            grow_to=grow_to,
        )
        starts = [people.start(nodes, home) for home in nodes if home.gpus]
        return replace(people, decoders=max(starts)) if starts else people
    share = _share(nodes, count)
    start = min(share - 1, max(1, share // 4)) if decoders is None else decoders
    return Crew(
        encoders=count,
        decoders=start,
        gpus_each=0,
        threads=max(1, share - start),
        auto=decoders is None,
        share=share,
        elsewhere=(cpus - count * share) // count,
        grow_to=grow_to,
    )


def _share(nodes: Sequence[Node], count: int) -> int:
    """The most cores that each of `count` encoders without a GPU can have on one node, its decoders there included."""
    most = max((node.cpus for node in nodes), default=0)
    return next((n for n in range(most, 0, -1) if sum(node.cpus // n for node in nodes) >= count), 1)


def start_worker(worker_class: type[Any], job: object, people: Crew, *, calls: int = 1) -> Any:
    """A fresh actor of `worker_class` for `job`, with the cores and GPU of one of `people`. Ray restarts nothing by itself.

    `calls`: how many of its calls may be under way at a time, each in a thread.

    On the node with the least to do: Ray's own way is to fill one node up to half before the next. Two encoders of one core
    each then lay on a node of three, with one core left for the four decode actors of both, and the other node idle.
    """
    options: dict[str, Any] = {
        "num_cpus": people.threads,
        "num_gpus": people.gpus_each,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": calls,
        "scheduling_strategy": "SPREAD",
    }
    return ray.remote(worker_class).options(**options).remote(job)


def workers_now(
    people: Crew, *, fixed: bool, look: Callable[[], list[Node]] = nodes_alive, every_s: float = LOOK_S
) -> Callable[[], int]:
    """A function that says how many workers there may be by now: as many as there are GPUs, those that came later too.

    At least as many as at the start: one that is asked for in vain tells an autoscaler what is missing. `fixed`: never more.
    It looks every `every_s` seconds at most.
    """
    if fixed or not people.gpus_each:
        return lambda: people.encoders
    looked_at, found = time.monotonic(), people.encoders

    def now() -> int:
        nonlocal looked_at, found
        if time.monotonic() - looked_at >= every_s:
            found = max(people.encoders, sum(min(node.gpus, node.cpus) for node in look()))
            looked_at = time.monotonic()
        return found

    return now
