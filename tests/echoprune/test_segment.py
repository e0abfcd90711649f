"""Segments that are begun before others are settled: the same bytes, nothing waited for, no row taken in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from echoprune.data import Frames, TimeGrid
from echoprune.echo import EchoScorer
from echoprune.errors import MediaError
from echoprune.index import IndexedVideo, drain, index_segments
from echoprune.models import load_encoder
from echoprune.models.encoder import Encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.schema import StoreSettings
from echoprune.segment import SegmentRows, Segments, try_out
from tests import stores as made_stores

SEGMENT, CELLS = 4, 10
# Family -> frames a cell, their pixels, and the grid of tokens.
SHAPES = {"qwen2_5_vl": (2, (84, 112), (3, 4)), "qwen3_vl": (2, (96, 160), (3, 5))}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# How far ahead an encoder is does not depend on its tower; on a GPU the fast one has scores of its own.
TOWERS = ("plain", "fast") if DEVICE == "cuda" else ("plain",)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = write_tiny_checkpoint(family, tmp_path_factory.mktemp(family) / "tiny")
        return made[family]

    return find


def encoder_of(folder: Path, tower: str = "plain") -> Encoder:
    return load_encoder(str(folder), segment_cells=SEGMENT, device=DEVICE, tower=tower)


def settings(encoder: Encoder, **changes: object) -> StoreSettings:
    made = made_stores.settings(
        dim=encoder.dim, deepstack_layers=encoder.deepstack_layers, segment_cells=SEGMENT, cell_frames=2
    )
    plain = {"keep": "0.25", "anchor_every_s": 6.0, "temperature": 0.5, "window": None, "frames": None}
    return replace(made, max_frames=None, **(plain | {"dtype": "fp32"} | changes))


def grid(family: str, cells: int = CELLS) -> TimeGrid:
    each, frame_hw, grid_hw = SHAPES[family]
    frames = cells * each
    return TimeGrid(
        times_s=np.arange(frames) / 2.0, frame_pts=np.arange(frames) * 500, frame_hw=frame_hw, grid_hw=grid_hw,
        cell_frames=each, segment_cells=SEGMENT, end_s=frames / 2,
    )  # fmt: skip


def segments(family: str, cells: int = CELLS) -> Iterator[Frames]:
    """Noise that changes little from cell to cell, and much in the second half."""
    each, (height, width), _ = SHAPES[family]
    random = np.random.default_rng(5)
    still = random.integers(0, 200, (height, width, 3))
    for first in range(0, cells, SEGMENT):
        count = min(SEGMENT, cells - first)
        reach = 8 if first < cells // 2 else 55
        drift = random.integers(0, reach, (count * each, height, width, 3))
        yield Frames((still + drift).astype(np.uint8), first, each, "pyav")


def indexed(
    family: str, encoder: Encoder, made: StoreSettings, folder: Path, *, ahead: int | None
) -> IndexedVideo:
    return drain(
        index_segments(
            segments(family), grid=grid(family), time_base_s=0.001, encoder=encoder, settings=made,
            spill_dir=folder, ahead=ahead,
        )
    )  # fmt: skip


def everything(video: IndexedVideo) -> list[Any]:
    """All that is stored of a video."""
    with video:
        rows = np.concatenate([rows for _, rows in video.selection.chunks(7)])
        columns = video.columns
        return [
            video.selection.indices.tolist(), video.selection.highest_dropped, video.selection.lowest_kept, rows.tobytes(),
            columns.kept.tolist(), columns.mean_novelty.tobytes(), columns.radius.tobytes(),
            columns.pooled[0 : video.cells].tobytes(),
        ]  # fmt: skip


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(
    ("family", "keep", "dtype"),
    [("qwen2_5_vl", "0.25", "bf16"), ("qwen2_5_vl", "all", "int8"), ("qwen3_vl", "2/cell", "fp16")],
)
def test_what_is_stored_does_not_depend_on_how_far_ahead_the_encoder_is(
    family: str, keep: str, dtype: str, tower: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    encoder = encoder_of(checkpoints(family), tower)
    made = settings(encoder, keep=keep, dtype=dtype)
    here = everything(indexed(family, encoder, made, tmp_path, ahead=0))
    for ahead in (1, 2):
        assert everything(indexed(family, encoder, made, tmp_path, ahead=ahead)) == here


class _NothingIsLookedAt(TorchDispatchMode):
    """Refuses what makes a GPU's caller wait: values read, and results whose size depends on them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select")), name
        if name.startswith("aten::index"):
            assert not any(getattr(each, "dtype", None) is torch.bool for each in args[1] if each is not None)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", sorted(SHAPES))
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_to_begin_a_segment_waits_for_nothing(
    family: str, dtype: str, checkpoints: Callable[[str], Path]
) -> None:
    encoder = encoder_of(checkpoints(family), "fast")
    begun = Segments(encoder, settings(encoder, dtype=dtype), grid(family))
    first, second, *_ = segments(family)
    # What a frame size needs once is made here, a graph included.
    for _ in range(3):
        encoder.encode(first)
    begun.settle(begun.begin(first))
    if encoder.device.type == "cpu":
        # The plain form of windows reads their edges.
        encoder = encoder_of(checkpoints(family), "plain")
        grid_ = encoder.encode(second)
        with _NothingIsLookedAt():
            begun._scorer.measure(begun._codec.cast(grid_.flat))
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        waiting = begun.begin(second)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert begun.settle(waiting).novelty.shape == (SEGMENT, SHAPES[family][2][0] * SHAPES[family][2][1])


@pytest.mark.gpu
def test_rows_of_a_segment_are_taken_while_the_next_one_is_computed(
    checkpoints: Callable[[str], Path],
) -> None:
    encoder = encoder_of(checkpoints("qwen2_5_vl"), "fast")
    begun = Segments(encoder, settings(encoder), grid("qwen2_5_vl"))
    first, second, third, *_ = segments("qwen2_5_vl")
    places = np.arange(0, 12, 3)
    waiting = begun.begin(first)
    # Whatever is made once is made before the clock of the next lines, which is the GPU's.
    for _ in range(3):
        encoder.encode(first)
    begun.settle(waiting).rows.take(places)
    torch.cuda.synchronize()
    settled = begun.settle(begun.begin(second))
    torch.cuda._sleep(4_000_000_000)
    begun.begin(third)
    rows = settled.rows.take(places)
    assert not torch.cuda.current_stream().query(), "the rows waited for what was asked after them"
    assert len(rows) == len(places)


def test_rows_are_taken_of_tokens_that_can_still_be_kept_alone(
    checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(checkpoints("qwen2_5_vl"))
    taken: list[int] = []
    take = SegmentRows.take

    def counted(self: SegmentRows, places: np.ndarray) -> np.ndarray:
        taken.append(len(places))
        return take(self, places)

    monkeypatch.setattr(SegmentRows, "take", counted)
    all_ = CELLS * 12
    for keep, most in (("0.05", 0.5), ("all", 1.0)):
        taken.clear()
        made = settings(encoder, keep=keep, anchor_every_s=0.0)
        indexed("qwen2_5_vl", encoder, made, tmp_path, ahead=1).close()
        assert sum(taken) <= most * all_
    assert sum(taken) == all_


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    ("family", "weight", "message"),
    [
        ("qwen2_5_vl", "visual.merger.mlp.2.bias", "^48 of 3072 values of cells 0 to 3 are not finite in torch.float32"),
        ("qwen3_vl", "visual.deepstack_merger_list.1.linear_fc2.bias", "^60 of 15360 values of cells 0 to 3 are not"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_finite_fail_the_video(
    family: str,
    weight: str,
    message: str,
    ahead: int,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = write_tiny_checkpoint(family, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith(weight)]
    weights[name][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder = encoder_of(folder)
    with pytest.raises(MediaError, match=message) as raised:
        indexed(family, encoder, settings(encoder), tmp_path, ahead=ahead)
    assert (raised.value.stage, raised.value.kind) == ("encode", "not_finite")


def test_values_that_the_stores_dtype_does_not_hold_fail_the_video(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("visual.merger.mlp.2.bias")]
    weights[name][3] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder = encoder_of(folder)
    with pytest.raises(MediaError, match="48 of 3072 token values are not finite in fp16: use --dtype bf16"):
        indexed("qwen2_5_vl", encoder, settings(encoder, dtype="fp16"), tmp_path, ahead=1)


@pytest.mark.parametrize("family", [*SHAPES, "llava_onevision"])
def test_an_encoder_is_tried_out_on_cells_of_its_own_size(
    checkpoints: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, asked = encoder_of(checkpoints(family)), []
    measure = EchoScorer.measure
    monkeypatch.setattr(
        EchoScorer, "measure", lambda self, tokens: asked.append(tokens) or measure(self, tokens)
    )
    try_out(encoder, settings(encoder, cell_frames=encoder.layout.cell_frames))
    assert [len(each) for each in asked] == [2]


@pytest.mark.gpu
def test_trying_out_launches_the_kernels(
    checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from echoprune.fast import echo_kernels, operations

    launched, scores = [], echo_kernels.scores
    monkeypatch.setattr(echo_kernels, "scores", lambda *a, **k: launched.append(1) or scores(*a, **k))
    encoder = encoder_of(checkpoints("qwen2_5_vl"), "fast")
    for window in (None, 3):
        try_out(encoder, settings(encoder, tower="fast", window=window))
    operations.try_out(encoder.device)
    assert len(launched) == 2
