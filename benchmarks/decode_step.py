"""One step of decoding with a 7B model at 4,096 tokens of context: batch 1, 16 and 64, without a capture per length.

    python -m benchmarks.decode_step

Random weights of Qwen2.5-VL-7B's shape. The floor is what must be read: weights, keys and values, at the rate of a copy
within the device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import device_of, kernels_of, relative_error, seconds_of, write_record
from benchmarks.prompts import library_inputs, random_prompt
from benchmarks.released import random_model
from echoprune.fast.engine import Engine, Rules
from echoprune.fast.language import Cache

# Steps of one measurement; the context grows by as much.
STEPS = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every batch and prints the table."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    model = random_model("qwen2_5_vl", device=device, dtype=torch.bfloat16, tiny=options.tiny)
    engine = Engine(model)
    results: dict[str, Any] = {"copy_rate": copy_rate(device), "batches": []}
    print(f"a copy within the device: {results['copy_rate'] / 1e12:.2f} TB/s")
    for batch in (int(each) for each in options.batches.split(",")):
        found = measure(engine, batch, options, results["copy_rate"])
        results["batches"].append(found)
        write_record(options.json, vars(options), results)
        print(
            f"batch {batch:>3}, {options.context} tokens: {found['step_s'] * 1e3:>7.2f} ms; floor "
            f"{found['floor_s'] * 1e3:.2f} ms ({found['floor_s'] / found['step_s']:.0%}); {batch / found['step_s']:,.0f} tokens/s"
        )
        for row in found["kernels"]:
            print(f"  {row['us']:>9.1f} us {row['calls']:>4} x {row['kernel']}", flush=True)
    results["error"] = step_error(engine, model, options.context // 4)
    print(f"a step against a prefill of one token more, relative error of logits: {results['error']:.2e}")
    write_record(options.json, vars(options), results)
    if not options.no_library:
        results["library_step_s"] = library_step(model, engine, options.context)
        print(f"library, batch 1, growing cache: {results['library_step_s'] * 1e3:.1f} ms a step")
        write_record(options.json, vars(options), results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode_step", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--batches", default="1,16,64", help="separated by commas")
    parser.add_argument("--context", type=int, default=4096, help="tokens that each sequence has (4096)")
    parser.add_argument("--repeat", type=int, default=5, help=f"medians of so many runs of {STEPS} steps (5)")
    parser.add_argument("--no-library", action="store_true", help="leave out the library's generate")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="small layers, to try it on a CPU")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def copy_rate(device: torch.device) -> float:
    """Bytes a second read and written by a copy within the device."""
    count = (2 << 30) if device.type == "cuda" else (64 << 20)
    one, two = (torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * count / seconds_of(lambda: two.copy_(one), device)


@torch.no_grad()
def measure(engine: Engine, batch: int, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Seconds of a step of `batch` sequences, and of reading what it must."""
    language = engine.model
    rules = Rules(max_new_tokens=1, ended=frozenset())
    room = options.context + STEPS * (options.repeat + 4)
    state = engine._state_for(batch, room, rules)
    for index in range(len(language.layers)):
        for each in state.cache.layer(index):
            each.normal_()

    def steps() -> None:
        # Back to the context asked for, so that every run sees the same lengths.
        state.seen[:batch] = options.context
        state.positions[:batch] = options.context
        state.new[:batch] = 1
        for _ in range(STEPS):
            engine._step(state, batch)

    step_s = seconds_of(steps, language.device, repeat=options.repeat, warm=2) / STEPS
    read = _weight_bytes(engine) + batch * options.context * _token_bytes(engine)
    kernels = kernels_of(partial(engine._step, state, batch), language.device, most=10)
    return {
        "batch": batch,
        "context": options.context,
        "step_s": step_s,
        "floor_s": read / rate,
        "kernels": kernels,
    }


def _weight_bytes(engine: Engine) -> int:
    language = engine.model
    weights = [language._head]
    for layer in language.layers:
        weights += [layer.qkv[0], layer.out, layer.inner, layer.outer]
    return sum(weight.nbytes for weight in weights)


def _token_bytes(engine: Engine) -> int:
    language = engine.model
    return 2 * len(language.layers) * language.kv_heads * language.width * language.dtype.itemsize


@torch.no_grad()
def step_error(engine: Engine, model: Any, length: int) -> float:
    """How far the logits of a step are from those of a prefill that has its token in the prompt."""
    language = engine.model
    prompt = random_prompt(model, language, length)
    cache = Cache(language, 1, len(prompt) + 1)
    # All but the last id, then the last one as a step.
    shorter = type(prompt)(
        prompt.input_ids[:-1], prompt.position_ids[:, :-1], prompt.tokens, prompt.deepstack, 0
    )
    expected = language.prefill([prompt], [0], cache)
    language.prefill([shorter], [0], cache)
    last = [each[-1:].to(language.device) for each in (prompt.input_ids, prompt.position_ids[0])]
    seen = torch.tensor([len(shorter)], device=language.device)
    found = language.step(last[0], last[1], seen, torch.ones_like(seen), cache)
    return relative_error(found, expected)


@torch.no_grad()
def library_step(model: Any, engine: Engine, context: int) -> float:
    """Seconds of a step of the library's own greedy generate, batch 1: nine new tokens less one."""
    prompt = random_prompt(model, engine.model, context)

    def generate(new: int) -> None:
        model.generate(
            **library_inputs(model, prompt), max_new_tokens=new, min_new_tokens=new, do_sample=False
        )

    one, nine = (seconds_of(partial(generate, new), engine.model.device, repeat=2, warm=1) for new in (1, 9))
    return (nine - one) / 8


if __name__ == "__main__":
    sys.exit(main())
