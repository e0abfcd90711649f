"""A store's size by its payload, and how fast the tokens of one video come from local disk to memory and to the device.

    python -m benchmarks.store_rate --device cuda

3,584-wide bf16 tokens, 256 places a cell, a quarter of them kept, written by the real writer, with each compression. A read
opens the store anew; pages of the files are in the system's cache, unless `--cold` asks the system to forget them first
(root). "read" is a plain read of the same files into memory that is as new. To a GPU once from memory as it comes, once from
pinned memory. CPU seconds beside those of the clock: on a busy machine they say more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import device_of, write_record
from echoprune import store_files
from echoprune.dtype import encode_rows
from echoprune.pool import pool_cells
from echoprune.receipt import Receipt
from echoprune.schema import COMPRESSIONS, StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import video_id
from echoprune.store import create_store, open_store

DIM, GRID, KEPT = 3584, 16, 64
CHUNK_CELLS = 64
URI = "/videos/one.mp4"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes, reads, prints."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    payload = options.cells * KEPT * DIM * 2
    results: dict[str, Any] = {"tokens": options.cells * KEPT, "payload_bytes": payload}
    for compression in COMPRESSIONS:
        with tempfile.TemporaryDirectory(prefix="store-rate-") as name:
            folder = Path(name) / "store"
            began = time.process_time()
            write(folder, URI, options.cells, compression=compression)
            found = {"write_cpu_s": time.process_time() - began} | measure(folder, device, options)
        found["bytes_by_payload"] = found.pop("bytes") / payload
        results[compression] = found
        write_record(options.json, vars(options), results)
        print(
            f"{compression}: tokens/ is {found['bytes_by_payload']:.4f} of the payload of {payload / 1e6:.0f} MB"
        )
        for what, (clock_s, cpu_s) in found["reads"].items():
            print(
                f"  {what:<34} {clock_s:.3f} s, {payload / clock_s / 1e9:5.2f} GB/s; CPU {cpu_s:.3f} s, "
                f"{payload / cpu_s / 1e9:5.2f} GB/s",
                flush=True,
            )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store_rate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--cells", type=int, default=1200, help="cells of the video, 64 tokens of each (1200)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="the median of so many reads counts (5)")
    parser.add_argument("--cold", action="store_true", help="drop the system's file cache before each read")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def measure(folder: Path, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of clock and CPU by what is done, and the bytes of tokens/."""
    files = sorted((folder / "tokens").iterdir())
    most = store_files.READERS
    reads: dict[str, tuple[float, float]] = {}

    def timed(what: str, call: Callable[[], object]) -> None:
        found = []
        for _ in range(options.repeat):
            if options.cold:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            began, cpu = time.perf_counter(), time.process_time()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found.append((time.perf_counter() - began, time.process_time() - cpu))
        reads[what] = (statistics.median(s for s, _ in found), statistics.median(s for _, s in found))

    timed("plain read()", lambda: [_read(path) for path in files])
    timed("open, find the video", lambda: open_store(folder).video(URI))
    for readers in sorted({1, 2, min(8, most), most}):
        store_files.READERS = readers
        timed(f"to memory, {readers} threads", lambda: open_store(folder).tokens(URI))
    timed(
        f"chunk by chunk, {most} threads",
        lambda: [len(each) for each in open_store(folder).token_chunks(URI)],
    )
    if device.type == "cuda":
        timed(f"to the GPU, {most} threads", lambda: open_store(folder).tokens(URI).tokens.to(device))
        timed(f"to the GPU, pinned, {most} threads", lambda: _pinned(folder, device))
    return {"reads": reads, "bytes": sum(path.stat().st_size for path in files), "most_threads": most}


def _read(path: Path) -> int:
    room = np.empty(path.stat().st_size, np.uint8)
    with path.open("rb", buffering=0) as file:
        return file.readinto(room) or 0


def _pinned(folder: Path, device: torch.device) -> torch.Tensor:
    return open_store(folder).tokens(URI, pin_memory=True).tokens.to(device, non_blocking=True)


def write(
    folder: Path, uri: str, cells: int, *, compression: str = "zstd", model_fingerprint: str = "0" * 64
) -> None:
    """A store with one video."""
    settings = made_with(keep=f"{KEPT}/cell", compression=compression)
    settings = replace(settings, model_fingerprint=model_fingerprint)
    storage = create_store(folder, settings)
    with storage.tmp_dir() as place:
        writer = ShardWriter(place, settings, "0" * 16)
        writer.add_video(video_row(uri, cells), cell_columns(np.zeros(cells, bool)), _rows(settings, cells))
        files = writer.close()
        receipt = Receipt(
            shard_id="0" * 16, generation=0, files=tuple(file.entry for file in files), ok=1, partial=0, failed=0,
            lease_epoch=1, run_id="benchmark", host="here", started_at="", finished_at="",
        )  # fmt: skip
        commit(storage, files, receipt, check_epoch=lambda: None)


def made_with(*, keep: str, anchor_every_s: float = 0.0, compression: str = "zstd") -> StoreSettings:
    """Settings of a store of tokens DIM wide."""
    return StoreSettings(
        family="qwen2_5_vl", model_fingerprint="0" * 64, dim=DIM, compute_dtype="bf16", fps="2", max_frames=None,
        frames=None, max_pixels=None, decoder="auto", cell_frames=2, segment_cells=8, keep=keep,
        anchor_every_s=anchor_every_s, temperature=0.5, window=None, dtype="bf16", compression=compression,
    )  # fmt: skip


def video_row(uri: str, cells: int) -> dict[str, Any]:
    """What a shard's writer is told of a video of GRID x GRID tokens a cell."""
    row = {"video_id": video_id(uri), "uri": uri, "status": "ok", "cells": cells}
    return row | {"grid_h": GRID, "grid_w": GRID, "highest_dropped_novelty": 0.0}


def cell_columns(anchor: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Columns of a video's cells, one a second, of which `anchor` (T,) says which are anchors; vectors are random."""
    times = np.arange(float(len(anchor)))
    pooled, radius = pool_cells(torch.randn(len(anchor), 1, DIM).bfloat16())
    return {
        "time_s": times,
        "end_s": times + 1,
        "pts_s": times,
        "anchor": anchor,
        "mean_novelty": np.zeros(len(anchor), np.float32),
        "pooled": pooled,
        "radius": radius,
    }


def _rows(
    settings: StoreSettings, cells: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]]:
    for first in range(0, cells, CHUNK_CELLS):
        count = min(CHUNK_CELLS, cells - first)
        tokens = torch.randn(count * KEPT, DIM).bfloat16()
        zeros = torch.zeros(len(tokens))
        at = (np.arange(first, first + count)[:, None] * GRID**2 + np.arange(KEPT)).reshape(-1)
        yield at, encode_rows(tokens, settings, correspondence=zeros, echo=zeros, deepstack=None)


if __name__ == "__main__":
    sys.exit(main())
