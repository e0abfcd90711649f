"""What every family's encoder promises, on each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from echoprune.data import Frames
from echoprune.errors import ModelError
from echoprune.models import auto_dtype, load_encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.models.tiny_families import FAMILIES
from echoprune.models.tower import TowerEncoder

MakeFrames = Callable[..., Frames]
TinyOf = Callable[[str], Path]
Edit = Callable[..., Path]

# Frame size (H, W) of small frames that are not square where the family allows it, and the grid they give.
SHAPES = {
    "llava_onevision": ((384, 384), (14, 14)),
    "qwen2_5_vl": ((84, 112), (3, 4)),
    "qwen3_vl": ((96, 160), (3, 5)),
}
CELL_FRAMES = {"llava_onevision": 1, "qwen2_5_vl": 2, "qwen3_vl": 2}
every_family = pytest.mark.parametrize("family", sorted(SHAPES))


@pytest.fixture
def frames_of(make_frames: MakeFrames) -> MakeFrames:
    def make(family: str, cells: int, **options: int) -> Frames:
        return make_frames(cells, *SHAPES[family][0], cell_frames=CELL_FRAMES[family], **options)

    return make


def encoder_of(folder: Path, *, segment_cells: int, compute_dtype: str = "auto") -> TowerEncoder:
    encoder = load_encoder(
        str(folder), segment_cells=segment_cells, device="cpu", compute_dtype=compute_dtype
    )
    assert isinstance(encoder, TowerEncoder)
    return encoder


@every_family
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_segments_give_the_bits_of_the_whole(
    family: str, dtype: str, tiny_of: TinyOf, frames_of: MakeFrames, cut: MakeFrames
) -> None:
    frames = frames_of(family, 16)
    # 6 cells at a time: no cut of `parts` coincides with the encoder's own.
    encoder = encoder_of(tiny_of(family), segment_cells=6, compute_dtype=dtype)
    whole = encoder.encode(frames)
    for parts in ([8, 8], [2] * 8, [6, 10]):
        ends = np.cumsum(parts).tolist()
        pieces = [
            encoder.encode(cut(frames, start, stop))
            for start, stop in zip([0, *ends[:-1]], ends, strict=True)
        ]
        assert torch.equal(torch.cat([piece.tokens for piece in pieces]), whole.tokens)
        if whole.deepstack is not None:
            assert torch.equal(torch.cat([piece.deepstack for piece in pieces], dim=1), whole.deepstack)


@every_family
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cell_does_not_see_its_neighbours(
    family: str, dtype: str, tiny_of: TinyOf, frames_of: MakeFrames
) -> None:
    encoder = encoder_of(tiny_of(family), segment_cells=5, compute_dtype=dtype)
    each = CELL_FRAMES[family]
    cell = frames_of(family, 1, seed=9)
    alone = encoder.encode(cell).tokens[0]
    for place in range(5):
        pixels = frames_of(family, 5, seed=place).pixels.copy()
        pixels[each * place : each * (place + 1)] = cell.pixels
        among = encoder.encode(Frames(pixels, first_cell=0, cell_frames=each, decoder="pyav")).tokens[place]
        assert torch.equal(among, alone)


@every_family
def test_tokens_are_in_raster_order(family: str, tiny_of: TinyOf, frames_of: MakeFrames) -> None:
    encoder = encoder_of(tiny_of(family), segment_cells=2)
    each, ((height, width), (rows, columns)) = CELL_FRAMES[family], SHAPES[family]
    before = frames_of(family, 2)
    for t, h, w in [(0, 0, 1), (0, 1, 0), (1, rows - 1, columns - 2), (1, rows - 2, columns - 1)]:
        pixels = before.pixels.copy()
        top, bottom = h * height // rows, (h + 1) * height // rows
        left, right = w * width // columns, (w + 1) * width // columns
        pixels[each * t : each * (t + 1), top:bottom, left:right] = 255
        after = Frames(pixels, first_cell=0, cell_frames=each, decoder="pyav")
        one, two = encoder.encode(before), encoder.encode(after)
        for name in ("tokens", "deepstack"):
            if getattr(one, name) is not None:
                moved = (getattr(two, name) - getattr(one, name)).norm(dim=-1).reshape(-1, 2, rows, columns)
                for layer in moved:
                    assert torch.unravel_index(layer.argmax(), layer.shape) == (t, h, w)
                    assert float(layer[1 - t].max()) == 0.0


@every_family
def test_no_language_model_in_memory(family: str, tiny_of: TinyOf) -> None:
    encoder = encoder_of(tiny_of(family), segment_cells=1)
    full = getattr(transformers, FAMILIES[family].model_class).from_pretrained(tiny_of(family)).model
    parts = [full.vision_tower, full.multi_modal_projector] if family == "llava_onevision" else [full.visual]
    held = sorted(weight.numel() for weight in encoder._tower.parameters())
    assert held == sorted(weight.numel() for part in parts for weight in part.parameters())
    assert sum(held) < sum(weight.numel() for weight in full.parameters())
    assert not any(weight.requires_grad for weight in encoder._tower.parameters())


@every_family
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_compute_dtype(family: str, dtype: str, tiny_of: TinyOf, frames_of: MakeFrames) -> None:
    encoder = encoder_of(tiny_of(family), segment_cells=2, compute_dtype=dtype)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    tokens = encoder.encode(frames_of(family, 1)).tokens
    assert encoder.dtype == tokens.dtype == expected
    assert {weight.dtype for weight in encoder._tower.parameters()} == {expected}
    assert not tokens.requires_grad


def test_on_a_cpu_nothing_is_computed_in_bf16_unless_asked_for(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "bf16", dtype="bf16")
    assert encoder_of(folder, segment_cells=2).dtype == torch.float32
    assert auto_dtype("bf16", gpu=True) == "bf16"


@pytest.mark.parametrize(
    ("family", "deepstack_layers", "temperature", "window"),
    [("llava_onevision", 0, 0.1, 3), ("qwen2_5_vl", 0, 0.5, None), ("qwen3_vl", 3, 0.5, None)],
)
def test_attributes_say_what_the_checkpoint_is(
    family: str, deepstack_layers: int, temperature: float, window: int | None, tiny_of: TinyOf
) -> None:
    encoder = encoder_of(tiny_of(family), segment_cells=3)
    assert (encoder.family, encoder.dim, encoder.deepstack_layers) == (family, 64, deepstack_layers)
    assert (encoder.default_temperature, encoder.default_window) == (temperature, window)
    assert encoder.layout.cell_frames == CELL_FRAMES[family]
    assert encoder.layout.grid_hw(SHAPES[family][0]) == SHAPES[family][1]
    assert encoder.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "weight", "broken", "values"),
    [
        ("llava_onevision", "model.multi_modal_projector.linear_2.bias", 2 * 196, 2 * 196 * 64),
        ("qwen2_5_vl", "model.visual.merger.mlp.2.bias", 2 * 12, 2 * 12 * 64),
        # Of one deepstack map alone: tokens and two maps are whole.
        ("qwen3_vl", "model.visual.deepstack_merger_list.1.linear_fc2.bias", 2 * 15, 4 * 2 * 15 * 64),
    ],
)
def test_values_that_are_not_finite_are_an_error(
    family: str, weight: str, broken: int, values: int, tiny_of: TinyOf, edited: Edit, frames_of: MakeFrames
) -> None:
    def break_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[weight][3] = float("nan")
        return weights

    encoder = encoder_of(edited(break_one, tiny_of(family)), segment_cells=2)
    with pytest.raises(
        ModelError, match=rf"^{broken} of {values} values of cells 7 to 8 are not finite .* --compute-dtype"
    ):
        encoder.encode(frames_of(family, 2, first_cell=7))


@every_family
def test_refuses_frames_of_another_layout(family: str, tiny_of: TinyOf, make_frames: MakeFrames) -> None:
    encoder = encoder_of(tiny_of(family), segment_cells=2)
    (height, width), each = SHAPES[family][0], CELL_FRAMES[family]
    with pytest.raises(ValueError, match=f"{height + 4}x{width} pixels are not"):
        encoder.encode(make_frames(1, height + 4, width, cell_frames=each))
    with pytest.raises(ValueError, match=f"cells of {3 - each} frames, expected {each}"):
        encoder.encode(make_frames(1, height, width, cell_frames=3 - each))


@pytest.mark.parametrize(
    ("family", "weight"),
    [
        ("llava_onevision", "model.vision_tower.encoder.layers.2.mlp.fc1.weight"),
        ("llava_onevision", "model.multi_modal_projector.linear_1.bias"),
        ("qwen2_5_vl", "model.visual.blocks.3.attn.qkv.weight"),
        ("qwen3_vl", "model.visual.deepstack_merger_list.2.norm.weight"),
        ("qwen3_vl", "model.visual.pos_embed.weight"),
    ],
)
def test_weights_are_never_made_up(family: str, weight: str, tiny_of: TinyOf, edited: Edit) -> None:
    own = weight.removeprefix("model.visual.").removeprefix("model.vision_tower.")
    own = own.removeprefix("model.multi_modal_projector.").replace(".", r"\.")
    less = edited(
        lambda all_: {name: value for name, value in all_.items() if name != weight}, tiny_of(family)
    )
    with pytest.raises(ModelError, match=f"1 missing vision weights, such as {own}; download") as caught:
        load_encoder(str(less), segment_cells=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_foreign_weights(family: str, tiny_of: TinyOf, edited: Edit, tmp_path: Path) -> None:
    part = "model.multi_modal_projector." if family == "llava_onevision" else "model.visual.merger."
    last = "linear_2.bias" if family == "llava_onevision" else "linear_fc2.bias"
    for number, (change, message) in enumerate(
        [
            ({part + last: torch.ones(65)}, f"1 mismatched .*{last}"),
            ({part + "extra.weight": torch.ones(2)}, r"1 unexpected .*extra\.weight"),
        ]
    ):
        folder = edited(lambda weights, change=change: weights | change, tiny_of(family))
        folder = folder.rename(tmp_path / f"foreign{number}")
        with pytest.raises(ModelError, match=message) as caught:
            load_encoder(str(folder), segment_cells=1)
        assert "\n" not in str(caught.value)
