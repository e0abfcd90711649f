"""What follows a video's encoding, per segment and per video: choosing, copying and spilling rows; then writing them.

    python -m benchmarks.beside

A minute of video at 2 frames/s: segments of 8 cells of 256 random tokens, 3,584 wide, bf16, `--keep 0.25` with an anchor every 30 s,
on one thread. Rows are gathered on the CPU here, which a GPU does itself where tokens lie on one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.store_rate import DIM, GRID, cell_columns, made_with, video_row
from echoprune.dtype import encode_rows
from echoprune.schema import token_rows_dtype
from echoprune.shard import ShardWriter
from echoprune.spill import Rows
from echoprune.topk import TopK

CELLS, SEGMENT_CELLS, ANCHOR_CELLS, KEEP = 60, 8, 30, 0.25
MADE_WITH = made_with(keep=str(KEEP), anchor_every_s=float(ANCHOR_CELLS))


class Segment:
    """The rows of `cells` cells, made when they are taken."""

    dtype = token_rows_dtype(MADE_WITH)

    def __init__(self, cells: int) -> None:
        self._tokens = torch.randn(cells * GRID * GRID, DIM).bfloat16()

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, places: np.ndarray) -> Rows:
        """Rows at `places`."""
        scores = torch.zeros(len(places))
        taken = self._tokens[torch.from_numpy(places)]
        return encode_rows(taken, MADE_WITH, correspondence=scores, echo=scores, deepstack=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, default=12)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    firsts = range(0, CELLS, SEGMENT_CELLS)
    segments = [Segment(min(SEGMENT_CELLS, CELLS - first)) for first in firsts]
    columns = cell_columns(np.arange(CELLS) % ANCHOR_CELLS == 0)
    choosing, writing = [], []
    with tempfile.TemporaryDirectory(prefix="beside-") as name:
        writer = ShardWriter(Path(name), MADE_WITH, "0" * 16)
        for number in range(options.videos):
            with TopK(capacity=int(KEEP * CELLS * GRID * GRID), spill_dir=Path(name)) as chosen:
                for first, segment in zip(firsts, segments, strict=True):
                    pinned = np.repeat(
                        np.arange(first, first + len(segment) // GRID**2) % ANCHOR_CELLS == 0, GRID * GRID
                    )
                    began = time.perf_counter()
                    chosen.push(random.random(len(segment)).astype(np.float32), segment, pinned)
                    choosing.append(time.perf_counter() - began)
                row = video_row(f"/videos/{number}.mp4", CELLS)
                began = time.perf_counter()
                writer.add_video(row, columns, chosen.finish(None).chunks(8192))
                writing.append(time.perf_counter() - began)
    print(
        f"choosing, {1e3 * statistics.median(choosing):.0f} ms a segment of {SEGMENT_CELLS} cells "
        f"({1e3 * min(choosing):.0f} to {1e3 * max(choosing):.0f}); "
        f"writing, {1e3 * statistics.median(writing):.0f} ms a minute of video "
        f"({1e3 * min(writing):.0f} to {1e3 * max(writing):.0f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
