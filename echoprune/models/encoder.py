"""What an encoder is to the rest of the package: a frame layout that needs no model, and a model that needs no file.

`FrameLayout` says to which size frames are resized and how many tokens a cell then has; it travels to processes
that decode and hold no model. `Encoder` turns frames of that layout into tokens. Reading checkpoints is the
business of `checkpoint.py` and of one adapter file per model family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from echoprune.errors import MediaError

if TYPE_CHECKING:
    import torch

    from echoprune.data import Frames, TokenGrid
    from echoprune.models.prompt import PromptStyle
    from echoprune.resize import Resample

# The library's own vision tower, or the same weights by the steps of echoprune/fast.
TOWERS = ("plain", "fast")
# Beyond this the Qwen processors refuse a picture; a 1 x 201 strip has no meaningful tokens either.
MAX_ASPECT = 200


class FrameLayout(Protocol):
    """How one model family sizes frames and cuts them into tokens; picklable, needs no torch.

    `family`: its name. `cell_frames`: sampled frames in one cell of the encoder's time grid. `max_pixels`: H x W of
    the largest resized frame, but for thin strips. `resample`: "bicubic" or "bilinear". `mean`, `std`: per RGB
    channel, of values in [0, 1].
    """

    @property
    def family(self) -> str: ...  # noqa: D102 - the class docstring lists them
    @property
    def cell_frames(self) -> int: ...  # noqa: D102
    @property
    def max_pixels(self) -> int: ...  # noqa: D102
    @property
    def resample(self) -> Resample: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, float, float]: ...  # noqa: D102

    def frame_hw(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that a frame of `height` x `width` pixels, as displayed, is resized to.

        Raises MediaError "bad_size" for an empty frame and for sides that differ more than 200-fold.
        """
        ...

    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """(h, w) tokens of one cell whose frames have `frame_hw` pixels; ValueError if no frame has that size."""
        ...


@dataclass(frozen=True)
class PatchLayout:
    """The `FrameLayout` of towers that take frames of any whole number of tokens: the Qwen families.

    `patch_size`: pixels of a patch's side. `merge_size`: patches along a token's side. `temporal_patch`: frames
    merged into one cell. `min_pixels`, `max_pixels`: bounds on H x W of a resized frame. `resample`: "bicubic" or
    "bilinear". `mean`, `std`: per RGB channel, of values in [0, 1].
    """

    family: str
    patch_size: int
    merge_size: int
    temporal_patch: int
    min_pixels: int
    max_pixels: int
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch", "min_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}")
        _check_resample(self.resample)

    @property
    def cell_frames(self) -> int:
        """Sampled frames in one cell of the encoder's time grid."""
        return self.temporal_patch

    @property
    def token_side(self) -> int:
        """Pixels of one token's side; H and W of a resized frame are multiples of it."""
        return self.patch_size * self.merge_size

    def frame_hw(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that a frame of `height` x `width` pixels, as displayed, is resized to.

        Both are multiples of `token_side`, nearest to the original (exact halves to even); if H x W would leave
        [min_pixels, max_pixels], both are scaled by one factor, rounded down when shrinking and up when growing.
        No side is below one token, so that a thin strip may exceed `max_pixels`, and rounding up may too where
        the bounds are less than one row of tokens apart. Raises MediaError "bad_size" for an empty frame and
        for sides that differ more than 200-fold.
        """
        _check_frame(height, width)
        side = self.token_side
        # Python's round() takes halves to even, as the reference does: 42 pixels of 28 become 56, 70 become 56.
        rows, columns = round(height / side), round(width / side)
        pixels = rows * columns * side * side
        if pixels > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / side))
            columns = max(1, math.floor(width / shrink / side))
        elif pixels < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
        return rows * side, columns * side

    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """(h, w) tokens of one cell whose frames have `frame_hw` pixels; ValueError if tokens do not fill them."""
        height, width = frame_hw
        side = self.token_side
        if height < side or width < side or height % side or width % side:
            raise ValueError(f"frames of {height}x{width} pixels are not whole tokens of {side}x{side}")
        return height // side, width // side


@dataclass(frozen=True)
class SquareLayout:
    """The `FrameLayout` of towers that take square frames of one size, whatever their shape was: LLaVA-OneVision.

    `side`: pixels of a frame's side. `grid_side`: tokens along it. A frame is a cell.
    """

    family: str
    side: int
    grid_side: int
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.grid_side <= self.side:
            raise ValueError(f"grid_side must be 1 to {self.side}, got {self.grid_side}")
        _check_resample(self.resample)

    @property
    def cell_frames(self) -> int:
        """1: towers of this kind see one frame at a time."""
        return 1

    @property
    def max_pixels(self) -> int:
        """H x W of every frame."""
        return self.side**2

    def frame_hw(self, height: int, width: int) -> tuple[int, int]:
        """(side, side), also where that distorts the picture, as the official processor does it.

        Raises MediaError "bad_size" for an empty frame and for sides that differ more than 200-fold.
        """
        _check_frame(height, width)
        return self.side, self.side

    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """(grid_side, grid_side); ValueError if `frame_hw` is not (side, side)."""
        if frame_hw != (self.side, self.side):
            height, width = frame_hw
            raise ValueError(f"frames of {height}x{width} pixels are not {self.side}x{self.side}")
        return self.grid_side, self.grid_side


def _check_frame(height: int, width: int) -> None:
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError(
            f"frames of {width}x{height} pixels cannot be encoded: sides of at least 1 pixel that differ at most "
            f"{MAX_ASPECT}-fold are accepted; crop or scale the video first",
            stage="probe",
            kind="bad_size",
        )


def _check_resample(resample: str) -> None:
    if resample not in ("bicubic", "bilinear"):
        raise ValueError(f"resample must be 'bicubic' or 'bilinear', got {resample!r}")


@dataclass(frozen=True)
class ModelSettings:
    """What a checkpoint's configuration alone says: enough to plan an index, no weights read.

    `dim`: width D of a token. `dtype`: the checkpoint's own, "fp32", "bf16" or "fp16". `deepstack_layers`: maps
    that accompany the tokens. `default_temperature`, `default_window` (None = whole frame): the echo score's.
    `token_flops`: operations of the tower and projector for one token, attention between patches left out.
    """

    family: str
    layout: FrameLayout
    dim: int
    dtype: str
    deepstack_layers: int
    default_temperature: float
    default_window: int | None
    token_flops: float


class Encoder(Protocol):
    """A loaded vision tower with its projector; the language model is not in memory."""

    family: str
    layout: FrameLayout
    dim: int
    dtype: torch.dtype
    device: torch.device
    deepstack_layers: int
    default_temperature: float
    default_window: int | None

    def encode(self, frames: Frames, *, check: bool = True) -> TokenGrid:
        """TokenGrid of (cells, h, w, D) in `dtype` on `device`, cells in time order, tokens in raster order.

        `frames` are already resized to `layout.frame_hw`. A token's bits depend on its own cell alone, neither on
        the other cells nor on how many come in one call. Raises ModelError when a token is not finite, unless `check`
        is false: looking at them waits for the GPU, and who has other work for it looks later.
        """
        ...

    def require_finite(self, found: TokenGrid, *, first_cell: int) -> None:
        """Raises ModelError, as `encode` does, unless all of `found` is finite; its cells begin at `first_cell`."""
        ...


@dataclass(frozen=True)
class Running:
    """How an encoder runs: cells of one call on a GPU, where, in which dtype, by which of TOWERS."""

    segment_cells: int
    device: torch.device
    dtype: torch.dtype
    tower: str = "plain"


@dataclass(frozen=True)
class Family:
    """One model family: how its checkpoints are described, named and loaded.

    `settings(folder, max_pixels)`. `identity(folder)`: all configuration that tokens depend on, as JSON values.
    `weights_class`: the library's class of the whole model, which maps stored weight names of every public layout to
    today's. `vision_prefixes`: what vision weights start with after that -> what stands there in the tower's names.
    `load(folder, settings, running)`: its encoder. `fast_refused(folder)`: why a checkpoint is not for the fast tower, ""
    if it is. `prompt(config)`: how the whole model of that configuration is shown a video.
    """

    name: str
    settings: Callable[[Path, int | None], ModelSettings]
    identity: Callable[[Path], dict[str, object]]
    weights_class: str
    vision_prefixes: dict[str, str]
    load: Callable[[Path, ModelSettings, Running], Encoder]
    fast_refused: Callable[[Path], str]
    prompt: Callable[[Any], PromptStyle]
