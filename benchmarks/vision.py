"""Vision encoding at the released shapes: the library's tower as `from_pretrained` gives it, against `--tower fast`.

    python -m benchmarks.vision

Random weights and pixels. Frames a second; operations a second, those of the published widths alone; their share of the
rate of the tower's own matrix products done bare; relative error of bf16 against the plain tower in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import (
    Product,
    device_of,
    kernels_of,
    matmul_rate,
    relative_error,
    seconds_of,
    write_record,
)
from benchmarks.released import FAMILIES, config, layout, random_tower
from echoprune.data import TokenGrid
from echoprune.fast.qwen_vision import FastQwenTower
from echoprune.fast.siglip_vision import FastSiglipTower, pooled_tokens
from echoprune.models import llava_onevision, qwen_vision
from echoprune.models.encoder import PatchLayout

Run = Callable[[torch.Tensor], TokenGrid]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures each family and prints a table."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    results: dict[str, Any] = {}
    for family in options.families.split(","):
        results[family] = measure(family, device, options)
        write_record(options.json, vars(options), results)
        print(table(family, results[family]), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision", description=__doc__.split("\n\n")[0])
    parser.add_argument("--families", default=",".join(FAMILIES), help="separated by commas")
    parser.add_argument("--side", type=int, default=448, help="pixels of a frame's side (448)")
    parser.add_argument("--cells", type=int, default=8, help="cells a call (8)")
    parser.add_argument("--repeat", type=int, default=10, help="the median of so many calls counts (10)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="small layers, to try it on a CPU")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


@torch.no_grad()
def measure(family: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one family."""
    torch.manual_seed(0)
    tower = random_tower(family, device=device, dtype=torch.bfloat16, tiny=options.tiny)
    plain, fast = runs(family, tower)
    side = options.side if family != "llava_onevision" else 384
    frames = options.cells * layout(family).cell_frames
    pixels = torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8, device=device)
    products, attention = work(family, side, options.cells, tiny=options.tiny)
    operations = attention + sum(2.0 * times * m * n * k for times, m, n, k in products)
    rate = matmul_rate(products, device, torch.bfloat16)
    found: dict[str, Any] = {"frames": frames, "operations": operations, "matmul_rate": rate}
    for name, run in (("plain", plain), ("fast", fast)):
        # The plain tower calls thousands of kernels: a few repeats are enough.
        taken = seconds_of(partial(run, pixels), device, repeat=options.repeat if name == "fast" else 3)
        found[name] = {
            "seconds": taken,
            "frames_per_s": frames / taken,
            "rate": operations / taken,
            "share": operations / taken / rate,
        }
    found["ratio"] = found["plain"]["seconds"] / found["fast"]["seconds"]
    found |= _errors(family, tower, plain, fast, pixels)
    found["neighbours"] = _neighbours(fast, pixels, layout(family).cell_frames)
    found["kernels"] = kernels_of(partial(fast, pixels), device)
    return found


def runs(family: str, tower: Any) -> tuple[Run, Run]:
    """From pixels to tokens: plain, and fast."""
    found = layout(family)
    if isinstance(found, PatchLayout):
        return partial(qwen_vision.tokens_of, tower, found), FastQwenTower(tower, found)
    projector = tower["projector"]
    plain: tuple[llava_onevision.States, llava_onevision.Tokens] = (
        partial(llava_onevision.library_states, tower["tower"], -1),
        partial(llava_onevision.library_tokens, projector),
    )
    fast = FastSiglipTower(tower["tower"], -1), partial(pooled_tokens, projector)
    return partial(llava_onevision.tokens_of, *plain, found), partial(llava_onevision.tokens_of, *fast, found)


def work(family: str, side: int, cells: int, *, tiny: bool) -> tuple[list[Product], float]:
    """The tower's matrix products at their published widths, and the operations of attention."""
    whole = config(family, tiny=tiny)
    vision = whole.vision_config
    hidden, inner = vision.hidden_size, vision.intermediate_size
    patch = vision.patch_size
    rows_a_cell = (side // patch) ** 2
    rows = cells * rows_a_cell
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    gated = family == "qwen2_5_vl"
    products: list[Product] = [
        (depth, rows, 3 * hidden, hidden),
        (depth, rows, hidden, hidden),
        (depth, rows, (2 if gated else 1) * inner, hidden),
        (depth, rows, hidden, inner),
        (1, rows, hidden, 3 * patch**2 * (1 if family == "llava_onevision" else 2)),
    ]
    if family == "llava_onevision":
        dim = whole.text_config.hidden_size
        products += [(1, rows, dim, hidden), (1, rows, dim, dim)]
    else:
        mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
        products += [
            (mergers, rows // 4, 4 * hidden, 4 * hidden),
            (mergers, rows // 4, vision.out_hidden_size, 4 * hidden),
        ]
    # A whole window has (112 / 14)^2 patches.
    full = len(vision.fullatt_block_indexes) if gated else depth
    window = (vision.window_size // patch) ** 2 if gated else 0
    return products, 4.0 * rows * hidden * (full * rows_a_cell + (depth - full) * window)


def _errors(family: str, tower: Any, plain: Run, fast: Run, pixels: torch.Tensor) -> dict[str, float]:
    """Relative errors of tokens in bf16, against the plain tower in float32, on the first cells."""
    few = pixels[: 2 * layout(family).cell_frames]
    one, two = plain(few).tokens, fast(few).tokens
    # The library's module itself becomes float32 for a moment: a second copy is not needed.
    exact_plain, _ = runs(family, tower.float())
    exact = exact_plain(few).tokens
    tower.to(torch.bfloat16)
    errors = {"plain_error": relative_error(one, exact), "fast_error": relative_error(two, exact)}
    return errors | {"error_ratio": errors["fast_error"] / errors["plain_error"]}


def _neighbours(fast: Run, pixels: torch.Tensor, each: int) -> bool:
    """Whether the first cell keeps its bits when it is the last, among others."""
    moved = pixels.flip(0).contiguous()
    moved[-each:] = pixels[:each]
    return torch.equal(fast(pixels).tokens[0], fast(moved).tokens[-1])


def table(family: str, found: dict[str, Any]) -> str:
    """What is printed of one family."""
    lines = [
        f"{family}: {found['frames']} frames a call; its matrix products alone: {found['matmul_rate'] / 1e12:.0f} "
        "T operations/s",
        f"{'':<7} {'frames/s':>9} {'T op/s':>7} {'share':>6} {'error':>9}",
    ]
    lines += [
        f"{name:<7} {found[name]['frames_per_s']:>9.0f} {found[name]['rate'] / 1e12:>7.0f} {found[name]['share']:>6.0%} "
        f"{found[name + '_error']:>9.2e}"
        for name in ("plain", "fast")
    ]
    lines.append(
        f"x{found['ratio']:.1f}; error x{found['error_ratio']:.2f}; a cell's bits are its own: {found['neighbours']}"
    )
    lines += [f"  {row['us']:>9.1f} us {row['calls']:>4} x {row['kernel']}" for row in found["kernels"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
