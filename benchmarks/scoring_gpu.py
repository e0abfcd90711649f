"""The GPU's part of `benchmarks.scoring`: scores and choice against the encoding, their memory and their exactness."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import device_of, kernels_of, seconds_of, write_record
from benchmarks.released import config, layout, random_tower
from benchmarks.vision import runs
from echoprune.data import EchoScores, Frames, IntArray, TimeGrid
from echoprune.echo import EchoScorer
from echoprune.host_copies import HostCopies
from echoprune.models.encoder import ModelSettings
from echoprune.models.tower import TowerEncoder
from echoprune.prune import select_tokens
from echoprune.schema import StoreSettings
from echoprune.segment import Segments
from echoprune.topk import TopK

DIM = 3584
# Cells encoded and scored together.
CELLS = 8
KEEP = 4
CASES = tuple(
    (f"{side * side // 784:,} tokens, {'whole frame' if window is None else '3 x 3 window'}", side, window)
    for side in (448, 896)
    for window in (None, 3)
)


@torch.no_grad()
def measure_all(options: argparse.Namespace) -> int:
    """Measures all cases and prints a table."""
    device = device_of("cuda")
    encoder = encoder_of(random_tower("qwen2_5_vl", device=device, dtype=torch.bfloat16))
    results: list[dict[str, Any]] = []
    print(
        f"{CELLS} cells a call of bf16 tokens of width {DIM}; ms, share of the encoding, memory by the tokens'"
    )
    for name, side, window in CASES:
        # About half a second of encoding, however large frames are.
        count = 24 if side == CASES[0][1] else 6
        stream = in_stream(encoder, side, window, segments=count, repeat=options.repeat)
        found = {"case": name, "stream": stream} | measure(side // 28, window, device)
        results.append(found)
        write_record(options.json, vars(options), results)
        for way in ("chunks", "kernel"):
            each = found[way]
            print(
                f"{name:<28} {way:<7} alone {each['score_s'] * 1e3:>7.3f} of {stream['encode_s'] * 1e3:>7.2f}, kernels "
                f"{each['kernels_s'] * 1e3:>6.3f} ({each['launches']}); memory {each['memory']:.1%}; error {each['error']:.1e}; "
                f"kept otherwise than by float64: {each['kept_otherwise']} of {CELLS * (side // 28) ** 2 // KEEP}",
                flush=True,
            )
        print(
            f"{name:<28} among segments that are encoded: scores and choice {stream['scored_share']:+.2%}, all that "
            f"`index` does with tokens {stream['whole_share']:+.2%}; once a video {stream['scored_once_s'] * 1e3:.1f} and "
            f"{stream['whole_once_s'] * 1e3:.1f} ms",
            flush=True,
        )
    return 0


def encoder_of(tower: Any, *, tiny: bool = False) -> TowerEncoder:
    """The encoder of an index run around the random `tower` of Qwen2.5-VL, by `--tower fast`."""
    dim = config("qwen2_5_vl", tiny=tiny).vision_config.out_hidden_size
    _, fast = runs("qwen2_5_vl", tower)
    settings = ModelSettings("qwen2_5_vl", layout("qwen2_5_vl"), dim, "bf16", 0, 0.5, None, 0.0)
    return TowerEncoder(tower, fast, settings=settings, segment_cells=CELLS)


class _NoRows:
    """Rows of one byte without a meaning: what is chosen counts, not what becomes of it."""

    dtype = np.dtype("V1")

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def take(self, places: IntArray) -> np.ndarray[Any, Any]:
        return np.empty(len(places), dtype=self.dtype)


@torch.no_grad()
def in_stream(
    encoder: TowerEncoder, side: int, window: int | None, *, segments: int, repeat: int
) -> dict[str, float]:
    """Seconds of a segment among `segments` in a row, encoded alone; and how much longer it takes with what follows.

    `scored_share`: scores, copied, and a quarter chosen among all; `whole_share`: all that `index` does, rows and pooled
    vectors too. Of a segment: what twice as many take more, shared among them. `scored_once_s`, `whole_once_s`: what the
    others take more than that, once a video, than the encoding does. Medians of `repeat` rounds, each of which has all.
    """
    each = encoder.layout.cell_frames
    pixels = np.random.default_rng(0).integers(0, 256, (CELLS * each, side, side, 3), dtype=np.uint8)
    grid_hw = encoder.layout.grid_hw((side, side))
    settings = _settings(encoder, window)

    def clip(count: int) -> tuple[list[Frames], TimeGrid]:
        frames_of = [Frames(pixels, CELLS * index, each, "pyav") for index in range(count)]
        frames = count * CELLS * each
        times = np.arange(frames)
        return frames_of, TimeGrid(times / 2.0, times * 500, (side, side), grid_hw, each, CELLS, frames / 2)

    rounds: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:

        def ways(count: int) -> list[Callable[[], None]]:
            frames_of, grid = clip(count)
            return [
                lambda: _encoded(encoder, frames_of),
                lambda: _scored(encoder, frames_of, settings, grid, Path(folder)),
                lambda: _indexed(encoder, frames_of, settings, grid, Path(folder)),
            ]

        short, long = ways(segments), ways(2 * segments)
        for each_round in range(repeat + 1):
            few = [_seconds(way, encoder.device) for way in short]
            more = [
                (_seconds(way, encoder.device) - before) / segments
                for way, before in zip(long, few, strict=True)
            ]
            if each_round:
                once = [before - segments * one for before, one in zip(few, more, strict=True)]
                rounds.append([*more, once[1] - once[0], once[2] - once[0]])
    return {
        "encode_s": statistics.median(taken[0] for taken in rounds),
        "scored_share": statistics.median(taken[1] / taken[0] for taken in rounds) - 1,
        "whole_share": statistics.median(taken[2] / taken[0] for taken in rounds) - 1,
        "scored_once_s": statistics.median(taken[3] for taken in rounds),
        "whole_once_s": statistics.median(taken[4] for taken in rounds),
    }


def _settings(encoder: TowerEncoder, window: int | None) -> StoreSettings:
    return StoreSettings(
        family=encoder.family, model_fingerprint="0" * 64, dim=encoder.dim, compute_dtype="bf16", fps="2", max_frames=None,
        frames=None, max_pixels=None, decoder="pyav", cell_frames=encoder.layout.cell_frames, segment_cells=CELLS,
        keep=str(1 / KEEP), anchor_every_s=0.0, temperature=0.5 if window is None else 0.1, window=window, dtype="bf16",
        tower="fast",
    )  # fmt: skip


def _seconds(way: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _encoded(encoder: TowerEncoder, frames_of: list[Frames]) -> None:
    for frames in frames_of:
        encoder.encode(frames, check=False)


def _scored(
    encoder: TowerEncoder, frames_of: list[Frames], settings: StoreSettings, grid: TimeGrid, folder: Path
) -> None:
    scorer = EchoScorer(
        grid_hw=grid.grid_hw, temperature=settings.temperature, window=settings.window, fused=True
    )
    copies = HostCopies(encoder.device)
    sent: deque[Any] = deque()
    with TopK(capacity=grid.cells * grid.tokens_per_cell // KEEP, spill_dir=folder) as topk:

        def choose() -> None:
            (scores,) = sent.popleft().wait()
            novelty = (-scores[1] - scores[2]).flatten().numpy()
            topk.push(novelty, _NoRows(len(novelty)), np.zeros(len(novelty), dtype=np.bool_))

        for frames in frames_of:
            tokens = encoder.encode(frames, check=False).flat
            sent.append(copies.send([scorer.measure(tokens)]))
            if len(sent) > 1:
                choose()
        choose()
        topk.finish(None)


def _indexed(
    encoder: TowerEncoder, frames_of: list[Frames], settings: StoreSettings, grid: TimeGrid, folder: Path
) -> None:
    segments = Segments(encoder, settings, grid)
    begun: deque[Any] = deque()
    with TopK(capacity=grid.cells * grid.tokens_per_cell // KEEP, spill_dir=folder) as topk:

        def settle() -> None:
            settled = segments.settle(begun.popleft())
            count = settled.novelty.size
            topk.push(settled.novelty.reshape(-1), settled.rows, np.zeros(count, dtype=np.bool_))

        for frames in frames_of:
            begun.append(segments.begin(frames))
            if len(begun) > 1:
                settle()
        settle()
        topk.finish(None)


@torch.no_grad()
def measure(
    grid: int, window: int | None, device: torch.device, *, dim: int = DIM, cells: int = CELLS
) -> dict[str, Any]:
    """Seconds, kernels, memory and error of both ways of scoring `cells` cells after one that was before, alone."""
    places = grid * grid
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    # Neighbouring cells alike, as in a video.
    tokens = (random(1, places, dim) + 0.3 * random(cells + 1, places, dim)).to(torch.bfloat16)
    temperature = 0.5 if window is None else 0.1
    exact_c, exact_e = exact_scores(tokens, grid, window, temperature)
    budget = cells * places // KEEP
    exact_kept = _kept(-exact_c - exact_e, budget)
    found: dict[str, Any] = {}
    for way in ("chunks", "kernel"):

        def begun(way: str = way) -> EchoScorer:
            scorer = EchoScorer(
                grid_hw=(grid, grid), temperature=temperature, window=window, fused=way == "kernel"
            )
            scorer.measure(tokens[:1])
            return scorer

        scorer = begun()
        scores = scorer.measure(tokens[1:])
        error = max(
            float((one.double() - two).abs().max())
            for one, two in ((scores[1], exact_c), (scores[2], exact_e))
        )
        kept = select_tokens(
            EchoScores(scores[1], scores[2], torch.ones(cells, dtype=torch.bool, device=device)),
            budget=budget,
        )
        memory = 0.0
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            scorer.measure(tokens[1:])
            memory = (torch.cuda.max_memory_allocated() - before) / tokens[1:].nbytes
        kernels = kernels_of(partial(scorer.measure, tokens[1:]), device, most=1000)
        found[way] = {
            "score_s": seconds_of(partial(scorer.measure, tokens[1:]), device),
            "kernels_s": sum(kernel["us"] for kernel in kernels) / 1e6,
            "launches": sum(kernel["calls"] for kernel in kernels),
            "kernels": kernels[:8],
            "memory": memory,
            "error": error,
            # Equals but for rounding may change places at the edge of the budget.
            "kept_otherwise": int((~torch.isin(kept, exact_kept)).sum()),
        }
    return found


def exact_scores(
    tokens: torch.Tensor, grid: int, window: int | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T - 1, N) correspondence and echo of all cells but the first in float64, written down as the definition has them."""
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    similarity = unit[1:] @ unit[:-1].transpose(1, 2)
    correspondence = similarity.diagonal(dim1=1, dim2=2)
    at = torch.arange(grid * grid, device=tokens.device)
    if window is not None:
        apart = [(place[:, None] - place[None, :]).abs() for place in (at // grid, at % grid)]
        far = torch.maximum(*apart) > window // 2
        similarity = similarity.masked_fill(far, -torch.inf)
    weight = torch.softmax(similarity / temperature, dim=-1)
    return correspondence, torch.where(weight > 0, weight * similarity, 0.0).sum(-1)


def _kept(novelty: torch.Tensor, budget: int) -> torch.Tensor:
    """The places of the `budget` most novel, ascending; of equals the earlier."""
    return novelty.flatten().sort(descending=True, stable=True).indices[:budget].sort().values
