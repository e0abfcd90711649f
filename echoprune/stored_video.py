"""One video of a store as questions see it: its views, the scores of its tokens, and the tokens that were chosen.

A long video's tokens do not fit in memory (7 GB for three hours of 3,584-wide tokens kept by a quarter): they are read
twice, for their relevance and for those chosen. A short video's are read once and kept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from echoprune.data import TokenSet
from echoprune.errors import UnanswerableError
from echoprune.pool import unpool
from echoprune.query import relevance
from echoprune.schema import StoreSettings
from echoprune.store import TokenStore
from echoprune.store_files import column_values
from echoprune.stored import Stored
from echoprune.view import View, view_of

# A video of at most so many bytes of vectors stays in memory between its questions: 40 minutes of 3,584-wide bf16 tokens
# kept by a quarter, at 2 frames a second of 256 tokens.
CACHED_BYTES = 1 << 30
# A policy that looks at every token at once gets so many bytes of them at most: with a model of 7 billion parameters in bf16
# (15 GB) that fits a GPU of 24 GB. 78 minutes of 3,584-wide bf16 tokens, at a cell a second of 256 tokens.
VECTORS_BYTES = 8 << 30


@dataclass(frozen=True)
class Found:
    """What is stored of a view: n tokens without their vectors.

    `related` (n,) float32 on the CPU: their relevance, None without a query. `vectors` (n, D): theirs, where they were
    scored, of a video that stays in memory; else None.
    """

    stored: Stored
    related: torch.Tensor | None
    vectors: torch.Tensor | None


class StoredVideo:
    """A video that is ok or partial, opened by its id; `row` is its videos row.

    Its cells are read when a question needs them: its tokens can be under way by then. Whatever reads raises StoreError where
    the store is damaged.
    """

    def __init__(self, store: TokenStore, video_id: str) -> None:
        self.row = store.video(video_id)
        self.video_id = video_id
        self._store = store
        # As they are in memory: int8 is read as float32.
        self._vector_bytes = max(
            store.settings.vector_bytes, 4 * store.settings.dim * (store.settings.dtype == "int8")
        )
        vectors = int(self.row["kept"]) * (1 + store.settings.deepstack_layers)
        self._bytes = vectors * self._vector_bytes
        self._small = self._bytes <= CACHED_BYTES
        self._all: TokenSet | None = None
        self._reading = threading.Lock()
        self._its_cells: pa.Table | None = None
        self._reading_cells = threading.Lock()

    @property
    def end_s(self) -> float:
        """Where its last cell ends, seconds."""
        return float(self._cells()["end_s"][-1].as_py())

    def _cells(self) -> pa.Table:
        """What its questions and its tokens need of its cells, read once, by the thread that is first to ask."""
        with self._reading_cells:
            if self._its_cells is None:
                self._its_cells = self._store.cells(self.video_id, ("time_s", "end_s", "kept", "anchor"))
            return self._its_cells

    @cached_property
    def _begins(self) -> npt.NDArray[np.int64]:
        """(T + 1,): the row of the first token of each cell, and of the end."""
        return np.concatenate([[0], np.cumsum(self._cells()["kept"].to_numpy().astype(np.int64))])

    @property
    def cached_bytes(self) -> int:
        """Bytes of its vectors while it is in memory; 0 for a video that is too long to stay there."""
        return self._bytes if self._small else 0

    def read(self, device: torch.device | None) -> TokenSet | None:
        """Its tokens, in memory from now on; None for a video that is too long. `device`: where they are to go.

        May be called from any thread.
        """
        if not self._small:
            return None
        with self._reading:
            if self._all is None:
                pin_memory = device is not None and device.type == "cuda"
                self._all = self._store.tokens(self.video_id, pin_memory=pin_memory, cells=self._cells)
            return self._all

    def view(self, start_s: float | None, end_s: float | None) -> View | None:
        """The cells that begin in [start_s, end_s); None if there is none."""
        cells = self._cells()
        return view_of(
            cells["time_s"].to_numpy(),
            cells["end_s"].to_numpy(),
            grid_hw=(self.row["grid_h"], self.row["grid_w"]),
            cell_frames=self._store.settings.cell_frames,
            frame_step_s=_frame_step_s(self._store.settings, self.end_s),
            start_s=start_s,
            end_s=end_s,
        )

    def scores(self, view: View, query: torch.Tensor | None, *, reduce: str, device: torch.device) -> Found:
        """What is stored of `view`, with its relevance to `query` (M, D), or without."""
        parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        related: list[torch.Tensor] = []
        vectors: torch.Tensor | None = None
        # Before the tokens: behind them it would wait until they are there, and what comes next would start late.
        asked = None if query is None else query.to(device)
        for chunk in self._chunks(view, device):
            parts.append((chunk.positions[:, 0] - view.first_cell, chunk.correspondence, chunk.echo))
            if asked is not None:
                tokens = chunk.tokens.to(device, non_blocking=True)
                related.append(relevance(tokens, asked, reduce=reduce).cpu())
                if self._small:
                    vectors = tokens
        t, correspondence, echo = (
            (torch.cat(column) for column in zip(*parts, strict=True))
            if parts
            else (torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0))
        )
        stored = Stored(
            t=t,
            correspondence=correspondence,
            echo=echo,
            cells=view.grid_thw[0],
            tokens_per_cell=view.tokens_per_cell,
            highest_dropped=self.row["highest_dropped_novelty"],
            rank_by=self._store.settings.rank_by,
        )
        return Found(stored, torch.cat(related) if related else None, vectors)

    def reach(self, view: View, query: torch.Tensor, *, reduce: str) -> torch.Tensor:
        """(T,) float32: what the relevance to `query` of no token of a cell exceeds, by its pooled vector and radius."""
        norm = torch.linalg.vector_norm(query.float(), dim=1, keepdim=True)
        directions = query.float() / torch.where(norm > 0, norm, 1.0)
        pooled, radius = (column[view.first_cell : view.stop_cell] for column in self._pooled)
        similarity = pooled.float() @ directions.T
        # The weighted mean of "softmax" is no more than the maximum.
        nearest = similarity.mean(dim=1) if reduce == "mean" else similarity.amax(dim=1)
        return nearest + radius

    @cached_property
    def _pooled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, D) bfloat16 pooled vectors and (T,) float32 radii: 77 MB for three hours of 3,584-wide tokens."""
        cells = self._store.cells(self.video_id, ("pooled", "radius"))
        return unpool(column_values(cells["pooled"])), torch.from_numpy(column_values(cells["radius"]).copy())

    @cached_property
    def lossless(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T, N) float32 c and e of all tokens of a lossless store, and (T,) bool: the cells that are anchors."""
        whole = self.view(None, None)
        assert whole is not None
        stored = self.scores(whole, None, reduce="max", device=torch.device("cpu")).stored
        shape = (whole.grid_thw[0], whole.tokens_per_cell)
        anchor = self._cells()["anchor"].to_numpy()
        return stored.correspondence.view(shape), stored.echo.view(shape), torch.from_numpy(anchor.copy())

    def vectors(self, view: View, *, device: torch.device) -> torch.Tensor:
        """(T, N, D) all tokens of `view` on `device`, which must be stored whole; in float32 where they are stored in int8.

        Raises UnanswerableError where they are more than VECTORS_BYTES.
        """
        size = view.tokens * self._vector_bytes
        if size > VECTORS_BYTES:
            raise UnanswerableError(
                "too_long_for_policy",
                f"the policy looks at all {view.tokens} tokens of {self.row['uri']} at once, {size / 2**30:.1f} GiB of at "
                f"most {VECTORS_BYTES >> 30}: ask about a shorter range, or give --policy anchored, echoprune or evs",
            )
        dim = self._store.settings.dim
        vectors: torch.Tensor | None = None
        begin = 0
        for chunk in self._chunks(view, device):
            if vectors is None:
                vectors = torch.empty((view.tokens, dim), dtype=chunk.tokens.dtype, device=device)
            vectors[begin : begin + len(chunk)].copy_(chunk.tokens, non_blocking=True)
            begin += len(chunk)
        if vectors is None or begin != view.tokens:
            raise ValueError(f"{begin} of {view.tokens} tokens of {self.row['uri']} are stored, not all")
        return vectors.view(view.grid_thw[0], view.tokens_per_cell, dim)

    def gather(self, view: View, index: torch.Tensor, *, vectors: torch.Tensor | None = None) -> TokenSet:
        """The tokens of `view` at `index` (K,) int64, ascending, into what `scores` found; t counts within the view.

        On the CPU, but for the tokens themselves where they are picked of `vectors`, those that `scores` found.
        """
        picked: list[TokenSet] = []
        begin = 0
        for chunk in self._chunks(view):
            inside = index[(index >= begin) & (index < begin + len(chunk))] - begin
            if len(inside):
                picked.append(_pick(chunk, inside, vectors))
            begin += len(chunk)
        return _joined(picked, view)

    def _chunks(self, view: View, device: torch.device | None = None) -> Iterator[TokenSet]:
        """What is stored of `view`, piece by piece, on the CPU; `device`: where it is to go."""
        first, stop = int(self._begins[view.first_cell]), int(self._begins[view.stop_cell])
        if first == stop:
            return
        tokens = self.read(device)
        if tokens is None:
            yield from self._store.token_chunks(
                self.video_id, first=first, count=stop - first, cells=self._cells
            )
        elif first == 0 and stop == len(tokens):
            # As it is: its parts are checked anew for each set that is made of them, 0.5 ms for 10,240 tokens.
            yield tokens
        else:
            yield _pick(tokens, slice(first, stop))


def _frame_step_s(settings: StoreSettings, length_s: float) -> float | None:
    """Seconds between sampled frames of a video of `length_s`; None where only its cells tell."""
    if settings.frames is not None:
        return length_s if settings.frames == 1 else None
    step_s = float(1 / Fraction(settings.fps or 2))
    return step_s if settings.max_frames is None else max(step_s, length_s / settings.max_frames)


def _pick(tokens: TokenSet, index: torch.Tensor | slice, vectors: torch.Tensor | None = None) -> TokenSet:
    """Those at `index`; `vectors`: those of `tokens`, on another device maybe."""
    chosen = (
        _taken(tokens.tokens, index)
        if vectors is None
        else _taken(vectors, index if isinstance(index, slice) else index.to(vectors.device))
    )
    return TokenSet(
        tokens=chosen,
        positions=_taken(tokens.positions, index),
        times_s=_taken(tokens.times_s, index),
        correspondence=_taken(tokens.correspondence, index),
        echo=_taken(tokens.echo, index),
        anchor=_taken(tokens.anchor, index),
        grid_thw=tokens.grid_thw,
        deepstack=None if tokens.deepstack is None else _taken(tokens.deepstack, index, dim=1),
    )


def _taken(values: torch.Tensor, index: torch.Tensor | slice, *, dim: int = 0) -> torch.Tensor:
    if isinstance(index, slice):
        return values[(slice(None),) * dim + (index,)]
    # Copies row by row: 2,048 tokens in 1.3 ms, by values[index] in 3.
    return values.index_select(dim, index)


def _joined(parts: list[TokenSet], view: View) -> TokenSet:
    deep = [part.deepstack for part in parts if part.deepstack is not None]
    return TokenSet(
        tokens=_cat([part.tokens for part in parts]),
        positions=_cat([part.positions for part in parts]) - torch.tensor([view.first_cell, 0, 0]),
        times_s=_cat([part.times_s for part in parts]),
        correspondence=_cat([part.correspondence for part in parts]),
        echo=_cat([part.echo for part in parts]),
        anchor=_cat([part.anchor for part in parts]),
        grid_thw=view.grid_thw,
        deepstack=_cat(deep, dim=1) if deep else None,
    )


def _cat(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    # torch copies a lone part too: 15 MB of 2,048 tokens in 6 ms.
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
