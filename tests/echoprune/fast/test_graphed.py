"""Encoding by CUDA graphs: the same bits as kernel by kernel, whatever came before and after, each result in memory of its own."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from echoprune.data import TokenGrid
from echoprune.fast.graphed import Graphed
from echoprune.models import load_encoder
from echoprune.models.tiny import write_tiny_checkpoint
from tests.echoprune.fast.test_vision import SHAPES, noise

CELLS = 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", sorted(SHAPES))
def test_tokens_are_the_same_bits_as_without(family: str, dtype: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(family, tmp_path / "model", seed=2)
    encoder: Any = load_encoder(
        str(folder), segment_cells=CELLS, device="cuda", compute_dtype=dtype, tower="fast"
    )
    graphed: Graphed = encoder._run
    plain = graphed._run
    found: list[tuple[TokenGrid, TokenGrid]] = []
    for seed in range(6):
        for number, shape in enumerate(SHAPES[family]):
            # The last ones of a video are fewer than a call's.
            frames = noise(family, shape, CELLS - (seed == 5), seed=10 * seed + number)
            ours = encoder.encode(frames)
            encoder._run = plain
            found.append((ours, encoder.encode(frames)))
            encoder._run = graphed
    assert len(graphed._graphs) == len(SHAPES[family])
    for ours, theirs in found:
        assert torch.equal(ours.tokens, theirs.tokens)
        assert (ours.deepstack is None) == (theirs.deepstack is None)
        if ours.deepstack is not None and theirs.deepstack is not None:
            assert torch.equal(ours.deepstack, theirs.deepstack)


@pytest.mark.gpu
def test_what_other_threads_do_on_the_gpu_is_not_captured() -> None:
    ended = threading.Event()
    done = 0

    def copies() -> None:
        nonlocal done
        with torch.cuda.stream(torch.cuda.Stream()):
            while not ended.is_set():
                # New sizes, so that memory is asked for, on the GPU and the CPU.
                rows = torch.ones(1000 + done, 512, device="cuda")
                torch.empty(rows.shape, pin_memory=True).copy_(rows[torch.arange(len(rows))])
                done += 1

    def run(pixels: torch.Tensor) -> TokenGrid:
        tokens = pixels[:, :4, :4].float()
        for _ in range(300):
            tokens = (tokens + 1) * 0.5
        return TokenGrid(tokens)

    thread = threading.Thread(target=copies)
    thread.start()
    try:
        for height in range(8, 24):
            graphed = Graphed(run)
            for seed in range(5):
                pixels = torch.randint(0, 256, (2, height, 8, 3), dtype=torch.uint8, device="cuda")
                assert torch.equal(graphed(pixels).tokens, run(pixels).tokens), seed
            assert len(graphed._graphs) == 1
    finally:
        ended.set()
        thread.join()
    assert done > 16


@pytest.mark.gpu
def test_a_graph_that_gives_other_bits_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def run(pixels: torch.Tensor) -> TokenGrid:
        nonlocal calls
        calls += 1
        return TokenGrid(pixels.float() + calls)

    graphed = Graphed(run)
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="cuda")
    with caplog.at_level(logging.WARNING):
        for call in range(1, 4):
            assert float(graphed(pixels).tokens.max()) == call
        # The fourth one was captured.
        assert float(graphed(pixels).tokens.max()) == 5
    assert not graphed._graphs
    assert "8 x 8 pixels are encoded without a CUDA graph" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.gpu
def test_sizes_that_come_after_many_others_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echoprune.fast.graphed._MOST", 2)
    graphed = Graphed(lambda pixels: TokenGrid(pixels.float()))
    for height in (8, 9, 10):
        for seed in range(4):
            pixels = torch.full((2, height, 8, 3), 3 * height + seed, dtype=torch.uint8, device="cuda")
            assert torch.equal(graphed(pixels).tokens, pixels.float())
    assert [size[1] for size in graphed._graphs] == [8, 9]
