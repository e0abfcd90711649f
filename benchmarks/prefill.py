"""Prefill of a 7B model: all visual tokens against 5 % of them, by the fast engine and by the library's forward.

    python -m benchmarks.prefill

Random weights of Qwen2.5-VL-7B's shape, random tokens, batch 1, 256 tokens a cell and 32 of text. Operations are those
of the layers' matrix products and of causal attention; their share is of the rate of the same products done bare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import (
    device_of,
    kernels_of,
    matmul_rate,
    relative_error,
    seconds_of,
    write_record,
)
from benchmarks.prompts import TEXT_TOKENS, library_inputs, prefill_work, random_prompt
from benchmarks.released import random_model
from echoprune.fast.language import Cache, LanguageModel
from echoprune.models.prompt import Prompt

CELL_TOKENS = 256
# Longer inputs take the matrix rate of this many rows: it no longer rises.
RATE_ROWS = 16384


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every size and prints the table."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    model = random_model("qwen2_5_vl", device=device, dtype=torch.bfloat16, tiny=options.tiny)
    language = LanguageModel(model)
    sizes = [int(cells) * CELL_TOKENS for cells in options.cells.split(",")]
    results: dict[str, Any] = {"sizes": []}
    for dense in sizes:
        pair = [
            measure(model, language, visual, options) for visual in (dense, dense * options.percent // 100)
        ]
        ratios = {name: pair[0][name] / pair[1][name] for name in ("fast_s", "library_s") if name in pair[0]}
        results["sizes"].append({"dense": pair[0], "pruned": pair[1], "ratios": ratios})
        write_record(options.json, vars(options), results)
        print("\n".join(_lines(pair, ratios)), flush=True)
    results["kernels"] = _kernels(model, language, sizes[0] * options.percent // 100)
    write_record(options.json, vars(options), results)
    results["errors"] = errors(model, language, sizes[0] * options.percent // 100)
    write_record(options.json, vars(options), results)
    print(
        "relative error of the first logits against the library in float32: library {library:.2e}, fast {fast:.2e}".format(
            **results["errors"]
        )
    )
    print(
        "\n".join(f"  {row['us']:>9.1f} us {row['calls']:>4} x {row['kernel']}" for row in results["kernels"])
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefill", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--cells", default="160,320", help="cells of 256 tokens, separated by commas")
    parser.add_argument("--percent", type=int, default=5, help="visual tokens that are kept (5)")
    parser.add_argument("--repeat", type=int, default=3, help="the median of so many calls counts (3)")
    parser.add_argument("--no-library", action="store_true", help="leave out the library's forward")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="small layers, to try it on a CPU")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


@torch.no_grad()
def measure(model: Any, language: LanguageModel, visual: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, rate and share of one prompt."""
    prompt = random_prompt(model, language, visual)
    length = len(prompt)
    cache = Cache(language, 1, length)
    products, attention = prefill_work(model.config, length)
    operations = attention + sum(2.0 * times * m * n * k for times, m, n, k in products)
    few = [(times, min(rows, RATE_ROWS), columns, inner) for times, rows, columns, inner in products]
    rate = matmul_rate(few, language.device, language.dtype)
    run = partial(language.prefill, [prompt], [0], cache)
    taken = seconds_of(run, language.device, repeat=options.repeat, warm=1)
    found = {
        "visual_tokens": visual,
        "tokens": length,
        "operations": operations,
        "matmul_rate": rate,
        "fast_s": taken,
        "rate": operations / taken,
        "share": operations / taken / rate,
    }
    del cache
    if not options.no_library:
        found["library_s"] = seconds_of(
            partial(_library, model, prompt), language.device, repeat=options.repeat, warm=1
        )
    return found


@torch.no_grad()
def _library(model: Any, prompt: Prompt) -> torch.Tensor:
    logits: torch.Tensor = model(**library_inputs(model, prompt), logits_to_keep=1, use_cache=False).logits
    return logits[:, -1]


@torch.no_grad()
def errors(model: Any, language: LanguageModel, visual: int) -> dict[str, float]:
    """Relative errors of the first logits in bf16; the library's model is float32 afterwards, the fast one is not."""
    prompt = random_prompt(model, language, visual, seed=1)
    cache = Cache(language, 1, len(prompt))
    fast = language.prefill([prompt], [0], cache)
    library = _library(model, prompt)
    model.float()
    exact = _library(model, prompt)
    return {"library": relative_error(library, exact), "fast": relative_error(fast, exact)}


def _kernels(model: Any, language: LanguageModel, visual: int) -> list[dict[str, Any]]:
    prompt = random_prompt(model, language, visual)
    return kernels_of(
        partial(language.prefill, [prompt], [0], Cache(language, 1, len(prompt))), language.device
    )


def _lines(pair: Sequence[dict[str, Any]], ratios: dict[str, float]) -> list[str]:
    lines = []
    for each in pair:
        library = f"{each['library_s'] * 1e3:>10.1f}" if "library_s" in each else ""
        lines.append(
            f"{each['visual_tokens']:>7,} visual tokens + {TEXT_TOKENS}: fast {each['fast_s'] * 1e3:>8.1f} ms, "
            f"{each['rate'] / 1e12:>4.0f} T op/s, {each['share']:.0%} of {each['matmul_rate'] / 1e12:.0f}; library, ms {library}"
        )
    return [
        *lines,
        "  all against kept: " + ", ".join(f"{name} x{value:.1f}" for name, value in ratios.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
