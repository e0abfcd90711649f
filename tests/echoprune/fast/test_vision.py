"""Towers by the steps of echoprune/fast against the library's own, with weights in which no bias or norm is trivial."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from echoprune.data import Frames
from echoprune.errors import ConfigError
from echoprune.models import load_encoder
from echoprune.models.tiny import write_tiny_checkpoint

CELL_FRAMES = {"llava_onevision": 1, "qwen2_5_vl": 2, "qwen3_vl": 2}
# Windows are 2 x 2 tokens here: of these grids some have whole windows alone, some cut ones at one or both borders.
SHAPES = {
    "llava_onevision": [(384, 384)],
    "qwen2_5_vl": [(112, 112), (84, 140), (28, 168)],
    "qwen3_vl": [(96, 160), (256, 256), (32, 64)],
}
CASES = [(family, shape) for family, shapes in SHAPES.items() for shape in shapes]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def odd_weights(folder: Path) -> Path:
    """The checkpoint of `folder` with random biases and norms, as trained ones have: tiny ones have zeros and ones.

    The language model's are small and its words large: else all of its texts are one word again and again.
    """
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, value in sorted(weights.items()):
        if "embed_tokens" in name:
            weights[name] = 30 * value
        elif name.endswith("bias"):
            weights[name] = (0.05 if "language_model" in name else 0.3) * torch.randn(
                value.shape, generator=generator
            )
        elif value.ndim == 1:
            weights[name] = 1 + 0.3 * torch.randn(value.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "model"
            made[family] = odd_weights(write_tiny_checkpoint(family, folder, seed=2))
        return made[family]

    return find


def noise(family: str, shape: tuple[int, int], cells: int, seed: int = 0) -> Frames:
    each = CELL_FRAMES[family]
    pixels = np.random.default_rng(seed).integers(0, 256, (each * cells, *shape, 3), dtype=np.uint8)
    return Frames(pixels, first_cell=0, cell_frames=each, decoder="pyav")


def difference(one: torch.Tensor, two: torch.Tensor) -> float:
    """|one - two| / |two|."""
    return float((one.double() - two.double()).norm() / two.double().norm())


@pytest.mark.parametrize(("family", "shape"), CASES)
def test_tokens_are_those_of_the_plain_tower(
    family: str, shape: tuple[int, int], odd: Callable[[str], Path]
) -> None:
    plain, fast = (
        load_encoder(
            str(odd(family)), segment_cells=3, device=DEVICE, compute_dtype="fp32", tower=tower
        ).encode(noise(family, shape, 3))
        for tower in ("plain", "fast")
    )
    assert difference(fast.tokens, plain.tokens) < 1e-5
    assert (fast.deepstack is None) == (plain.deepstack is None)
    if fast.deepstack is not None and plain.deepstack is not None:
        for ours, theirs in zip(fast.deepstack, plain.deepstack, strict=True):
            assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_in_bf16_it_is_no_further_from_float32_than_the_plain_tower(
    family: str, odd: Callable[[str], Path]
) -> None:
    frames = noise(family, SHAPES[family][0], 3, seed=1)

    def tokens(tower: str, dtype: str) -> torch.Tensor:
        encoder = load_encoder(
            str(odd(family)), segment_cells=3, device=DEVICE, compute_dtype=dtype, tower=tower
        )
        return encoder.encode(frames).tokens

    exact = tokens("plain", "fp32")
    assert difference(tokens("fast", "bf16"), exact) <= 1.1 * difference(tokens("plain", "bf16"), exact)


@pytest.mark.parametrize("family", sorted(SHAPES))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cells_bits_depend_on_no_neighbour(family: str, dtype: str, odd: Callable[[str], Path]) -> None:
    encoder = load_encoder(
        str(odd(family)), segment_cells=4, device=DEVICE, compute_dtype=dtype, tower="fast"
    )
    each, shape = CELL_FRAMES[family], SHAPES[family][0]
    cell = noise(family, shape, 1, seed=9)
    alone = encoder.encode(cell)
    for place in (0, 3):
        pixels = noise(family, shape, 4, seed=place).pixels.copy()
        pixels[each * place : each * (place + 1)] = cell.pixels
        among = encoder.encode(Frames(pixels, first_cell=0, cell_frames=each, decoder="pyav"))
        assert torch.equal(among.tokens[place], alone.tokens[0])
        if among.deepstack is not None and alone.deepstack is not None:
            assert torch.equal(among.deepstack[:, place], alone.deepstack[:, 0])


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_another_activation_is_refused(family: str, odd: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(odd(family), folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    load_encoder(str(folder), segment_cells=1, device="cpu")
    with pytest.raises(ConfigError, match="relu: use --tower plain"):
        load_encoder(str(folder), segment_cells=1, device="cpu", tower="fast")


def test_an_unknown_tower_is_refused(odd: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="tower 'quick' is not accepted: use plain or fast"):
        load_encoder(str(odd("qwen2_5_vl")), segment_cells=1, tower="quick")
