"""The types that flow through the package, from a file on disk to a set of kept tokens.

    VideoInfo -> TimeGrid -> Frames -> TokenGrid -> EchoScores -> TokenSet

Each is frozen, checks its own shapes when made, and prints shapes, never values. "Cell" is one step of the
encoder's time grid: `cell_frames` sampled frames (two for the Qwen-VL families, one for LLaVA-OneVision).
Nothing here reads files or computes scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class VideoInfo:
    """What a scan of the packets of one video's chosen stream says; no frame has been decoded.

    `pts` (F,) int64: presentation times of all frames that are shown, ascending, in ticks of `time_base`
    seconds. `cut_pts`: those of them at which decoding may start cleanly: keyframes that no later packet in
    decode order precedes in presentation. `width`, `height`: pixels as displayed, after `rotation` (degrees,
    counter-clockwise turns of 90 that make the picture upright). `end_pts`: when the last frame stops being
    shown. `incomplete`: why the file is known to hold less than its header promises ("" if it does not). `path`: where
    the file lies on this machine, "" if that is `uri`. `one_packet_each`: a packet with one of `pts` is that picture, and no other
    packet has that time.
    """

    uri: str
    stream_index: int
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    rotation: int
    time_base: Fraction
    pts: IntArray = field(repr=False)
    cut_pts: IntArray = field(repr=False)
    end_pts: int
    vfr: bool
    incomplete: str = ""
    path: str = ""
    one_packet_each: bool = False

    def __post_init__(self) -> None:
        _require(
            self.pts.ndim == 1 and len(self.pts) > 0, f"pts must be (F,) with F > 0, got {self.pts.shape}"
        )
        _require(bool(np.all(np.diff(self.pts) > 0)), "pts must be strictly ascending")
        _require(
            self.end_pts > int(self.pts[-1]),
            f"end_pts {self.end_pts} is not after the last frame {self.pts[-1]}",
        )
        _require(
            self.rotation in (0, 90, 180, 270), f"rotation must be 0, 90, 180 or 270, got {self.rotation}"
        )

    @property
    def start_pts_s(self) -> float:
        """Time stamp of the first presented frame in the stream's own clock, seconds; may be negative."""
        return float(int(self.pts[0]) * self.time_base)

    @property
    def duration_s(self) -> float:
        """Seconds from the first presented frame until the last one stops being shown; > 0."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    @property
    def fps(self) -> float:
        """Presented frames per second, averaged over the video."""
        return len(self.pts) / self.duration_s


@dataclass(frozen=True)
class TimeGrid:
    """The sampled instants and the frame size of one video, fixed once before anything is decoded.

    `times_s` (F,) float64: the sampled instants, from the first presented frame, ascending from 0.
    `frame_pts` (F,) int64: the frame on screen at that instant (the last with pts <= instant), in ticks.
    `frame_hw`: pixels (H, W) that a frame is resized to. `grid_hw`: tokens (h, w) of one cell.
    """

    times_s: FloatArray = field(repr=False)
    frame_pts: IntArray = field(repr=False)
    frame_hw: tuple[int, int]
    grid_hw: tuple[int, int]
    cell_frames: int
    segment_cells: int
    end_s: float

    def __post_init__(self) -> None:
        _require(
            self.times_s.ndim == 1 and len(self.times_s) > 0,
            f"times_s must be (F,), got {self.times_s.shape}",
        )
        _require(
            self.times_s.shape == self.frame_pts.shape,
            f"times_s {self.times_s.shape} and frame_pts {self.frame_pts.shape} differ",
        )
        _require(self.times_s[0] == 0.0, f"the first instant must be 0, got {self.times_s[0]}")
        _require(bool(np.all(np.diff(self.times_s) > 0)), "times_s must be strictly ascending")
        _require(bool(np.all(np.diff(self.frame_pts) >= 0)), "frame_pts must not descend")
        _require(
            self.cell_frames >= 1 and self.segment_cells >= 1, "cell_frames and segment_cells must be >= 1"
        )

    @property
    def frames(self) -> int:
        """Sampled frames, before the last cell is filled up."""
        return len(self.times_s)

    @property
    def cells(self) -> int:
        """Cells of the whole video; the last may be filled by repeating the last frame."""
        return -(-self.frames // self.cell_frames)

    @property
    def segments(self) -> int:
        """Segments of `segment_cells` cells; the last may be shorter."""
        return -(-self.cells // self.segment_cells)

    @property
    def tokens_per_cell(self) -> int:
        """N = h x w."""
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def cell_times_s(self) -> FloatArray:
        """(cells,) float64: the instant of the first frame of each cell."""
        return self.times_s[:: self.cell_frames]

    @property
    def cell_pts(self) -> IntArray:
        """(cells,) int64: the time stamp of the first frame of each cell, in ticks."""
        return self.frame_pts[:: self.cell_frames]


@dataclass(frozen=True)
class Frames:
    """The decoded, resized frames of consecutive cells of one video.

    `pixels` uint8 (F, H, W, 3), RGB, upright; F is a multiple of `cell_frames`. `first_cell`: index of the
    first cell in the video. `decoder`: what produced them ("decord" or "pyav"). `damaged`: how many of the
    frames were patched by the decoder after errors, or follow such a frame before the next clean cut point.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    first_cell: int
    cell_frames: int
    decoder: str
    damaged: int = 0

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        _require(
            self.pixels.ndim == 4 and shape[3] == 3 and self.pixels.dtype == np.uint8,
            f"pixels must be uint8 (F, H, W, 3), got {self.pixels.dtype} {shape}",
        )
        _require(
            shape[0] > 0 and shape[0] % self.cell_frames == 0,
            f"{shape[0]} frames are not whole cells of {self.cell_frames}",
        )

    @property
    def cells(self) -> int:
        """How many cells these frames fill."""
        return int(self.pixels.shape[0]) // self.cell_frames


@dataclass(frozen=True)
class TokenGrid:
    """Visual tokens of consecutive cells as the language model would see them: projector output, after pooling.

    `tokens` (T, h, w, D). `deepstack` (L, T, h, w, D) for families that feed several layers, else None.
    """

    tokens: torch.Tensor = field(repr=False)
    deepstack: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require(self.tokens.ndim == 4, f"tokens must be (T, h, w, D), got {tuple(self.tokens.shape)}")
        if self.deepstack is not None:
            _require(
                self.deepstack.ndim == 5 and self.deepstack.shape[1:] == self.tokens.shape,
                f"deepstack {tuple(self.deepstack.shape)} must be (L, *{tuple(self.tokens.shape)})",
            )

    @property
    def flat(self) -> torch.Tensor:
        """(T, N, D) view of the tokens, N = h x w in raster order."""
        cells, height, width, dim = self.tokens.shape
        return self.tokens.reshape(cells, height * width, dim)

    def __repr__(self) -> str:
        deep = "" if self.deepstack is None else f", deepstack={tuple(self.deepstack.shape)}"
        return f"TokenGrid(tokens={tuple(self.tokens.shape)} {self.tokens.dtype}{deep})"


@dataclass(frozen=True)
class EchoScores:
    """How well each token is explained by the previous cell; high = redundant, a temporal echo.

    `correspondence`, `echo` (T, N) float32 in [-1, 1] up to rounding. `has_past` (T,) bool: false for a cell
    without a predecessor, whose scores are 0 and mean nothing.
    """

    correspondence: torch.Tensor = field(repr=False)
    echo: torch.Tensor = field(repr=False)
    has_past: torch.Tensor = field(repr=False)

    def __post_init__(self) -> None:
        shape = self.correspondence.shape
        _require(len(shape) == 2, f"scores must be (T, N), got {tuple(shape)}")
        _require(
            self.echo.shape == shape,
            f"echo {tuple(self.echo.shape)} differs from correspondence {tuple(shape)}",
        )
        _require(
            self.has_past.shape == shape[:1] and self.has_past.dtype == torch.bool,
            f"has_past must be bool ({shape[0]},), got {self.has_past.dtype} {tuple(self.has_past.shape)}",
        )
        for name, scores in (("correspondence", self.correspondence), ("echo", self.echo)):
            _require(scores.dtype == torch.float32, f"{name} must be float32, got {scores.dtype}")

    @property
    def novelty(self) -> torch.Tensor:
        """(T, N) float32: -correspondence - echo, the question-independent part of the score; high = keep."""
        return -self.correspondence - self.echo

    def __repr__(self) -> str:
        return f"EchoScores({tuple(self.correspondence.shape)}, past for {int(self.has_past.sum())} cells)"


@dataclass(frozen=True)
class TokenSet:
    """Kept tokens of one video, in raster-chronological order.

    `tokens` (N, D). `positions` (N, 3) int64: (t, h, w) in the original, unpruned grid `grid_thw`.
    `times_s` (N,) float64: the instant of each token's cell. `correspondence`, `echo` (N,) float32, 0 in the
    first cell. `anchor` (N,) bool: the token belongs to a cell that was kept whole whatever its scores.
    `deepstack` (L, N, D) or None. N may be 0.
    """

    tokens: torch.Tensor = field(repr=False)
    positions: torch.Tensor = field(repr=False)
    times_s: torch.Tensor = field(repr=False)
    correspondence: torch.Tensor = field(repr=False)
    echo: torch.Tensor = field(repr=False)
    anchor: torch.Tensor = field(repr=False)
    grid_thw: tuple[int, int, int]
    deepstack: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require(self.tokens.ndim == 2, f"tokens must be (N, D), got {tuple(self.tokens.shape)}")
        count = self.tokens.shape[0]
        _require(
            self.positions.shape == (count, 3),
            f"positions must be ({count}, 3), got {tuple(self.positions.shape)}",
        )
        for name in ("times_s", "correspondence", "echo", "anchor"):
            shape = tuple(getattr(self, name).shape)
            _require(shape == (count,), f"{name} must be ({count},), got {shape}")
        if self.deepstack is not None:
            _require(
                self.deepstack.ndim == 3 and self.deepstack.shape[1:] == self.tokens.shape,
                f"deepstack must be (L, {count}, D), got {tuple(self.deepstack.shape)}",
            )
        _require(
            bool((torch.diff(self.flat_index) > 0).all()),
            "tokens must be in raster-chronological order, once each",
        )

    @property
    def novelty(self) -> torch.Tensor:
        """(N,) float32: -correspondence - echo."""
        return -self.correspondence - self.echo

    @property
    def flat_index(self) -> torch.Tensor:
        """(N,) int64: index of each token in the flattened original grid."""
        _, height, width = self.grid_thw
        t, h, w = self.positions.unbind(1)
        return (t * height + h) * width + w

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def __repr__(self) -> str:
        return f"TokenSet({tuple(self.tokens.shape)} {self.tokens.dtype} of grid {self.grid_thw})"
