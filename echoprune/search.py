"""Moments of a store whose tokens are nearest to a query: exact, without reading the tokens of every cell.

Stage 1 bounds the relevance of each cell from its pooled vector (cell_bounds.py). Stage 2 reads tokens, one row group
after another in order of the best cell in it, until no cell that is left can win. Query vectors come from
embedding.py; searching text is in fulltext.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from echoprune.cell_bounds import ShardCells, directions, shard_cells
from echoprune.dtype import codec
from echoprune.errors import ConfigError, ModelError, StoreError
from echoprune.query import CHUNK_TOKENS, REDUCTIONS, relevance
from echoprune.store import TokenStore
from echoprune.store_files import RowGroup, column_values

# Tokens decoded at a time: an int8 row group is four times as large in float32.
_DECODE_ROWS = 4 * CHUNK_TOKENS


@dataclass(frozen=True)
class Moment:
    """A stretch [start_s, end_s) of a video, seconds from its first presented frame, and its best token.

    `score`: the token's relevance, -1 to 1; (`t`, `h`, `w`): its place in the video's grid.
    """

    video_id: str
    uri: str
    start_s: float
    end_s: float
    score: float
    t: int
    h: int
    w: int


@dataclass(frozen=True)
class SearchStats:
    """What a search looked at. `cells`: those with stored tokens, all bounded; `cells_opened`: of them, tokens read.

    `row_groups_opened` of the tokens table, about 8 MB each before compression (of older stores 48); `tokens_scored`. `unopened_bound`:
    no cell that was left unopened has a score above it; None if all were opened. `exact`: False where
    `max_row_groups` ended the search before it was certain.
    """

    cells: int
    cells_opened: int
    row_groups_opened: int
    tokens_scored: int
    unopened_bound: float | None
    exact: bool


@dataclass(frozen=True)
class TokenHits:
    """The moments found, best first, and what finding them took."""

    moments: tuple[Moment, ...]
    stats: SearchStats


def search_tokens(
    store: TokenStore,
    query: torch.Tensor,
    *,
    limit: int,
    reduce: str = "max",
    temperature: float = 0.1,
    videos: Iterable[str] | None = None,
    merge: bool = True,
    max_row_groups: int | None = None,
) -> TokenHits:
    """The `limit` cells with the highest score, as moments; the same as if every stored token had been scored.

    A cell's score is the highest `relevance` of its stored tokens to `query` (M, D), reduced as there. Equal scores:
    lower uri first, then lower t; within a cell the first token. Cells that keep nothing are never found.
    `videos`: ids, uris or file names to search in, default all. `merge`: neighbouring cells among the `limit` become
    one moment, so that there may be fewer. `max_row_groups`: give up exactness and stop after reading that many;
    `stats.exact` says whether it came to that. Memory: 16 bytes a cell and one row group.

    Raises ConfigError for a query without words, an unknown reduction or a limit below 1, ModelError for a query that
    is not finite, StoreError where a video is not there or the store is damaged.
    """
    if limit < 1 or (max_row_groups is not None and max_row_groups < 1):
        raise ConfigError(f"limit {limit} and max_row_groups {max_row_groups}: give numbers of at least 1")
    if reduce not in REDUCTIONS:
        raise ConfigError(f"reduction of relevance is {reduce!r}; give one of {', '.join(REDUCTIONS)}")
    if query.ndim != 2 or query.shape[1] != store.settings.dim:
        raise ValueError(f"query must be (M, {store.settings.dim}), got {tuple(query.shape)}")
    if len(query) == 0:
        raise ConfigError("the search query has no words: give at least one")
    if not bool(torch.isfinite(query).all()):
        raise ModelError("the query's vectors are not finite; check the checkpoint's word embeddings")
    query = query.detach().cpu()
    video_ids = None if videos is None else {store.resolve(video) for video in videos}
    shards = list(shard_cells(store, of=directions(query, reduce), video_ids=video_ids))
    found = _Found(limit)
    stats = _open_groups(
        store, shards, found, query, reduce=reduce, temperature=temperature, max_row_groups=max_row_groups
    )
    moments = _moments(store, shards, found)
    return TokenHits(tuple(_merged(moments) if merge else moments), stats)


@dataclass(frozen=True)
class _Hit:
    """A cell's best token so far; ordered as results are."""

    video: int
    t: int
    score: float
    h: int
    w: int

    @property
    def rank(self) -> tuple[float, int, int]:
        return (-self.score, self.video, self.t)


class _Found:
    """The best `limit` cells so far. A cell that lies in two row groups is offered once for each."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.threshold = -np.inf
        self._hits: dict[tuple[int, int], _Hit] = {}

    def offer(self, hits: Iterable[_Hit]) -> None:
        for hit in hits:
            known = self._hits.get((hit.video, hit.t))
            # Of equal tokens the first in the cell stays; groups of one cell may come in any order.
            if known is None or (-hit.score, hit.h, hit.w) < (-known.score, known.h, known.w):
                self._hits[hit.video, hit.t] = hit
        best = self.ranked()[: self.limit]
        self._hits = {(hit.video, hit.t): hit for hit in best}
        if len(best) == self.limit:
            self.threshold = best[-1].score

    def ranked(self) -> list[_Hit]:
        return sorted(self._hits.values(), key=lambda hit: hit.rank)


def _open_groups(
    store: TokenStore,
    shards: Sequence[ShardCells],
    found: _Found,
    query: torch.Tensor,
    *,
    reduce: str,
    temperature: float,
    max_row_groups: int | None,
) -> SearchStats:
    # Entries (-bound, shard, group), the highest bound first; group None is a shard whose footers are still unread.
    queue: list[tuple[float, int, int]] = []
    groups: dict[tuple[int, int], RowGroup] = {}
    for at, shard in enumerate(shards):
        best = float(shard.bound.max())
        if best > -np.inf:
            heapq.heappush(queue, (-best, at, -1))
    cells = sum(int((shard.bound > -np.inf).sum()) for shard in shards)
    opened_cells = opened_groups = scored = 0
    exact = True
    while queue and -queue[0][0] >= found.threshold:
        _, at, index = queue[0]
        shard = shards[at]
        if index < 0:
            heapq.heappop(queue)
            for number, group in enumerate(store.tables.row_groups("tokens", shard.shard_id)):
                inside = shard.within(group.first, group.first + group.rows)
                if len(inside):
                    groups[at, number] = group
                    heapq.heappush(queue, (-float(shard.bound[inside].max()), at, number))
            continue
        if max_row_groups is not None and opened_groups >= max_row_groups:
            exact = False
            break
        heapq.heappop(queue)
        group = groups.pop((at, index))
        inside = shard.within(group.first, group.first + group.rows)
        inside = inside[shard.bound[inside] >= found.threshold]
        hits, tokens = _score_group(
            store,
            shard,
            group,
            inside,
            query,
            threshold=found.threshold,
            reduce=reduce,
            temperature=temperature,
        )
        found.offer(hits)
        opened_groups += 1
        # A cell cut by the end of a row group is counted where it begins.
        opened_cells += int((shard.first[inside] >= group.first).sum())
        scored += tokens
    left = -queue[0][0] if queue else None
    return SearchStats(cells, opened_cells, opened_groups, scored, left, exact)


def _score_group(
    store: TokenStore,
    shard: ShardCells,
    group: RowGroup,
    cells: npt.NDArray[np.int64],
    query: torch.Tensor,
    *,
    threshold: float,
    reduce: str,
    temperature: float,
) -> tuple[list[_Hit], int]:
    """The best tokens within a row group, of those of `cells` that reach `threshold`; and how many were scored.

    At least one cell, each with a token in the row group.
    """
    encoding = codec(store.settings.dtype)
    names = ["t", "h", "w", *(["scale"] if encoding.scaled else []), "emb"]
    ((_, table),) = store.tables.read_groups([group], names)
    begin = np.maximum(shard.first[cells], group.first) - group.first
    stop = np.minimum(shard.first[cells] + shard.kept[cells], group.first + group.rows) - group.first
    counts = stop - begin
    starts = np.cumsum(counts) - counts
    rows = np.repeat(begin - starts, counts) + np.arange(int(counts.sum()))
    videos, t = shard.place(cells)
    if not np.array_equal(column_values(table["t"])[rows], np.repeat(t, counts)):
        raise StoreError(
            f"tokens in {store.storage.url_of(group.name)} are not where their cells say: the store is damaged, "
            f"remove receipts/{shard.shard_id}-*.json and run index again"
        )
    vectors = column_values(table["emb"])
    scale = column_values(table["scale"]) if encoding.scaled else None
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _DECODE_ROWS):
        part = rows[start : start + _DECODE_ROWS]
        tokens = encoding.decode(vectors[part], None if scale is None else scale[part])
        result = relevance(tokens, query, reduce=reduce, temperature=temperature)
        scores[start : start + len(part)] = result.numpy()
    h, w = column_values(table["h"]), column_values(table["w"])
    hits = []
    # Most cells lose: only those that may win are worth a Python object.
    for cell in np.flatnonzero(np.maximum.reduceat(scores, starts) >= threshold).tolist():
        row = int(starts[cell]) + int(scores[starts[cell] : starts[cell] + counts[cell]].argmax())
        hits.append(
            _Hit(int(videos[cell]), int(t[cell]), float(scores[row]), int(h[rows[row]]), int(w[rows[row]]))
        )
    return hits, len(rows)


def _moments(store: TokenStore, shards: Sequence[ShardCells], found: _Found) -> list[Moment]:
    """The cells found as moments, best first; reads their times."""
    hits = found.ranked()
    times: dict[tuple[int, int], tuple[float, float]] = {}
    for shard in shards:
        begins = dict(zip(shard.video.tolist(), shard.cell_row.tolist(), strict=True))
        rows = {begins[hit.video] + hit.t: (hit.video, hit.t) for hit in hits if hit.video in begins}
        for row, start_s, end_s in _times(store, shard.shard_id, sorted(rows)):
            times[rows[row]] = (start_s, end_s)
    table = store.places().select(["video_id", "uri"]).take(pa.array([hit.video for hit in hits], pa.int64()))
    names = zip(table["video_id"].to_pylist(), table["uri"].to_pylist(), strict=True)
    return [
        Moment(video_id, uri, *times[hit.video, hit.t], hit.score, hit.t, hit.h, hit.w)
        for hit, (video_id, uri) in zip(hits, names, strict=True)
    ]


def _times(store: TokenStore, shard_id: str, rows: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    if not rows:
        return
    wanted = np.array(rows)
    groups = store.tables.row_groups("cells", shard_id)
    inside = [g for g in groups if ((wanted >= g.first) & (wanted < g.first + g.rows)).any()]
    for group, table in store.tables.read_groups(inside, ["time_s", "end_s"]):
        start_s, end_s = column_values(table["time_s"]), column_values(table["end_s"])
        for row in wanted[(wanted >= group.first) & (wanted < group.first + group.rows)].tolist():
            yield row, float(start_s[row - group.first]), float(end_s[row - group.first])


def _merged(moments: Sequence[Moment]) -> list[Moment]:
    """Moments of neighbouring cells as one, with the best one's token; best first, ties as they came."""
    order = sorted(range(len(moments)), key=lambda at: (moments[at].uri, moments[at].t))
    runs: list[list[int]] = []
    for at in order:
        last = moments[runs[-1][-1]] if runs else None
        here = moments[at]
        if last is not None and (last.video_id, last.t + 1) == (here.video_id, here.t):
            runs[-1].append(at)
        else:
            runs.append([at])
    merged = []
    for run in sorted(runs, key=min):
        best = moments[min(run)]
        merged.append(replace(best, start_s=moments[run[0]].start_s, end_s=moments[run[-1]].end_s))
    return merged
