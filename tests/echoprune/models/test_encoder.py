from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.errors import MediaError
from echoprune.models.encoder import PatchLayout, SquareLayout

HALF = (0.5, 0.5, 0.5)
SQUARE = SquareLayout("llava_onevision", 384, 14, "bicubic", HALF, HALF)


def layout(low: int = 3136, high: int = 200704) -> PatchLayout:
    return PatchLayout("qwen2_5_vl", 14, 2, 2, low, high, "bicubic", HALF, HALF)


# (height, width, min, max) -> (H, W), printed by smart_resize of transformers 5.23.
KNOWN = [
    ((224, 224, 3136, 200704), (224, 224)),
    ((1080, 1920, 3136, 200704), (336, 588)),
    ((720, 1280, 100352, 602112), (560, 1008)),
    ((360, 640, 3136, 200704), (336, 588)),
    ((640, 360, 3136, 200704), (588, 336)),
    ((1, 1, 3136, 200704), (56, 56)),
    ((45, 64, 3136, 50176), (56, 56)),
    ((97, 131, 3136, 50176), (84, 140)),
    ((42, 70, 784, 200704), (56, 56)),
    ((98, 126, 784, 200704), (112, 112)),
    ((10, 2000, 3136, 200704), (28, 812)),
    ((3, 600, 3136, 50176), (28, 812)),
]


@pytest.mark.parametrize(("given_", "expected"), KNOWN)
def test_frame_size_is_the_reference_rule(
    given_: tuple[int, int, int, int], expected: tuple[int, int]
) -> None:
    height, width, low, high = given_
    assert layout(low, high).frame_hw(height, width) == expected


@given(st.integers(28, 4000), st.integers(28, 4000), st.sampled_from([50176, 200704, 602112]))
def test_frame_size_fits_tokens_bounds_and_aspect(height: int, width: int, high: int) -> None:
    if max(height, width) > 20 * min(height, width):
        return
    rows, columns = layout(3136, high).frame_hw(height, width)
    assert rows % 28 == 0 and columns % 28 == 0
    assert 3136 <= rows * columns <= high
    # One scale explains both sides up to less than one token each, so that the shape is kept.
    assert max((rows - 28) / height, (columns - 28) / width) < min(
        (rows + 28) / height, (columns + 28) / width
    )
    assert layout(3136, high).grid_hw((rows, columns)) == (rows // 28, columns // 28)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_frame_size_turns_with_the_frame(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    rows, columns = layout().frame_hw(height, width)
    assert layout().frame_hw(width, height) == (columns, rows)


@pytest.mark.parametrize("rule", [layout(), SQUARE], ids=["patch", "square"])
@pytest.mark.parametrize("size", [(0, 10), (10, 0), (1, 201), (4020, 20)])
def test_hopeless_sizes_are_the_videos_fault(rule: PatchLayout | SquareLayout, size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match="cannot be encoded") as caught:
        rule.frame_hw(*size)
    assert (caught.value.stage, caught.value.kind) == ("probe", "bad_size")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(0, 28), (28, 0), (29, 28), (28, 14)])
def test_grid_refuses_partial_tokens(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="whole tokens"):
        layout().grid_hw(size)


def test_layout_refuses_impossible_bounds() -> None:
    with pytest.raises(ValueError, match="below min_pixels"):
        layout(784, 783)
    with pytest.raises(ValueError, match="min_pixels"):
        layout(0, 784)


@pytest.mark.parametrize("size", [(1, 1), (1080, 1920), (1920, 1080), (384, 384), (240, 17)])
def test_square_frames_have_one_size(size: tuple[int, int]) -> None:
    assert SQUARE.frame_hw(*size) == (384, 384)
    assert SQUARE.grid_hw((384, 384)) == (14, 14)
    assert (SQUARE.cell_frames, SQUARE.max_pixels) == (1, 147456)


def test_square_layout_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="384x392 pixels are not 384x384"):
        SQUARE.grid_hw((384, 392))
    with pytest.raises(ValueError, match="grid_side must be 1 to 384, got 385"):
        SquareLayout("llava_onevision", 384, 385, "bicubic", HALF, HALF)
    with pytest.raises(ValueError, match="resample"):
        SquareLayout("llava_onevision", 384, 14, "nearest", HALF, HALF)  # type: ignore[arg-type]


def test_layout_travels_without_torch() -> None:
    """A decode process unpickles a layout and uses it; that alone loads no torch."""
    code = (
        "import pickle, sys; layout = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "print(layout.frame_hw(1080, 1920), layout.cell_frames, 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(layout()).hex()], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[0] == "(336, 588) 2 False"
