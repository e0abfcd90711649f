"""The choice of `prune.py` for a video too long for memory: tokens are pushed as they come, the best come back.

Scores of the candidates stay in memory; rows (embeddings and what belongs to them) lie in two spill files, one of
candidates and one of pinned rows, both in the order of pushing. A token that `capacity` earlier or better ones
already beat is dropped at once. When the candidates' file holds more than twice the capacity, it is rewritten
with the best alone: one read and one write per row on average, however long the video is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from echoprune.data import IntArray
from echoprune.errors import ModelError
from echoprune.spill import Closing, Rows, SpillFile, opaque

# Rows of one chunk, a twelfth of a row group. 59 MB at a time took the encoder's
# memory from 0.53 GB for ten minutes of video to 0.78 GB for an hour, which alone had enough rows to fill them.
CHUNK_BYTES = 4 << 20

# The threshold rises eight times while the candidates grow from the capacity to twice that: with a quarter of the tokens
# kept, 0.62 of all rows enter, and 0.75 where it rises at the end alone.
RISES = 8

ScoreArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class RowSource(Protocol):
    """Rows that are made when they are asked for, such as those that are still on a GPU."""

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102 - of its rows

    def __len__(self) -> int: ...

    def take(self, places: IntArray) -> Rows:
        """Rows (m,) at the ascending `places` (m,), m >= 0."""
        ...


class TopK(Closing):
    """A running, exact top-K over tokens pushed in raster-chronological order, in bounded memory.

    `capacity`: the largest budget that `finish` may be given; None keeps every row. `spill_dir`: an existing
    local folder; it holds at most three times the capacity and all pinned rows, in files without a name that
    are gone when this object is closed or its process dies.

    What is kept equals, bit for bit, a stable sort of all scores, descending, cut at the budget: of equal scores
    the earlier wins. Pinned tokens are kept whatever their scores, and not counted.
    """

    def __init__(self, *, capacity: int | None, spill_dir: Path) -> None:
        if capacity is not None and capacity < 0:
            raise ValueError(f"capacity must be at least 0 or None, got {capacity}")
        self._capacity = capacity
        # A later token must beat this score to enter. As yet all do, even those of minus infinity: None.
        self._threshold: float | None = math.inf if capacity == 0 else None
        self._highest_dropped: float | None = None
        # The number of candidates at which the threshold is looked at again.
        self._rises_at = capacity or 0
        self._pushed = 0
        self._dtype: np.dtype[Any] | None = None
        self._scores: list[ScoreArray] = []
        self._indices: list[IntArray] = []
        self._pinned: list[IntArray] = []
        self._finished = False
        self._candidate_rows = SpillFile(spill_dir)
        self._pinned_rows = SpillFile(spill_dir)

    def close(self) -> None:
        """Give up the spill files, and with them the rows of a `Selection`; may be called again."""
        self._candidate_rows.close()
        self._pinned_rows.close()

    def push(self, score: ScoreArray, rows: Rows | RowSource, pinned: BoolArray) -> None:
        """Take in the next n tokens of the video; their flat indices continue those before.

        `score` (n,) float32, high = keep. `rows` (n,) of one fixed dtype without Python objects; of a `RowSource` those
        alone are taken that can still be kept. `pinned` (n,) bool: kept whatever the score, not counted.

        Raises ModelError if a score is NaN, StoreError if the spill file cannot be written.
        """
        self._check(score, rows, pinned)
        if isinstance(rows, np.ndarray):
            rows = opaque(rows)
        entering = ~pinned
        if self._threshold is not None:
            entering &= score > self._threshold
        if self._capacity is not None and int(entering.sum()) > self._capacity:
            # No more than the capacity of one push can ever be kept, and the disk need not hold the others.
            places = np.flatnonzero(entering)
            entering[places[~_best(score[places], self._capacity)]] = False
        self._drop(score[~pinned & ~entering])
        self._candidate_rows.append(opaque(rows.take(np.flatnonzero(entering))))
        self._pinned_rows.append(opaque(rows.take(np.flatnonzero(pinned))))
        self._scores.append(score[entering])
        self._indices.append(self._pushed + np.flatnonzero(entering))
        self._pinned.append(self._pushed + np.flatnonzero(pinned))
        self._pushed += len(score)
        if self._capacity is not None and self._candidate_rows.rows > 2 * self._capacity:
            self._compact(self._capacity)
        elif self._capacity is not None and self._candidate_rows.rows >= self._rises_at:
            self._raise_threshold(self._capacity)

    def finish(self, budget: int | None) -> Selection:
        """The pinned tokens and the `budget` best of the others (fewer if there are fewer); None: the capacity.

        Raises ValueError for a budget above the capacity.
        """
        if self._finished:
            raise ValueError("finish was called before; a TopK makes one selection")
        if budget is None:
            budget = self._capacity
        elif budget < 0 or (self._capacity is not None and budget > self._capacity):
            raise ValueError(f"budget {budget} is not within the capacity 0 to {self._capacity}")
        self._finished = True
        scores, indices = _joined(self._scores, np.float32), _joined(self._indices, np.int64)
        keep = np.ones(len(scores), dtype=np.bool_) if budget is None else _best(scores, budget)
        self._drop(scores[~keep])
        merged = np.concatenate([indices[keep], _joined(self._pinned, np.int64)])
        order = np.argsort(merged)
        return Selection(
            indices=merged[order],
            highest_dropped=self._highest_dropped,
            lowest_kept=float(scores[keep].min()) if keep.any() else None,
            _is_pinned=order >= int(keep.sum()),
            _places=np.flatnonzero(keep),
            _candidate_rows=self._candidate_rows,
            _pinned_rows=self._pinned_rows,
            _dtype=self._dtype if self._dtype is not None else np.dtype("V1"),
        )

    def _check(self, score: ScoreArray, rows: Rows | RowSource, pinned: BoolArray) -> None:
        if self._finished:
            raise ValueError("push after finish; a TopK makes one selection")
        if score.ndim != 1 or score.dtype != np.float32:
            raise ValueError(f"score must be float32 (n,), got {score.dtype} {score.shape}")
        shape = rows.shape if isinstance(rows, np.ndarray) else (len(rows),)
        if shape != score.shape or pinned.shape != score.shape or pinned.dtype != np.bool_:
            raise ValueError(
                f"rows and pinned must be ({len(score)},) and bool ({len(score)},), got {shape} and "
                f"{pinned.dtype} {pinned.shape}"
            )
        if self._dtype is None:
            if rows.dtype.hasobject or rows.dtype.itemsize == 0:
                raise ValueError(f"rows must have a dtype of a fixed size above 0, got {rows.dtype}")
            self._dtype = rows.dtype
        elif rows.dtype != self._dtype:
            raise ValueError(f"rows were {self._dtype} and are now {rows.dtype}; one selection has one dtype")
        undefined = int(np.isnan(score).sum())
        if undefined:
            raise ModelError(
                f"{undefined} of {len(score)} token scores are NaN after token {self._pushed}; check the checkpoint"
            )

    def _drop(self, scores: ScoreArray) -> None:
        if len(scores):
            highest = float(scores.max())
            self._highest_dropped = (
                highest if self._highest_dropped is None else max(highest, self._highest_dropped)
            )

    def _compact(self, capacity: int) -> None:
        scores, indices = _joined(self._scores, np.float32), _joined(self._indices, np.int64)
        keep = _best(scores, capacity)
        self._drop(scores[~keep])
        self._scores, self._indices = [scores[keep]], [indices[keep]]
        self._threshold = float(scores[keep].min())
        self._candidate_rows.retain(keep)
        self._rises_at = capacity + capacity // RISES

    def _raise_threshold(self, capacity: int) -> None:
        """What `capacity` candidates beat already can enter no more; the file is rewritten later, for less often is enough."""
        scores = _joined(self._scores, np.float32)
        self._scores, self._indices = [scores], [_joined(self._indices, np.int64)]
        if capacity:
            self._threshold = float(np.partition(scores, len(scores) - capacity)[len(scores) - capacity])
        self._rises_at = len(scores) + max(1, capacity // RISES)


@dataclass(frozen=True)
class Selection:
    """What a `TopK` kept; its rows can be read until that is closed.

    `indices` (K',) int64 ascending: flat indices of the kept tokens, pinned ones included. `highest_dropped`:
    the best score that was not kept, None if all were. `lowest_kept`: the worst kept score that was counted
    against the budget, None if none was.
    """

    indices: IntArray = field(repr=False)
    highest_dropped: float | None
    lowest_kept: float | None
    _is_pinned: BoolArray = field(repr=False)
    _places: IntArray = field(repr=False)
    _candidate_rows: SpillFile = field(repr=False)
    _pinned_rows: SpillFile = field(repr=False)
    _dtype: np.dtype[Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def chunks(self, rows: int) -> Iterator[tuple[IntArray, Rows]]:
        """Indices (m,) and rows (m,) as they were pushed, ascending, at most `rows` of them at a time.

        Fewer where `rows` of them would take more than CHUNK_BYTES; a read takes a few MB more. May be called again.
        """
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        rows = max(1, min(rows, CHUNK_BYTES // self._dtype.itemsize))
        pinned_done = 0
        for start in range(0, len(self.indices), rows):
            is_pinned = self._is_pinned[start : start + rows]
            pinned_end = pinned_done + int(is_pinned.sum())
            places = self._places[start - pinned_done : start + len(is_pinned) - pinned_end]
            part = np.empty(len(is_pinned), dtype=f"V{self._dtype.itemsize}")
            part[is_pinned] = self._pinned_rows.read_at(np.arange(pinned_done, pinned_end))
            part[~is_pinned] = self._candidate_rows.read_at(places)
            pinned_done = pinned_end
            yield self.indices[start : start + rows], part.view(self._dtype)


def _best(scores: ScoreArray, count: int) -> BoolArray:
    """(n,) bool: the `count` highest scores; of equal ones the earlier."""
    if count >= len(scores):
        return np.ones(len(scores), dtype=np.bool_)
    if count == 0:
        return np.zeros(len(scores), dtype=np.bool_)
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    best: BoolArray = scores > last
    best[np.flatnonzero(scores == last)[: count - int(best.sum())]] = True
    return best


def _joined(parts: list[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *parts])
