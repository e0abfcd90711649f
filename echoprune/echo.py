"""Echo scores: how well each visual token is explained by the cell before it. No question is needed.

With v^ the unit vector of a token, t its cell, i its place among the N = h x w of the cell and tau the temperature:

    correspondence  c[t,i] = v^[t,i] . v^[t-1,i]                               same place, previous cell
                    s[i,j] = v^[t,i] . v^[t-1,j],  j in the window of i
                    p[i,j] = softmax over j of s[i,j] / tau
    echo            e[t,i] = v^[t,i] . sum_j p[i,j] v^[t-1,j] = sum_j p[i,j] s[i,j]
    novelty                = -c - e

Both are similarities: high means redundant. What is kept under a budget is decided in `prune.py`.
"""

from __future__ import annotations

import math

import torch

from echoprune.data import EchoScores
from echoprune.errors import ConfigError, ModelError
from echoprune.precision import full_float32

SCORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# 8 cells of 256 tokens of width 3584 fill 32 MB in float32: enough work for one product, little enough to hold.
CHUNK_BYTES = 32 << 20
CHUNK_PAIRS = 8
# Rows start on 64-byte boundaries in every dtype, so that no kernel takes another path for an odd width.
WIDTH_MULTIPLE = 32
# A vector this short (2^-60) has a square close to the smallest normal float32; it counts as a zero vector.
ZERO_NORM = 2.0**-60


def echo_scores(
    tokens: torch.Tensor, *, grid_hw: tuple[int, int], temperature: float, window: int | None = None
) -> EchoScores:
    """Correspondence and echo (T, N) float32 of a whole video's tokens (T, N, D); row 0 has no past and is 0.

    See `EchoScorer` for the arguments and errors; this is one call of it.
    """
    return EchoScorer(grid_hw=grid_hw, temperature=temperature, window=window).score(tokens)


class EchoScorer:
    """Scores of one video that arrives in successive segments; remembers the last cell of the one before.

    `grid_hw`: tokens (h, w) of a cell in raster order, h x w = N. `temperature`: tau > 0. `window`: None for the
    whole previous cell, or the odd side >= 1 of the square around each token, clipped at the border. `fused`: on a GPU
    by one kernel (fast/echo_kernels.py), elsewhere without effect; its scores differ by rounding.

    However the video is cut into segments, the scores are the same bit for bit (on one device, with one number
    of CPU threads). Matrix kernels are chosen by shape and may add in another order for another shape; so every
    product here has one shape, fixed by N and D alone, and a cell's slot in it is its index in the video modulo
    the number of slots.
    """

    def __init__(
        self,
        *,
        grid_hw: tuple[int, int],
        temperature: float,
        window: int | None = None,
        fused: bool = False,
    ) -> None:
        height, width = grid_hw
        if height < 1 or width < 1:
            raise ValueError(f"grid_hw must be two numbers >= 1, got {grid_hw}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(
                f"temperature is {temperature}; give a finite number above 0, such as 0.1 or 0.5"
            )
        if window is not None and (window < 1 or window % 2 == 0):
            raise ConfigError(
                f"window is {window}; give an odd side of at least 1 such as 3, or none for the whole cell"
            )
        self._grid_hw = grid_hw
        self._temperature = float(temperature)
        self._fused = fused
        radius = None if window is None else window // 2
        self._radius = None if radius is None or radius >= max(grid_hw) - 1 else radius
        self._last: torch.Tensor | None = None
        self._cells = 0

    @torch.no_grad()
    def score(self, tokens: torch.Tensor) -> EchoScores:
        """Correspondence and echo (T, N) float32 of the next T >= 0 cells, on the tokens' device.

        `tokens` (T, N, D) float32, bfloat16 or float16, with the N, D, dtype and device of the segments before.
        Products of the tokens as they are, added up in float32, and divided by float32 norms: unit vectors in
        bfloat16 would be off by 2e-3. A zero vector has similarity 0 with everything. The first cell of the video
        scores 0 and its `has_past` is false.

        Raises ModelError for tokens that are not finite (or above 1e19, whose squares are not).
        """
        before = self._cells
        length, correspondence, echo = self.measure(tokens)
        self.require_finite(length, first_cell=before)
        has_past = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        has_past[: max(0, 1 - before)] = False
        return EchoScores(correspondence=correspondence, echo=echo, has_past=has_past)

    @torch.no_grad()
    def measure(self, tokens: torch.Tensor) -> torch.Tensor:
        """(3, T, N) float32 lengths, correspondence and echo of the next cells, nothing waited for and nothing looked at.

        As `score`, for those who look later whether the lengths are finite: `require_finite`.
        """
        self._check(tokens)
        cells = len(tokens)
        if self._fused and tokens.is_cuda:
            from echoprune.fast import echo_kernels  # noqa: PLC0415 - Triton comes with a CUDA build of torch alone

            found = echo_kernels.scores(
                tokens,
                self._last,
                grid_hw=self._grid_hw,
                radius=self._radius,
                temperature=self._temperature,
                zero=ZERO_NORM,
            )
        else:
            found = self._in_chunks(tokens)
        if cells:
            if self._last is None:
                self._last = tokens[-1].clone()
            else:
                # In place: one cell of eight is an eighth of the tokens' memory.
                self._last.copy_(tokens[-1])
            self._cells += cells
        return found

    def require_finite(self, length: torch.Tensor, *, first_cell: int) -> None:
        """Raises ModelError unless all of `length` (T, N), of the cells from `first_cell` on, are finite."""
        bad = (~length.isfinite()).nonzero()
        if len(bad) == 0:
            return
        t, place = bad[0].tolist()
        h, w = divmod(place, self._grid_hw[1])
        raise ModelError(
            f"{len(bad)} of {length.numel()} visual tokens are not finite, the first in cell {first_cell + t} at row {h}, "
            f"column {w}; check the checkpoint, or run the encoder in float32"
        )

    def _in_chunks(self, tokens: torch.Tensor) -> torch.Tensor:
        """(3, T, N) lengths, correspondence and echo, by products of one shape each."""
        cells, places, dim = tokens.shape
        pairs = chunk_pairs(places, dim)
        # The CPU has no product of half-precision tokens with a float32 result, and the window none anywhere.
        raw = tokens.is_cuda and self._radius is None
        padded = -(-dim // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        chunk = torch.zeros(
            (pairs + 1, places, padded), dtype=tokens.dtype if raw else torch.float32, device=tokens.device
        )
        found = torch.empty((3, cells, places), dtype=torch.float32, device=tokens.device)
        done = 0
        with full_float32():
            while done < cells:
                slot = (self._cells + done) % pairs
                end = min(done + pairs - slot, cells)
                past = tokens[done - 1] if done else self._last
                if past is not None:  # else this is the first cell of the video, and the slot before it is 0
                    chunk[slot, :, :dim] = past
                used = slice(slot, slot + end - done)
                chunk[slot + 1 : used.stop + 1, :, :dim] = tokens[done:end]
                for scores, part in zip(found, self._pairs(chunk), strict=True):
                    scores[done:end] = part[used]
                done = end
        return found

    def _pairs(self, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(C, N) norm, correspondence and echo of cells 1.. of a chunk (C + 1, N, D), each against the one before."""
        norm = torch.linalg.vector_norm(chunk, dim=-1, dtype=torch.float32)
        scale = torch.where(norm > ZERO_NORM, norm.reciprocal(), 0.0)
        if self._radius is None:
            similarity = _product(chunk[1:], chunk[:-1].transpose(1, 2))
            similarity.mul_(scale[1:, :, None]).mul_(scale[:-1, None, :])
            correspondence = similarity.diagonal(dim1=1, dim2=2)
            echo = _softmax_mean(similarity, dim=2, temperature=self._temperature)
        else:
            similarity = _window_similarity(chunk, scale, grid_hw=self._grid_hw, radius=self._radius)
            correspondence = similarity[len(similarity) // 2]
            echo = _softmax_mean(similarity, dim=0, temperature=self._temperature)
        return norm[1:], correspondence, echo

    def _check(self, tokens: torch.Tensor) -> None:
        height, width = self._grid_hw
        if tokens.ndim != 3 or tokens.shape[1] != height * width:
            raise ValueError(
                f"tokens must be (T, {height * width}, D) for the grid {height}x{width}, got {tuple(tokens.shape)}"
            )
        if tokens.dtype not in SCORED_DTYPES:
            raise ValueError(f"tokens must be float32, bfloat16 or float16, got {tokens.dtype}")
        last = self._last
        if last is not None and (last.shape, last.dtype, last.device) != (
            tokens.shape[1:],
            tokens.dtype,
            tokens.device,
        ):
            raise ValueError(
                f"this segment's cells are {tuple(tokens.shape[1:])} {tokens.dtype} on {tokens.device}, those before "
                f"it {tuple(last.shape)} {last.dtype} on {last.device}; one scorer takes one video"
            )


def chunk_pairs(places: int, dim: int) -> int:
    """How many cells are scored in one product, 1 to 8; depends on N and D alone, as bit equality requires."""
    bytes_a_pair = 4 * places * (dim + places)
    return max(1, min(CHUNK_PAIRS, CHUNK_BYTES // bytes_a_pair))


def _product(now: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """Batched matrix product as float32, whatever the dtype of the factors."""
    if now.dtype is torch.float32:
        return torch.bmm(now, past)
    return torch.bmm(now, past, out_dtype=torch.float32)


def _window_similarity(
    chunk: torch.Tensor, scale: torch.Tensor, *, grid_hw: tuple[int, int], radius: int
) -> torch.Tensor:
    """(O, C, N) similarity of each token with its O neighbours of the cell before; -inf outside the grid.

    One elementwise product per offset; the offset (0, 0) is the middle one.
    """
    height, width = grid_hw
    cells = chunk.view(len(chunk), height, width, -1)
    scales = scale.view(-1, height, width)
    # An offset as long as the grid reaches no token from anywhere.
    reach_h, reach_w = min(radius, height - 1), min(radius, width - 1)
    offsets = [(dh, dw) for dh in range(-reach_h, reach_h + 1) for dw in range(-reach_w, reach_w + 1)]
    similarity = scale.new_full((len(offsets), len(cells) - 1, height, width), -math.inf)
    for index, (dh, dw) in enumerate(offsets):
        now = (slice(1, None), _inside(-dh, height), _inside(-dw, width))
        past = (slice(None, -1), _inside(dh, height), _inside(dw, width))
        similarity[(index, slice(None), *now[1:])] = (
            (cells[now] * cells[past]).sum(-1) * scales[now] * scales[past]
        )
    return similarity.flatten(2)


def _inside(offset: int, size: int) -> slice:
    """The places of 0..size-1 that are `offset` away from another of them."""
    return slice(max(0, offset), size + min(0, offset))


def _softmax_mean(similarity: torch.Tensor, *, dim: int, temperature: float) -> torch.Tensor:
    """sum_j p[j] s[j] over `dim`, with p = softmax(s / temperature); s = -inf takes no part."""
    weight = torch.softmax(similarity / temperature, dim=dim)
    return torch.where(weight > 0, weight * similarity, 0.0).sum(dim)
