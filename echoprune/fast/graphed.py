"""A vision tower's work on a segment as one CUDA graph for each frame size, started by one call instead of some five hundred.

Python started the kernels of 8 cells of a Qwen2.5-VL-7B tower in 21 ms, and an H200 ran them in 20: beside threads that choose and
write, and 15 processes that decode, starting took 31 ms, and the GPU waited. A graph holds the same kernels on the same
memory, so that its tokens are the same bits, which is looked at once for each size.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from echoprune.data import TokenGrid

log = logging.getLogger(__name__)

# To capture takes as long as a few calls: a size that comes once or twice is not worth it.
_CALLS_BEFORE = 3
# Sizes with a graph at most, each some 25 MB of pixels and tokens; what is between those is shared.
_MOST = 32


@dataclass(frozen=True)
class _Graph:
    """What `graph` makes of what is in `pixels` is in `found`, until it is replayed."""

    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    found: TokenGrid

    def replay(self, pixels: torch.Tensor) -> TokenGrid:
        """The tokens of `pixels`, in memory of their own."""
        self.pixels.copy_(pixels)
        self.graph.replay()
        maps = self.found.deepstack
        return TokenGrid(self.found.tokens.clone(), None if maps is None else maps.clone())


class Graphed:
    """`run` with the same results; for one thread at a time, on one stream."""

    def __init__(self, run: Callable[[torch.Tensor], TokenGrid]) -> None:
        self._run = run
        self._calls: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, _Graph] = {}
        # torch has no public name for its type.
        self._pool: Any = None

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> TokenGrid:
        """TokenGrid of uint8 `pixels` (F, H, W, 3) on a GPU; waits for that once for each size."""
        size = pixels.shape
        if size in self._graphs:
            return self._graphs[size].replay(pixels)
        found = self._run(pixels)
        self._calls[size] += 1
        if self._calls[size] == _CALLS_BEFORE and len(self._graphs) < _MOST:
            graph = self._captured(pixels)
            if _equal(graph.replay(pixels), found):
                self._graphs[size] = graph
            else:
                log.warning(
                    "frames of %d x %d pixels are encoded without a CUDA graph, which gave other bits",
                    *size[1:3],
                )
        return found

    def _captured(self, pixels: torch.Tensor) -> _Graph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        place = pixels.clone()
        graph = torch.cuda.CUDAGraph()
        # Other threads copy rows of the segment before meanwhile, on streams of their own.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            found = self._run(place)
        return _Graph(graph, place, found)


def graphed(
    run: Callable[[torch.Tensor], TokenGrid], device: torch.device
) -> Callable[[torch.Tensor], TokenGrid]:
    """`run`, by graphs where `device` is a GPU."""
    return Graphed(run) if device.type == "cuda" else run


def _equal(one: TokenGrid, two: TokenGrid) -> bool:
    if not torch.equal(one.tokens.view(torch.uint8), two.tokens.view(torch.uint8)):
        return False
    if one.deepstack is None or two.deepstack is None:
        return one.deepstack is two.deepstack
    return torch.equal(one.deepstack.view(torch.uint8), two.deepstack.view(torch.uint8))
