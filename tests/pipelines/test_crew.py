"""How many actors fit on the nodes of a cluster, and where each decode actor goes: by hand, without Ray."""

from __future__ import annotations

from collections import Counter

import pytest

from echoprune.errors import ConfigError
from pipelines.crew import START_DECODERS, Crew, Node, crew, workers_now
from pipelines.places import Place, Places, choose

LAPTOP = [Node("laptop", 2, 0)]
GPU_NODES = [Node("a", 16, 1), Node("b", 16, 1)]
EIGHT = [Node("big", 64, 8)]
CPU_NODES = [Node("c", 4, 0), Node("d", 8, 0)]
HEAD = Node("head", 0, 0)


def sized(nodes: list[Node], **options: object) -> Crew:
    defaults: dict[str, object] = {"encoders": None, "decoders": None, "device": "auto"}
    return crew(nodes, **(defaults | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpus", "decoders", "threads"), [(1, 0, 1), (2, 1, 1), (3, 1, 2), (8, 2, 6), (16, 4, 12)]
)
def test_one_machine_without_a_gpu(cpus: int, decoders: int, threads: int) -> None:
    people = sized([Node("n", cpus, 0)])
    assert (people.encoders, people.decoders, people.threads, people.gpus_each) == (1, decoders, threads, 0)
    assert people.start([Node("n", cpus, 0)], Node("n", cpus, 0)) == decoders


def test_an_encoder_without_a_gpu_fits_on_one_of_several_nodes() -> None:
    # Four cores in all, but no node has more than two.
    nodes = [Node("a", 2, 0), Node("b", 2, 0)]
    people = sized(nodes)
    assert (people.encoders, people.threads, people.decoders, people.elsewhere) == (1, 1, 1, 2)
    people = sized(nodes, encoders=2)
    assert (people.threads, people.decoders, people.elsewhere) == (1, 1, 0)
    people = sized([Node("a", 5, 0), Node("b", 2, 0)], encoders=3)
    assert people.threads + people.beside(nodes[0]) == 2


def test_answerers_are_encoders_without_decoders() -> None:
    asked: dict[str, object] = {"decoders": 0, "option": "--workers"}
    people = sized([HEAD, *GPU_NODES], **asked)
    assert (people.encoders, people.gpus_each, people.threads, people.decoders) == (2, 1, 1, 0)
    # Each fits on one node, whatever the cluster has in all.
    people = sized([Node("a", 4, 0), Node("b", 2, 0)], **asked)
    assert (people.encoders, people.gpus_each, people.threads) == (1, 0, 4)
    # Those for which there is no GPU yet wait for an autoscaler's machines, on a cluster that is joined.
    asked |= {"device": "cuda", "encoders": 8}
    assert sized([HEAD], may_join=True, **asked).encoders == 8
    assert sized([HEAD, *GPU_NODES], may_join=True, **asked).encoders == 8
    with pytest.raises(ConfigError, match="--workers is 8, but the cluster has 2 GPUs"):
        sized([HEAD, *GPU_NODES], **asked)
    with pytest.raises(ConfigError, match="say with --workers how many to wait for"):
        sized([HEAD], may_join=True, **(asked | {"encoders": None}))
    with pytest.raises(ConfigError, match=r"9 workers take 9 CPU cores, the cluster has 2: lower --workers$"):
        sized(LAPTOP, **(asked | {"encoders": 9, "device": "cpu"}))


def test_the_cores_beside_a_gpu_are_its_decoders() -> None:
    people = sized([HEAD, *GPU_NODES])
    assert (people.encoders, people.gpus_each, people.threads, people.decoders) == (2, 1, 1, START_DECODERS)
    assert people.beside(GPU_NODES[0]) == 15
    people = sized(EIGHT)
    assert (people.encoders, people.decoders, people.beside(EIGHT[0])) == (8, 7, 7)
    # Fewer encoders than GPUs: each has more cores, and starts with 15 of them at most.
    people = sized(EIGHT, encoders=2)
    assert (people.decoders, people.beside(EIGHT[0]), people.most(EIGHT, EIGHT[0])) == (15, 31, 31)


@pytest.mark.parametrize("gpus", range(1, 9))
@pytest.mark.parametrize("cpus", [1, 2, 7, 8, 9, 16, 63, 192])
@pytest.mark.parametrize("encoders", [None, 1, 3, 20])
def test_every_encoder_of_a_node_keeps_its_core(gpus: int, cpus: int, encoders: int | None) -> None:
    node = Node("n", cpus, gpus)
    if cpus < gpus:
        return  # Ray itself has no core for them
    people = sized([node, *EIGHT, *EIGHT, *EIGHT], encoders=encoders)
    there = min(gpus, people.encoders)
    assert there * (1 + people.beside(node)) <= cpus
    assert cpus - there * (1 + people.beside(node)) < there


def test_nodes_without_a_gpu_are_for_decoders_of_encoders_that_have_one() -> None:
    nodes = [HEAD, *GPU_NODES, *CPU_NODES]
    people = sized(nodes)
    assert people.encoders == 2
    assert people.decode_nodes(nodes, GPU_NODES[0]) == CPU_NODES
    assert people.most(nodes, GPU_NODES[0]) == 15 + 12
    # A node of one core has none beside its encoder; there are some elsewhere, or there may be.
    small = Node("small", 1, 1)
    assert sized([small]).start([small], small) == 0
    assert sized([small, *CPU_NODES]).start([small, *CPU_NODES], small) == 1
    assert sized([small], grow_to=9).start([small], small) == 1


def test_what_auto_may_grow_to() -> None:
    node = GPU_NODES[0]
    assert sized([node]).most([node], node) == 15
    assert sized([node], grow_to=40).most([node], node) == 40
    assert sized([node], decoders=7).most([node, *CPU_NODES], node) == 7
    assert sized(LAPTOP).most(LAPTOP, LAPTOP[0]) == 1
    # A node that joined later counts.
    assert sized([node]).most([node, Node("late", 32, 0)], node) == 47
    # Without GPUs the cores that no encoder has are shared among them.
    nodes = [Node("a", 4, 0), Node("b", 4, 0), Node("c", 4, 0)]
    assert sized(nodes, encoders=2).elsewhere == 2
    assert sized(nodes, encoders=2).most(nodes, nodes[0]) == 1 + 2


def test_what_there_is_no_room_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="9 encoders take 9 CPU cores, the cluster has 2"):
        sized(LAPTOP, encoders=9)
    with pytest.raises(ConfigError, match="1 encoders with 2 decode actors each take 3 CPU cores"):
        sized(LAPTOP, decoders=2)
    with pytest.raises(ConfigError, match="--encoders is 3, but the cluster has 2 GPUs"):
        sized(GPU_NODES, encoders=3)
    with pytest.raises(ConfigError, match=r"finds no GPU in this cluster: use --device cpu or auto$"):
        sized(LAPTOP, device="cuda", encoders=1)
    with pytest.raises(ConfigError, match="say with --encoders how many to wait for"):
        sized(LAPTOP, device="cuda", may_join=True)
    # Where nodes may come it is a demand.
    assert sized(LAPTOP, decoders=2, grow_to=2).decoders == 2
    people = sized([HEAD], encoders=3, device="cuda", may_join=True)
    assert (people.encoders, people.gpus_each, people.decoders) == (3, 1, START_DECODERS)
    assert sized(GPU_NODES, encoders=3, may_join=True).encoders == 3


def placed(people: Crew, nodes: list[Node], home: str, count: int) -> Counter[str]:
    """Where the first `count` decode actors go, as far as there is a place."""
    places, taken = Places(people, home, look=lambda: nodes), Counter[str]()
    while taken.total() < count and (place := places.next(taken.elements())) is not None:
        taken[place.node_id] += 1
    return taken


def test_decoders_go_home_first_and_are_then_spread_by_load() -> None:
    nodes = [*GPU_NODES, *CPU_NODES]
    people = sized(nodes)
    assert placed(people, nodes, "a", 15) == {"a": 15}
    # Eight cores take twice as many as four; the other GPU's node takes none.
    assert placed(people, nodes, "a", 21) == {"a": 15, "c": 2, "d": 4}
    assert placed(people, nodes, "a", 99) == {"a": 15, "c": 4, "d": 8}


def test_the_first_is_at_home_even_without_a_core_of_its_own() -> None:
    home = Node("small", 1, 1)
    chosen = choose(home, CPU_NODES, beside=0, elsewhere=None, taken=Counter(), may_grow=False)
    assert chosen == Place("small", home=True, cpus=0)
    chosen = choose(home, CPU_NODES, beside=0, elsewhere=None, taken=Counter(small=1), may_grow=False)
    assert chosen == Place("c", home=False)


def test_nodes_that_are_to_come_are_asked_for_only_if_told_so() -> None:
    node = GPU_NODES[0]
    assert placed(sized([node]), [node], "a", 99) == {"a": 15}
    assert placed(sized([node], grow_to=20), [node], "a", 99) == {"a": 15, "": 5}
    assert Place("", home=False).options()["resources"] == {"decode": 1}


def test_a_full_node_is_left_alone_for_a_while_and_an_unfit_one_for_good() -> None:
    nodes = [*LAPTOP, *CPU_NODES]
    people = Crew(encoders=1, decoders=9, gpus_each=0, threads=1, share=2, elsewhere=None)
    places = Places(people, "laptop", look=lambda: nodes)
    taken = ["laptop"]
    assert places.next(taken) == Place("c", home=False)
    places.note_full("c")
    assert places.next(taken) == Place("d", home=False)
    places.note_unfit("d")
    assert places.next(taken) is None


def test_gpus_that_come_later_get_an_encoder_and_those_that_vanish_are_asked_for_again() -> None:
    nodes = [*GPU_NODES]
    people = sized(nodes)
    now = workers_now(people, fixed=False, look=lambda: nodes, every_s=0.0)
    fixed = workers_now(people, fixed=True, look=lambda: nodes, every_s=0.0)
    assert now() == fixed() == 2
    nodes += [*EIGHT, *CPU_NODES, Node("coreless", 1, 4)]
    assert (now(), fixed()) == (2 + 8 + 1, 2)
    nodes.clear()
    assert now() == fixed() == 2
    # Without GPUs encoders are as many as at the start: their threads are a share of the cores there were.
    assert workers_now(sized(LAPTOP), fixed=False, look=lambda: nodes, every_s=0.0)() == 1
