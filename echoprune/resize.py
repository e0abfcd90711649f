"""Frames brought to the size a model reads, by the filter of the official processors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Resample = Literal["bicubic", "bilinear"]


def resize_frames(
    pixels: npt.NDArray[np.uint8], hw: tuple[int, int], *, resample: Resample = "bicubic"
) -> npt.NDArray[np.uint8]:
    """The frames at `hw` = (height, width) pixels: uint8 (F, H, W, 3) in and out.

    Antialiased, computed on uint8, as torchvision does on a CPU behind the official video processors; scaling in
    float and rounding afterwards differs by one in places. The same array comes back when the size is right already.
    """
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 (F, H, W, 3), got {pixels.dtype} {pixels.shape}")
    if pixels.shape[1:3] == tuple(hw):
        return pixels
    # Contiguous first: a rotated picture is a view with negative strides, which torch does not take.
    frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    scaled = F.interpolate(frames, size=list(hw), mode=resample, antialias=True, align_corners=False)
    result: npt.NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().numpy()
    return result
