"""Searching tokens across millions of cells: time and memory of both stages, by number of cells.

    python -m benchmarks.search_cells

Stores of synthetic tokens (64 wide, one a cell, each cell its own direction) are written by the real writer and searched in
a process of their own, so that its highest resident size is that of the search alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from echoprune.dtype import encode_rows
from echoprune.pool import pool_cells
from echoprune.receipt import Receipt
from echoprune.schema import StoreSettings
from echoprune.search import search_tokens
from echoprune.shard import ShardWriter, commit
from echoprune.sources import video_id
from echoprune.store import create_store, open_store

DIM = 64
VIDEO_CELLS = 50_000
QUERY_SEED = 9


def settings() -> StoreSettings:
    """Those of a store of 64-wide bf16 tokens, one a cell."""
    return StoreSettings(
        family="qwen2_5_vl", model_fingerprint="0" * 64, dim=DIM, compute_dtype="bf16", fps="2", max_frames=None,
        frames=None, max_pixels=None, decoder="auto", cell_frames=2, segment_cells=8, keep="all", anchor_every_s=0.0,
        temperature=0.5, window=None, dtype="bf16",
    )  # fmt: skip


def write(folder: Path, cells: int) -> None:
    """A store of `cells` cells in videos of VIDEO_CELLS, ten a shard."""
    made_with = settings()
    storage = create_store(folder, made_with)
    videos = cells // VIDEO_CELLS
    for first in range(0, videos, 10):
        shard_id = f"{first:016x}"
        with storage.tmp_dir() as place:
            writer = ShardWriter(place, made_with, shard_id)
            for number in range(first, min(first + 10, videos)):
                writer.add_video(*_video(number, made_with))
            files = writer.close()
            receipt = Receipt(
                shard_id=shard_id, generation=0, files=tuple(file.entry for file in files), ok=writer.outcomes["ok"],
                partial=0, failed=0, lease_epoch=1, run_id="benchmark", host="here", started_at="", finished_at="",
            )  # fmt: skip
            commit(storage, files, receipt, check_epoch=lambda: None)


def _video(
    number: int, made_with: StoreSettings
) -> tuple[dict[str, Any], dict[str, Any], Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]]]:
    tokens = torch.randn((VIDEO_CELLS, DIM), generator=torch.Generator().manual_seed(number)).bfloat16()
    pooled, radius = pool_cells(tokens[:, None])
    zeros = torch.zeros(VIDEO_CELLS)
    rows = encode_rows(tokens, made_with, correspondence=zeros, echo=zeros, deepstack=None)
    times = np.arange(VIDEO_CELLS, dtype=np.float64)
    uri = f"/videos/{number:04d}.mp4"
    row = {
        "video_id": video_id(uri),
        "uri": uri,
        "status": "ok",
        "cells": VIDEO_CELLS,
        "grid_h": 1,
        "grid_w": 1,
    }
    columns = {
        "time_s": times,
        "end_s": times + 1,
        "pts_s": times,
        "anchor": np.zeros(VIDEO_CELLS, bool),
        "mean_novelty": np.zeros(VIDEO_CELLS, np.float32),
        "pooled": pooled,
        "radius": radius,
    }
    return row, columns, iter([(np.arange(VIDEO_CELLS), rows)])


def search(folder: Path) -> dict[str, float]:
    """Time and highest resident size of one search, in this process."""
    store = open_store(folder)
    query = torch.randn((3, DIM), generator=torch.Generator().manual_seed(QUERY_SEED))
    store.videos()
    Path("/proc/self/clear_refs").write_text("5")  # the highest size counts from here
    before = _mib("VmRSS")
    started = time.perf_counter()
    hits = search_tokens(store, query, limit=10)
    elapsed = time.perf_counter() - started
    return {
        "seconds": elapsed,
        "opened": hits.stats.cells_opened / hits.stats.cells,
        "grown_mib": _mib("VmHWM") - before,
        "best": hits.moments[0].score,
    }


def _mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, nargs="+", default=[250_000, 1_000_000, 4_000_000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(search(options.one)))
        return
    print("| cells | seconds | cells opened | memory of the search, MiB |\n|---|---|---|---|")
    for cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "store", cells)
            command = [sys.executable, "-m", "benchmarks.search_cells", "--one", f"{folder}/store"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
        print(
            f"| {cells:,} | {found['seconds']:.1f} | {found['opened']:.1%} | {found['grown_mib']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
