"""Draws docs/speed.png from what `python -m benchmarks.gpu` has measured: how many times faster, each pair in one run.

python -m benchmarks.speed_picture benchmarks/results/h200.json docs/speed.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ratios(measured: dict[str, Any]) -> list[tuple[str, float]]:
    """(what against what, how many times faster) in the order of the picture; parts that did not run are left out."""
    parts = {
        name: part["record"]["results"]
        for name, part in measured["parts"].items()
        if part["status"] == "ok" and "results" in part.get("record", {})
    }
    found: list[tuple[str, float]] = []
    towers = parts.get("vision", {}) | parts.get("vision_others", {})
    found += [(f"{family}: fast tower, plain tower", row["ratio"]) for family, row in towers.items()]
    for size in parts.get("prefill", {}).get("sizes", ()):
        tokens = size["dense"]["visual_tokens"]
        found.append((f"prefill: 5 % of {tokens:,} tokens, all", size["ratios"]["fast_s"]))
    if step := parts.get("decode_step"):
        found.append(
            ("decode step, batch 1: fast, library", step["library_step_s"] / step["batches"][0]["step_s"])
        )
    if answers := parts.get("answers"):
        best = max(row["answers_per_s"] for row in answers["slots"])
        found.append(("answers: 64 slots, library one by one", best / answers["library"]["answers_per_s"]))
    return found + _questions(measured["parts"].get("question", {}))


def _questions(part: dict[str, Any]) -> list[tuple[str, float]]:
    """A question of one new token from the store, one and many at a time, against decoding, encoding and all tokens."""
    asked = [cost for cost in part.get("record", {}).get("costs", ()) if cost["new_tokens"] == 1]
    plain = [cost["each_s"] for cost in asked if cost["name"].startswith("plain")]
    return [
        (f"question, {cost['questions']} at a time: from the store, plain call", plain[0] / cost["each_s"])
        for cost in asked
        if plain and "budget" in cost["name"] and "none store" not in cost["name"]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the picture; returns the exit code."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    source, target = sys.argv[1:] if arguments is None else arguments
    measured = json.loads(Path(source).read_text(encoding="utf-8"))
    rows = ratios(measured)[::-1]
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in rows], [ratio for _, ratio in rows], color="#3b6ea5")
    axes.bar_label(bars, labels=[f"x {ratio:.1f}" for _, ratio in rows], padding=4)
    axes.set_xscale("log")
    axes.set_xlim(1, 2.2 * max(ratio for _, ratio in rows))
    figure.supxlabel(
        f"times faster, log scale; random weights, bf16, one {measured['machine']['gpu']}", fontsize="medium"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
