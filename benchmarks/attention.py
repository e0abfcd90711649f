"""Attention over whole cells at the heads of the vision towers: which of the library's kernels, and how wide.

    python -m benchmarks.attention

Heads of SigLIP and of Qwen3-VL's tower are 72 wide, no power of two; SigLIP's cells have 729 rows. Each case is timed by
every kernel that takes it, as the towers lay queries, keys and values out (one product of all three), with heads as they
are and filled up with zeros, which change nothing but the time. What a tower loses to its attention is the first column
times its blocks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import device_of, relative_error, seconds_of, write_record

# Cells, heads, rows, width of a head; blocks of the tower that attend so.
CASES = {
    "LLaVA-OneVision": (8, 16, 729, 72, 26),
    "Qwen3-VL-8B": (8, 16, 784, 72, 27),
    "Qwen2.5-VL-7B": (8, 16, 1024, 80, 4),
}
WIDTHS = (72, 80, 96, 128)
BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures each case and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="few rows, to try it on a CPU")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    results: list[dict[str, Any]] = []
    for name, (cells, heads, rows, width, blocks) in CASES.items():
        shape = (1, 2, 16, width) if options.tiny else (cells, heads, rows, width)
        found = measure(shape, device)
        results.append({"case": name, "blocks": blocks, "found": found})
        write_record(options.json, vars(options), results)
        print(f"{name}: {blocks} blocks of {shape[2]} rows, heads {width} wide")
        for each in sorted(found, key=lambda each: float(each.get("seconds", float("inf")))):
            said = each.get("refused") or (
                f"{each['seconds'] * 1e6:>8.1f} us, of all blocks {each['seconds'] * blocks * 1e3:>6.2f} ms, "
                f"{each['rate'] / 1e12:>4.0f} T operations/s, error {each['error']:.1e}"
            )
            print(f"  {each['backend']:<10} {each['width']:>4} wide: {said}", flush=True)
    return 0


@torch.no_grad()
def measure(shape: tuple[int, int, int, int], device: torch.device) -> list[dict[str, Any]]:
    """Every kernel and width that is at least the head's, in bf16: seconds of one block, rate of the head's own operations."""
    cells, heads, rows, width = shape
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn((cells, rows, 3, heads, width), generator=generator, device=device).to(torch.bfloat16)
    exact = _attend(qkv.float(), width, width**-0.5)[:2]
    found: list[dict[str, Any]] = []
    for wide in (each for each in WIDTHS if each >= width):
        filled = F.pad(qkv, (0, wide - width))
        for name, backend in BACKENDS.items():
            entry: dict[str, Any] = {"backend": name, "width": wide}
            found.append(entry)
            call = partial(_attend, filled, width, width**-0.5, backend)
            try:
                entry["error"] = relative_error(call()[:2], exact)
            except RuntimeError as error:
                entry["refused"] = str(error).splitlines()[0]
                continue
            entry["seconds"] = seconds_of(call, device)
            entry["rate"] = 4.0 * cells * heads * rows * rows * width / entry["seconds"]
    return found


def _attend(qkv: torch.Tensor, width: int, scale: float, backend: SDPBackend | None = None) -> torch.Tensor:
    """(cells, heads, rows, width) of `qkv` (cells, rows, 3, heads, at least width)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if backend is None:
        found = F.scaled_dot_product_attention(query, key, value, scale=scale)
    else:
        with sdpa_kernel(backend):
            found = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return found[..., :width]


if __name__ == "__main__":
    sys.exit(main())
