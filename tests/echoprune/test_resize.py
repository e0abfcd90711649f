"""The resize against values computed by other means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from echoprune.resize import resize_frames


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_the_same_size_is_left_alone() -> None:
    pixels = _noise(2, 8, 6, 3)
    assert resize_frames(pixels, (8, 6)) is pixels


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("hw", [(17, 40), (64, 96), (30, 20)])
def test_close_to_the_float_filter_on_each_channel_alone(resample: str, hw: tuple[int, int]) -> None:
    pixels = _noise(2, 48, 61, 3) // 2 + 64  # the bicubic overshoot stays within 0 to 255 in both passes
    got = resize_frames(pixels, hw, resample=resample)
    assert got.shape == (2, *hw, 3)
    assert got.dtype == np.uint8
    for channel in range(3):
        plane = torch.from_numpy(pixels[..., channel].copy()).float()[:, None]
        exact = F.interpolate(plane, size=hw, mode=resample, antialias=True)[:, 0].clamp(0, 255).numpy()
        # The uint8 filter rounds after each of its two passes, with weights of 16 bits.
        assert np.abs(got[..., channel] - exact).max() <= 1.5


def test_halving_by_the_triangle_filter_by_hand() -> None:
    # Weights of the antialiased triangle at scale 2 around x = 2: 1/8, 3/8, 3/8, 1/8 on pixels 0..5, inside.
    row = np.array([0, 80, 160, 240, 80, 0, 40, 200], np.uint8)
    pixels = np.repeat(np.repeat(row[None, None, :, None], 8, axis=1), 3, axis=3)
    got = resize_frames(pixels, (4, 4), resample="bilinear")[0, 2, :, 0]
    assert got[1] == round((80 + 3 * 160 + 3 * 240 + 80) / 8)
    assert got[2] == round((240 + 3 * 80 + 3 * 0 + 40) / 8)


def test_a_frame_does_not_depend_on_its_neighbours_or_its_memory_layout() -> None:
    pixels = _noise(5, 48, 61, 3)
    whole = resize_frames(pixels, (28, 28))
    assert np.array_equal(whole[3:4], resize_frames(pixels[3:4], (28, 28)))
    turned = np.rot90(pixels[3])  # a view with a negative stride
    assert np.array_equal(resize_frames(turned[None], (28, 28)), resize_frames(turned.copy()[None], (28, 28)))


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(F, H, W, 3\)"):
        resize_frames(_noise(8, 6, 3), (4, 4))
