"""What echo scores cost beside the encoding they follow: cells a second, and the share of the encoder's time.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --device cuda

On a CPU the encoder is the library's own tower in the shape of Qwen2.5-VL-7B with random weights: of its 32 blocks a few
are timed, windowed and full ones apart, and added up, since the whole takes minutes. Seconds are those of the CPU, in one
thread: on a shared machine those of the clock tell what others are doing. On a GPU it is the whole tower in bf16 by
`--tower fast`, at 256 and at 1,024 tokens a cell, and scores come in both ways, in chunks and by one kernel, with the
choice of a quarter of the tokens after them. Tokens are random; nothing takes a path that depends on values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as library

from echoprune.echo import echo_scores
from echoprune.pool import pool_cells
from pipelines.versions import versions

DIM = 3584
BLOCKS, FULL_BLOCKS = 32, 4
PATCHES_A_TOKEN = 4


@dataclass(frozen=True)
class Case:
    """Tokens (h, w) of a cell and the echo's window: the settings of the paper's two families."""

    name: str
    grid_hw: tuple[int, int]
    temperature: float
    window: int | None


CASES = (
    Case("256 tokens, whole frame", (16, 16), 0.5, None),
    Case("196 tokens, 3 x 3 window", (14, 14), 0.1, 3),
)


@dataclass(frozen=True)
class Result:
    """Seconds per cell."""

    case: Case
    score_s: float
    pool_s: float
    encode_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures all cases and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--cells", type=int, default=32, help="cells scored at a time (32)")
    parser.add_argument("--repeat", type=int, default=5, help="the quickest of so many calls counts (5)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        from benchmarks.scoring_gpu import measure_all  # noqa: PLC0415 - its parts need not load on a CPU

        return measure_all(options)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = [measure(case, cells=options.cells, repeat=options.repeat) for case in CASES]
    print(f"cells (c) per second of one core; bf16 tokens of width {DIM}, a 7B model's tower in float32")
    print(
        f"{'':<26} {'scored':>10} {'pooled':>10} {'encoded':>11} {'score : encode':>15} {'pool : encode':>14}"
    )
    for result in results:
        print(
            f"{result.case.name:<26} {1 / result.score_s:>6.0f} c/s {1 / result.pool_s:>6.0f} c/s "
            f"{1 / result.encode_s:>7.3f} c/s {result.score_s / result.encode_s:>15.2%} "
            f"{result.pool_s / result.encode_s:>14.2%}"
        )
    if options.json is not None:
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "versions": versions(),
            "options": {
                "cells": options.cells,
                "repeat": options.repeat,
                "dim": DIM,
            },
            "seconds_per_cell": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(case: Case, *, cells: int, repeat: int) -> Result:
    """Times one case: scoring, pooling and encoding."""
    height, width = case.grid_hw
    base = torch.randn(1, height * width, DIM)
    # Neighbouring cells alike, as in a video; the work is the same for any values.
    tokens = (base + 0.3 * torch.randn(cells, height * width, DIM)).to(torch.bfloat16)

    def score() -> None:
        echo_scores(tokens, grid_hw=case.grid_hw, temperature=case.temperature, window=case.window)

    return Result(
        case=case,
        score_s=_quickest(score, repeat) / cells,
        pool_s=_quickest(lambda: pool_cells(tokens), repeat) / cells,
        encode_s=encode_seconds(case.grid_hw, repeat=repeat),
    )


@torch.no_grad()
def encode_seconds(grid_hw: tuple[int, int], *, repeat: int) -> float:
    """Seconds for one cell in the tower of a 7B model, from towers of one and two blocks."""
    grid = torch.tensor([[1, 2 * grid_hw[0], 2 * grid_hw[1]]])
    patches = torch.randn(PATCHES_A_TOKEN * grid_hw[0] * grid_hw[1], 3 * 2 * 14 * 14)
    seconds = {}
    for name, depth, full in (("one", 1, []), ("windowed", 2, []), ("full", 2, [1])):
        tower = _tower(depth=depth, full=full)
        seconds[name] = _quickest(lambda tower=tower: tower(patches, grid_thw=grid), repeat)  # type: ignore[misc]
    windowed, full_s = seconds["windowed"] - seconds["one"], seconds["full"] - seconds["one"]
    return seconds["one"] + (BLOCKS - FULL_BLOCKS - 1) * windowed + FULL_BLOCKS * full_s


def _tower(*, depth: int, full: list[int]) -> Any:
    config = library.Qwen2_5_VLVisionConfig(
        depth=depth,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=DIM,
        window_size=112,
        fullatt_block_indexes=full,
    )
    config._attn_implementation = "sdpa"
    return library.Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def _quickest(call: Callable[[], object], repeat: int) -> float:
    """CPU seconds of the quickest of `repeat` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeat):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
