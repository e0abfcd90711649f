"""Answers a second: prompts of 2,048 to 6,144 tokens, 32 new ones each, slots refilled as texts end.

    python -m benchmarks.answers

Random weights of Qwen2.5-VL-7B's shape. The bound is what the same engine's prefill and decode rates allow, measured
alone in the same process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import device_of, seconds_of, write_record
from benchmarks.prompts import TEXT_TOKENS, library_inputs, random_prompt
from benchmarks.released import random_model
from echoprune.fast.engine import Engine, Rules
from echoprune.fast.language import Cache
from echoprune.models.prompt import Prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    model = random_model("qwen2_5_vl", device=device, dtype=torch.bfloat16, tiny=options.tiny)
    engine = Engine(model)
    generator = torch.Generator().manual_seed(0)
    low, high = options.mean // 2, options.mean * 3 // 2
    lengths = torch.randint(low, high + 1, (options.answers,), generator=generator).tolist()
    prompts = [
        random_prompt(model, engine.model, length - TEXT_TOKENS, seed=index)
        for index, length in enumerate(lengths)
    ]
    results: dict[str, Any] = {"lengths": lengths, "slots": []}
    for slots in (int(each) for each in options.slots.split(",")):
        found = measure(engine, prompts, slots, options)
        results["slots"].append(found)
        write_record(options.json, vars(options), results)
        print(
            f"{slots:>3} slots: {found['answers_per_s']:.2f} answers/s; bound {found['bound_per_s']:.2f} "
            f"({found['answers_per_s'] / found['bound_per_s']:.0%}); prefill {found['prefill_tokens_per_s']:,.0f} tokens/s, "
            f"step {found['step_s'] * 1e3:.2f} ms",
            flush=True,
        )
    if not options.no_library:
        results["library"] = library(model, engine, prompts[:2], options.new)
        print(
            "library, one by one: {answers_per_s:.2f} answers/s; equal ids {equal:.0%}".format(
                **results["library"]
            )
        )
        write_record(options.json, vars(options), results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.answers", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--answers", type=int, default=128)
    parser.add_argument("--mean", type=int, default=4096, help="tokens of a prompt on average (4096)")
    parser.add_argument("--new", type=int, default=32, help="new tokens of each (32)")
    parser.add_argument("--slots", default="16,64", help="sequences at a time, separated by commas")
    parser.add_argument("--no-library", action="store_true", help="leave out the library's generate")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="small layers, to try it on a CPU")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


@torch.no_grad()
def measure(
    engine: Engine, prompts: Sequence[Prompt], slots: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Answers a second with so many slots, and the bound."""
    rules = Rules(max_new_tokens=options.new, ended=frozenset())
    device = engine.model.device
    # Graphs are captured, kernels compiled and the cache made before the clock starts: once a process.
    engine.follow(prompts[: min(len(prompts), 2 * slots)], Rules(2, frozenset()), slots=slots)
    longest = max(len(prompt) for prompt in prompts)
    engine._state_for(min(slots, len(prompts)), longest + options.new, rules)
    engine.follow(prompts[: min(len(prompts), slots)], Rules(2, frozenset()), slots=slots)
    started = time.perf_counter()
    texts = engine.follow(prompts, rules, slots=slots)
    taken = time.perf_counter() - started
    assert all(len(text) == options.new for text in texts)
    state = engine._state_for(min(slots, len(prompts)), longest + options.new, rules)
    used = min(slots, len(prompts))

    def steps() -> None:
        state.seen[:used] = options.mean
        state.new[:used] = 1
        for _ in range(8):
            engine._step(state, used)

    step_s = seconds_of(steps, device, repeat=3, warm=1) / 8
    some = list(prompts[:4])
    cache = Cache(engine.model, 1, longest)
    prefill_s = sum(
        seconds_of(lambda each=each: engine.model.prefill([each], [0], cache), device, repeat=2, warm=1)  # type: ignore[misc]
        for each in some
    )
    rate = sum(len(prompt) for prompt in some) / prefill_s
    mean = sum(len(prompt) for prompt in prompts) / len(prompts)
    bound = 1 / (mean / rate + (options.new - 1) * step_s / used)
    return {
        "slots": slots,
        "seconds": taken,
        "answers_per_s": len(prompts) / taken,
        "prefill_tokens_per_s": rate,
        "step_s": step_s,
        "bound_per_s": bound,
    }


@torch.no_grad()
def library(model: Any, engine: Engine, prompts: Sequence[Prompt], new: int) -> dict[str, float]:
    """Answers a second of the library's generate one by one, and the share of ids that are the engine's too."""
    texts = engine.follow(prompts, Rules(new, frozenset()), slots=len(prompts))
    same, started = 0, time.perf_counter()
    for prompt, text in zip(prompts, texts, strict=True):
        inputs = library_inputs(model, prompt)
        ids = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        found = ids[0, len(prompt) :].tolist()
        same += sum(one == two for one, two in zip(found, text, strict=True))
    return {
        "answers_per_s": len(prompts) / (time.perf_counter() - started),
        "equal": same / (new * len(prompts)),
    }


if __name__ == "__main__":
    sys.exit(main())
