"""One segment of a video from its frames to what the choice needs of it: first all that a GPU is asked, then the answer.

`begin` asks and waits for nothing, so that a GPU has the next segment to work on while this process chooses and stores
tokens of the one before; `settle` waits. Only scores, pooled vectors and what is needed to see that all is finite come to
the CPU by themselves: rows of tokens do when they are taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from echoprune.change import rank
from echoprune.data import Frames, IntArray, TimeGrid, TokenGrid
from echoprune.dtype import codec, encode_rows
from echoprune.echo import EchoScorer
from echoprune.errors import MediaError, ModelError
from echoprune.host_copies import HostCopies, Sent
from echoprune.models.encoder import Encoder
from echoprune.pool import pool, stored_pool
from echoprune.schema import PLAIN_TOWER, StoreSettings, token_rows_dtype


class SegmentRows:
    """Rows to be stored of a segment's tokens, made of those that are asked for; a `RowSource`."""

    def __init__(
        self, tokens: TokenGrid, scores: torch.Tensor, settings: StoreSettings, copies: HostCopies
    ) -> None:
        """`scores` (2, T, N) correspondence and echo, on the CPU."""
        self._tokens = tokens.flat.flatten(0, 1)
        self._maps = None if tokens.deepstack is None else tokens.deepstack.flatten(1, 3)
        self._scores = scores.flatten(1)
        self._settings = settings
        self._copies = copies

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a row."""
        return token_rows_dtype(self._settings)

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, places: IntArray) -> npt.NDArray[np.void]:
        """Rows (m,) at the ascending `places` (m,). Raises ModelError where a value does not fit the store's dtype."""
        if not len(places):
            return np.empty(0, dtype=self.dtype)
        with self._copies.aside():
            tokens, maps, scores = self._tokens, self._maps, self._scores
            if len(places) < len(self):
                here = torch.from_numpy(places)
                there = here.to(tokens.device)
                tokens, scores = tokens[there], scores[:, here]
                maps = None if maps is None else maps[:, there]
            correspondence, echo = scores
            return encode_rows(
                tokens, self._settings, correspondence=correspondence, echo=echo, deepstack=maps
            )


@dataclass(frozen=True)
class Begun:
    """A segment that was asked of the encoder; what `Segments.settle` takes."""

    first_cell: int
    _encoded: TokenGrid = field(repr=False)
    _rounded: TokenGrid = field(repr=False)
    _sent: Sent = field(repr=False)


@dataclass(frozen=True)
class Settled:
    """A segment's novelty and rank, (T, N) float32, its tokens' rows, and its cells' pooled vectors and radii as stored."""

    novelty: npt.NDArray[np.float32]
    rank: npt.NDArray[np.float32]
    rows: SegmentRows = field(repr=False)
    pooled: npt.NDArray[np.uint8]
    radius: npt.NDArray[np.float32]


def try_out(encoder: Encoder, settings: StoreSettings) -> None:
    """Encodes and scores two black cells of little size; returns once that is done.

    A GPU that fails, or a machine without the C compiler that Triton needs at its first launch, raises here what it would
    raise with a video in hand.
    """
    layout = encoder.layout
    frame_hw = layout.frame_hw(64, 64)
    count = 2 * layout.cell_frames
    grid = TimeGrid(
        times_s=np.arange(count, dtype=np.float64),
        frame_pts=np.arange(count),
        frame_hw=frame_hw,
        grid_hw=layout.grid_hw(frame_hw),
        cell_frames=layout.cell_frames,
        segment_cells=settings.segment_cells,
        end_s=float(count),
    )
    black = Frames(np.zeros((count, *frame_hw, 3), np.uint8), 0, layout.cell_frames, "none")
    Segments(encoder, settings, grid).begin(black)._sent.wait()


class Segments:
    """The segments of one video, begun in order and settled in order."""

    def __init__(self, encoder: Encoder, settings: StoreSettings, grid: TimeGrid) -> None:
        self._encoder = encoder
        self._settings = settings
        self._codec = codec(settings.dtype)
        self._scorer = EchoScorer(
            grid_hw=grid.grid_hw,
            temperature=settings.temperature,
            window=settings.window,
            fused=settings.tower != PLAIN_TOWER,
        )
        self._copies = HostCopies(encoder.device)

    @torch.no_grad()
    def begin(self, frames: Frames) -> Begun:
        """Asks for the tokens of `frames` and all that follows from them."""
        encoded = self._encoder.encode(frames, check=False)
        # Rounded to the store's dtype first: what is stored explains its scores.
        rounded = TokenGrid(self._codec.cast(encoded.tokens), encoded.deepstack)
        found = [self._scorer.measure(rounded.flat)]
        # The radius bounds the tokens as they are read back; int8 is quantised after scoring.
        found += pool(self._codec.read_back(rounded.flat))
        if encoded.deepstack is not None:
            found.append(torch.stack(torch.aminmax(encoded.deepstack)))
        return Begun(frames.first_cell, encoded, rounded, self._copies.send(found))

    def settle(self, begun: Begun) -> Settled:
        """What came of it. Raises MediaError of stage "encode" for tokens that are not finite: the video's failure."""
        scores, pooled, radius, *extremes = begun._sent.wait()
        try:
            self._require_finite(begun, scores[0], extremes)
        except ModelError as error:
            raise MediaError(str(error), stage="encode", kind="not_finite") from error
        vectors, radii = stored_pool(pooled, radius)
        correspondence, echo = scores[1:]
        return Settled(
            (-correspondence - echo).numpy(),
            rank(correspondence, echo, by=self._settings.rank_by).numpy(),
            SegmentRows(begun._rounded, scores[1:], self._settings, self._copies),
            vectors,
            radii,
        )

    def _require_finite(self, begun: Begun, length: torch.Tensor, extremes: list[torch.Tensor]) -> None:
        # A length is finite where all of its token's values are; what is wrong otherwise is said by those who know.
        if bool(length.isfinite().all()) and all(bool(each.isfinite().all()) for each in extremes):
            return
        self._encoder.require_finite(begun._encoded, first_cell=begun.first_cell)
        if not self._codec.scaled:
            self._codec.require_finite(begun._rounded.tokens)
        self._scorer.require_finite(length, first_cell=begun.first_cell)
