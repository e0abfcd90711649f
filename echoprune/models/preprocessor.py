"""What a checkpoint's preprocessor does to the values of pixels, and whether this package does the same.

The size of frames differs by family and is read by the adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from echoprune.errors import ModelError
from echoprune.resize import Resample

Channels = tuple[float, float, float]

# Numbers are those of PIL's filters, as preprocessor files spell them.
_RESAMPLE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}
_STEPS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class PixelRule:
    """The resize filter, and `mean` and `std` per RGB channel, of values in [0, 1]."""

    resample: Resample
    mean: Channels
    std: Channels


def pixel_rule(given: dict[str, Any], folder: Path, *, mean: Channels, std: Channels) -> PixelRule:
    """The PixelRule of the preprocessor settings `given` of `folder`; `mean`, `std` where they are silent.

    Raises ModelError for settings that this package does not follow, since tokens would silently be those of other
    pixels: a step switched off, a crop, another scale or filter.
    """
    off = [step for step in _STEPS if not given.get(step, True)]
    if off or not isclose(given.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-9):
        raise ModelError(
            f"{folder} has a preprocessor without {off or 'rescale_factor 1/255'}; take its original files"
        )
    if given.get("do_center_crop"):
        raise ModelError(
            f"{folder} has a preprocessor with do_center_crop; whole frames are accepted: take its original files"
        )
    resample = _RESAMPLE.get(given.get("resample", 3))
    if resample is None:
        raise ModelError(
            f"{folder} has a preprocessor with resample {given.get('resample')}; accepted are "
            f"{' and '.join(f'{number} ({name})' for number, name in _RESAMPLE.items())}: take its original files"
        )
    return PixelRule(resample, _rgb(given.get("image_mean", mean)), _rgb(given.get("image_std", std)))


def _rgb(values: list[float] | Channels) -> Channels:
    red, green, blue = values
    return float(red), float(green), float(blue)
