"""Upper bounds of the relevance of any token of each cell, from the cells table alone: the first stage of a search.

The second stage, which reads tokens, is in search.py; what pooled vectors and radii are, in pool.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from echoprune.errors import StoreError
from echoprune.pool import unpool
from echoprune.precision import full_float32
from echoprune.query import ZERO_NORM
from echoprune.store import TokenStore
from echoprune.store_files import column_values

_COLUMNS = ("t", "kept", "pooled", "radius")
# Rounding error of one float32 operation, relative.
_UNIT = 2.0**-24


@dataclass(frozen=True)
class Directions:
    """What bounds are taken of: unit vectors (R, D) float32, and the length (0 to 1) that multiplies each result.

    `slack`: more than float32 products of this width can be off by, here and in `query.relevance`.
    """

    unit: torch.Tensor
    length: float
    slack: float


def directions(query: torch.Tensor, reduce: str) -> Directions:
    """The directions of query tokens (M, D), M >= 1, for relevance reduced by max, mean or softmax.

    Max: the unit vectors themselves; a weighted mean never exceeds it, so softmax has the same. Mean: one, the mean of
    the unit vectors, as q^[1] . v + ... + q^[M] . v = (q^[1] + ... + q^[M]) . v.
    """
    words, dim = query.shape
    wide = query.detach().cpu().double()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    unit = torch.where(norm > ZERO_NORM, wide / norm, 0.0)
    length = 1.0
    if reduce == "mean":
        unit = unit.mean(dim=0, keepdim=True)
        length = float(torch.linalg.vector_norm(unit))
        unit = unit / length if length > 0 else unit
    # A sum of n products of unit vectors is off by at most n units, in any order. Three such sums enter: each vector's
    # norm, in half, and the product, there and here; then the sum over words.
    return Directions(unit.float(), length, (4 * dim + words + 64) * _UNIT)


def upper_bounds(
    pooled: torch.Tensor, radius: npt.NDArray[np.float32], *, of: Directions
) -> npt.NDArray[np.float32]:
    """(T,) float32, at least the relevance of any token of each cell; `pooled` (T, D) bf16, `radius` (T,).

    A unit vector v with |v - p| <= radius lies within the angle a of p, cos a = (1 + |p|^2 - radius^2) / 2|p|; so
    q . v <= cos(max(0, angle of q and p - a)), which is less than q . p + radius. A zero token has relevance 0,
    hence no bound is below 0.
    """
    vectors = pooled.float()
    with full_float32():
        similarity = (vectors @ of.unit.T).amax(dim=1).double().numpy()
    length = torch.linalg.vector_norm(vectors, dim=1).double().numpy()
    safe = np.where(length > 0.5, length, 1.0)
    to_query = np.clip(similarity / safe + of.slack, -1, 1)
    to_edge = np.clip((1 + length**2 - radius.astype(np.float64) ** 2) / (2 * safe) - of.slack, -1, 1)
    apart = to_query * to_edge + np.sqrt(1 - to_query**2) * np.sqrt(1 - to_edge**2)
    # A pooled vector has length 1 to 2^-8, or is zero and has no angle. Slack makes an arc longer than the ball is wide
    # where the radius is close to 0.
    arc = np.where((to_query >= to_edge) | (length <= 0.5), 1.0, apart)
    ball = similarity + radius
    upper = np.maximum(np.minimum(arc, ball), 0.0) * of.length + of.slack
    return upper.astype(np.float32)


@dataclass(frozen=True)
class ShardCells:
    """The cells of one shard, in 16 bytes each: bounds, and which rows of the shard's tokens are theirs.

    `video` (V,): rows of `store.places()`, in the shard's order; `cell_row` (V,): their first cells. `bound` (C,)
    float32, -inf for cells that cannot win: nothing kept, or of a video that was not asked for. `first` (C,) int64,
    `kept` (C,) int32: token rows [first, first + kept).
    """

    shard_id: str
    video: npt.NDArray[np.int64]
    cell_row: npt.NDArray[np.int64]
    bound: npt.NDArray[np.float32]
    first: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int32]

    def place(self, cell: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(row of `store.places()`, t) of cells of this shard."""
        at = np.searchsorted(self.cell_row, cell, side="right") - 1
        return self.video[at], cell - self.cell_row[at]

    def within(self, begin: int, stop: int) -> npt.NDArray[np.int64]:
        """The cells that can win and have a token in rows [begin, stop), ascending."""
        # `first` never falls, and of cells with the same the last is the one that has tokens.
        low = max(0, int(np.searchsorted(self.first, begin, side="right")) - 1)
        high = int(np.searchsorted(self.first, stop, side="left"))
        part = slice(low, high)
        usable = (self.bound[part] > -np.inf) & (self.first[part] + self.kept[part] > begin)
        return np.flatnonzero(usable).astype(np.int64) + low


def shard_cells(
    store: TokenStore, *, of: Directions, video_ids: Collection[str] | None = None
) -> Iterator[ShardCells]:
    """The cells of each shard that has any of the videos; reads the cells table once, a row group at a time.

    `video_ids`: those to be searched, None for all. Raises StoreError where the store is damaged.
    """
    places = store.places().select(["video_id", "_shard_id", "_cell_row", "cells", "kept", "token_row"])
    columns = {name: places[name].to_numpy() for name in ("_cell_row", "cells", "kept", "token_row")}
    asked = (columns["cells"] > 0) & _asked(places["video_id"], video_ids)
    shard_of = np.asarray(places["_shard_id"].to_numpy(), dtype=object)
    by_shard: dict[str, list[int]] = {}
    for row in np.flatnonzero(columns["cells"] > 0).tolist():
        by_shard.setdefault(shard_of[row], []).append(row)
    for shard_id in store.receipts:
        rows = np.array(by_shard.get(shard_id, []), dtype=np.int64)
        if asked[rows].any():
            rows = rows[np.argsort(columns["_cell_row"][rows])]
            of_shard = {name: values[rows].astype(np.int64) for name, values in columns.items()}
            yield _one_shard(store, shard_id, rows, of_shard, asked[rows], of=of)


def _asked(video_id: pa.ChunkedArray, video_ids: Collection[str] | None) -> npt.NDArray[np.bool_]:
    if video_ids is None:
        return np.ones(len(video_id), dtype=bool)
    return np.array([value in video_ids for value in video_id.to_pylist()], dtype=bool)


def _one_shard(
    store: TokenStore,
    shard_id: str,
    video: npt.NDArray[np.int64],
    columns: dict[str, npt.NDArray[np.int64]],
    asked: npt.NDArray[np.bool_],
    *,
    of: Directions,
) -> ShardCells:
    cells = columns["cells"]
    begins = columns["_cell_row"]
    total = int(cells.sum())
    owner = np.repeat(np.arange(len(video)), cells)
    t = np.arange(total) - begins[owner]
    wanted = asked[owner]
    bound = np.full(total, -np.inf, dtype=np.float32)
    kept = np.zeros(total, dtype=np.int32)
    groups = store.tables.row_groups("cells", shard_id)
    fits = sum(group.rows for group in groups) == total
    useful = (
        [group for group in groups if wanted[group.first : group.first + group.rows].any()] if fits else []
    )
    for group, table in store.tables.read_groups(useful, _COLUMNS):
        part = slice(group.first, group.first + group.rows)
        fits &= bool((column_values(table["t"]) == t[part]).all())
        kept[part] = column_values(table["kept"])
        pooled = unpool(column_values(table["pooled"]))
        upper = upper_bounds(pooled, column_values(table["radius"]), of=of)
        bound[part] = np.where(wanted[part] & (kept[part] > 0), upper, -np.inf)
    before = np.cumsum(kept, dtype=np.int64) - kept
    stored = np.bincount(owner, weights=kept, minlength=len(video)).astype(np.int64)
    if not fits or bool((stored != columns["kept"])[asked].any()):
        raise StoreError(
            f"the cells of shard {shard_id} of {store.storage.url} are not those of its videos: the store is damaged, "
            f"remove receipts/{shard_id}-*.json and run index again"
        )
    first = before - before[begins[owner]] + columns["token_row"][owner]
    return ShardCells(shard_id, video, begins, bound, first, kept)
