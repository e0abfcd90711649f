"""Whole numbers and places that lie evenly: what policies do with a budget that is no multiple of anything."""

from __future__ import annotations

import math

import torch


def spread(count: int, size: int) -> torch.Tensor:
    """(count,) int64, ascending: the middles of `count` equal parts of 0..size-1; `count` <= `size`."""
    return ((2 * torch.arange(count) + 1) * size) // max(1, 2 * count)


def spread_places(count: int, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(count,) int64, ascending: places of a grid (h, w), spread in both directions; `count` <= h w.

    About sqrt(count h / w) rows lie evenly, each with its part of `count` places that lie evenly, a row more or less
    differing by one: the middles of the raster as one line would be columns.
    """
    height, width = grid_hw
    rows = max(-(-count // width), min(height, round(math.sqrt(count * height / width)), count))
    shares = shared_out(count, rows)
    picked = [
        row * width + spread(each, width) for row, each in zip(spread(rows, height), shares, strict=True)
    ]
    return torch.cat(picked) if picked else torch.empty(0, dtype=torch.int64)


def shared_out(count: int, parts: int) -> list[int]:
    """`count` in `parts` whole numbers that differ by one at most, the larger ones spread evenly."""
    larger = set(spread(count % parts, parts).tolist()) if parts else set()
    return [count // parts + (part in larger) for part in range(parts)]
