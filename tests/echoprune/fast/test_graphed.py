"""Encoding by CUDA graphs: the same bits as kernel by kernel, whatever came before and after, each result in memory of its own."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
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
    done, failed = 0, list[BaseException]()

    def copies() -> None:
        nonlocal done
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                while not ended.is_set():
                    # New sizes, so that memory is asked for, on the GPU and the CPU.
                    rows = torch.ones(1000 + done, 512, device="cuda")
                    torch.empty(rows.shape, pin_memory=True).copy_(rows[torch.arange(len(rows))])
                    done += 1
        except BaseException as error:
            failed.append(error)
            raise

    during: list[int] = []

    def run(pixels: torch.Tensor) -> TokenGrid:
        before = done
        tokens = pixels[:, :4, :4].float()
        while len(tokens) and (torch.cuda.is_current_stream_capturing() and done < before + 3 and not failed):
            tokens = (tokens + 1) * 0.5
        during.append(done - before)
        return TokenGrid((tokens + 1) * 0.5)

    def add(pixels: torch.Tensor) -> TokenGrid:
        tokens = pixels[:, :4, :4].float()
        for _ in range(300):
            tokens = (tokens + 1) * 0.5
        return TokenGrid(tokens)

    thread = threading.Thread(target=copies)
    thread.start()
    try:
        for height in range(8, 24):
            graphed = Graphed(add)
            for seed in range(5):
                pixels = torch.randint(0, 256, (2, height, 8, 3), dtype=torch.uint8, device="cuda")
                # Captured in another thread than the calls before, as shards of a worker are.
                with ThreadPoolExecutor(1) as caller:
                    found = caller.submit(graphed, pixels).result()
                assert torch.equal(found.tokens, add(pixels).tokens), seed
            assert len(graphed._graphs) == 1
        # A capture in which copies are made is sound.
        graphed = Graphed(run)
        for _ in range(3):
            graphed(torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="cuda"))
        assert during[-1] >= 3
    finally:
        ended.set()
        thread.join()
    assert not failed
    assert done > 16


@pytest.mark.gpu
def test_a_graph_that_gives_other_bits_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0
    weight = torch.eye(8, device="cuda")

    def run(pixels: torch.Tensor) -> TokenGrid:
        nonlocal calls
        calls += 1
        # A product has memory of its own beside what it is of.
        return TokenGrid(pixels.float().transpose(2, 3) @ weight[: pixels.shape[2], :8] + (calls < 5) * calls)

    graphed = Graphed(run)
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="cuda")
    with caplog.at_level(logging.WARNING):
        for call in range(1, 4):
            assert float(graphed(pixels).tokens.max()) == call
        # The fourth one was captured.
        assert float(graphed(pixels).tokens.max()) == 0
    assert not graphed._graphs
    assert "8 x 8 pixels are encoded without a CUDA graph" in caplog.text
    assert len(caplog.records) == 1
    # Another size has one all the same.
    other = torch.ones(2, 4, 8, 3, dtype=torch.uint8, device="cuda")
    for _ in range(4):
        assert float(graphed(other).tokens.max()) == 1
    assert [size[1] for size in graphed._graphs] == [4]


@pytest.mark.gpu
def test_graphs_take_so_much_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    graphed = Graphed(lambda pixels: TokenGrid(pixels.float()))
    # 384 bytes of pixels and 1,536 of tokens of the first, 432 and 1,728 of the second.
    monkeypatch.setattr("echoprune.fast.graphed._MOST_BYTES", 4000)
    for height in (8, 9, 10):
        for seed in range(4):
            pixels = torch.full((2, height, 8, 3), 3 * height + seed, dtype=torch.uint8, device="cuda")
            assert torch.equal(graphed(pixels).tokens, pixels.float())
    assert [size[1] for size in graphed._graphs] == [8, 9]


@pytest.mark.gpu
@pytest.mark.parametrize("when", ["capturing", "another size"])
def test_where_memory_is_short_there_are_no_graphs(when: str, caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def run(pixels: torch.Tensor) -> TokenGrid:
        nonlocal calls
        calls += 1
        if when == "capturing" and torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("no memory for a graph")
        if when == "another size" and pixels.shape[1] == 9 and graphed._graphs:
            raise torch.OutOfMemoryError("no memory beside a graph")
        return TokenGrid(pixels.float() * 2)

    graphed = Graphed(run)
    with caplog.at_level(logging.WARNING):
        for height in (8, 9, 8, 9):
            for _ in range(4):
                pixels = torch.full((2, height, 8, 3), height, dtype=torch.uint8, device="cuda")
                assert float(graphed(pixels).tokens.max()) == 2 * height
    assert not graphed._graphs
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU's memory is short: frames are encoded without CUDA graphs from here on"
    ]


def test_without_graphs_memory_that_is_short_is_told_of() -> None:
    def run(pixels: torch.Tensor) -> TokenGrid:
        raise torch.OutOfMemoryError("none at all")

    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        Graphed(run)(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
