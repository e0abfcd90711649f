"""A vision tower's work on a segment as one CUDA graph for each frame size, started by one call instead of some five hundred.

Python started the kernels of 8 cells of a Qwen2.5-VL-7B tower in 21 ms, and an H200 ran them in 20: beside threads that choose and
write, and 15 processes that decode, starting took 31 ms, and the GPU waited. A graph holds the same kernels on the same
memory, so that its tokens are the same bits, which is looked at when it is made.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from echoprune.data import TokenGrid
from echoprune.models.encoder import Running

log = logging.getLogger(__name__)

# To capture takes as long as a few calls: a size that comes once or twice is not worth it.
_CALLS_BEFORE = 3
# Pixels and tokens of all graphs: 25 MB for a size of 448 x 448 pixels and 8 cells of Qwen2.5-VL-7B, 61 of Qwen3-VL-8B. What is
# between those is shared by all, as much as one call takes.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class _Graph:
    """What `graph` makes of what is in `pixels` is in `found`, until it is replayed."""

    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    found: TokenGrid

    @property
    def bytes(self) -> int:
        held = (self.pixels, self.found.tokens, self.found.deepstack)
        return sum(each.nbytes for each in held if each is not None)

    def replay(self, pixels: torch.Tensor) -> TokenGrid:
        """The tokens of `pixels`, in memory of their own."""
        self.pixels.copy_(pixels)
        self.graph.replay()
        maps = self.found.deepstack
        return TokenGrid(self.found.tokens.clone(), None if maps is None else maps.clone())


def graphed(
    run: Callable[[torch.Tensor], TokenGrid], running: Running
) -> Callable[[torch.Tensor], TokenGrid]:
    """`run`, by graphs where it is the fast tower's on a GPU."""
    return Graphed(run) if running.tower == "fast" and running.device.type == "cuda" else run


class Graphed:
    """`run` with the same results; for one thread at a time, on the current stream of one GPU.

    Where the GPU's memory is short there are no graphs any more.
    """

    def __init__(self, run: Callable[[torch.Tensor], TokenGrid]) -> None:
        self._run = run
        self._calls: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, _Graph] = {}
        self._is_given_up = False

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> TokenGrid:
        """TokenGrid of uint8 `pixels` (F, H, W, 3) on a GPU; waits for that once for each size."""
        try:
            return self._found(pixels)
        except torch.OutOfMemoryError:
            if self._is_given_up:
                raise
            log.warning("the GPU's memory is short: frames are encoded without CUDA graphs from here on")
        # Not while the error is handled, which holds what was made until then.
        self._is_given_up = True
        self._graphs.clear()
        return self._run(pixels)

    def _found(self, pixels: torch.Tensor) -> TokenGrid:
        size = pixels.shape
        if size in self._graphs:
            return self._graphs[size].replay(pixels)
        found = self._run(pixels)
        self._calls[size] += 1
        if self._calls[size] == _CALLS_BEFORE and not self._is_given_up and self._is_room():
            graph = self._captured(pixels)
            if _equal(graph.replay(pixels), found):
                self._graphs[size] = graph
            else:
                log.warning(
                    "frames of %d x %d pixels are encoded without a CUDA graph, which gave other bits",
                    *size[1:3],
                )
        return found

    def _is_room(self) -> bool:
        return sum(each.bytes for each in self._graphs.values()) < _MOST_BYTES

    def _captured(self, pixels: torch.Tensor) -> _Graph:
        # That of a graph which is there: one whose graphs are all gone is none any more.
        pool = next((each.graph.pool() for each in self._graphs.values()), None)
        place = pixels.clone()
        graph = torch.cuda.CUDAGraph()
        # Other threads copy rows of the segment before meanwhile, on streams of their own.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            found = self._run(place)
        return _Graph(graph, place, found)


def _equal(one: TokenGrid, two: TokenGrid) -> bool:
    if not torch.equal(one.tokens.view(torch.uint8), two.tokens.view(torch.uint8)):
        return False
    if one.deepstack is None or two.deepstack is None:
        return one.deepstack is two.deepstack
    return torch.equal(one.deepstack.view(torch.uint8), two.deepstack.view(torch.uint8))
