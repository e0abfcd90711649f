"""What an index of an archive will come to, before anything is decoded: hours, tokens, bytes.

Sizes are known for every file; lengths are read from the headers of a sample, or of all files. Of the others the
length is inferred from the size, with a range of two standard errors. Times to expect are in jobs/plan.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from echoprune.errors import MediaError
from echoprune.index import sampling_of
from echoprune.models.encoder import FrameLayout
from echoprune.probe import HeaderInfo, probe_header
from echoprune.prune import Keep
from echoprune.schema import StoreSettings
from echoprune.sources import Source

# Bytes of a kept token beside its vectors (positions, scores), and of a cell's row beside its pooled vector.
_TOKEN_SCALARS_BYTES = 16
_CELL_SCALARS_BYTES = 40


@dataclass(frozen=True)
class Range:
    """An estimate and the range it lies in with about 95 % certainty; all three equal where it is exact."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> Range:
        """The same range in another unit."""
        return Range(self.low * factor, self.middle * factor, self.high * factor)


@dataclass(frozen=True)
class Estimate:
    """Totals of an archive. `probed` files had their headers read; `unreadable` of these cannot be, by class.

    `pixels`: source pixels to be decoded. `patch_rows`: tower rows to be encoded (patches before merging).
    """

    videos: int
    source_bytes: int
    unknown_size: int
    probed: int
    unreadable: Counter[str] = field(repr=False)
    video_s: Range
    cells: Range
    tokens: Range
    kept: Range
    store_bytes: Range
    pixels: Range


def estimate(
    sources: Sequence[Source], *, layout: FrameLayout, settings: StoreSettings, probe: int | None
) -> Estimate:
    """The Estimate for `sources`; `probe` says how many headers are read at most, None for all.

    The sample is spread evenly over the files sorted by size, so that it is the same in every run.
    """
    by_size = sorted(sources, key=lambda source: (source.size_bytes or 0, source.uri))
    count = len(by_size) if probe is None else min(probe, len(by_size))
    picks: npt.NDArray[np.int64] = np.unique(np.linspace(0, len(by_size) - 1, count).round().astype(np.int64))
    unreadable: Counter[str] = Counter()
    rows: list[tuple[float, ...]] = []
    for pick in picks:
        source = by_size[int(pick)]
        try:
            header = probe_header(source.uri)
            rows.append((source.size_bytes or 0, *_one(header, source, layout=layout, settings=settings)))
        except MediaError as error:
            unreadable[error.kind] += 1
            rows.append((source.size_bytes or 0, *([0.0] * 6)))
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
    total = float(sum(source.size_bytes or 0 for source in sources))
    totals = [
        _scaled(table[:, 0], table[:, column], total, exact=len(rows) == len(sources))
        for column in range(1, 7)
    ]
    return Estimate(
        videos=len(sources),
        source_bytes=int(total),
        unknown_size=sum(source.size_bytes is None for source in sources),
        probed=len(rows),
        unreadable=unreadable,
        video_s=totals[0],
        cells=totals[1],
        tokens=totals[2],
        kept=totals[3],
        store_bytes=totals[4],
        pixels=totals[5],
    )


def _one(
    header: HeaderInfo, source: Source, *, layout: FrameLayout, settings: StoreSettings
) -> tuple[float, float, float, float, float, float]:
    """(seconds, cells, tokens, kept, store bytes, source pixels) of one video by its header."""
    sampling = sampling_of(settings)
    duration_s = header.duration_s or 0.0
    source_frames = duration_s * (header.fps or 25.0)
    if sampling.frames is not None:
        frames = float(min(sampling.frames, max(1.0, source_frames)))
    else:
        frames = max(1.0, math.ceil(duration_s * sampling.fps))
        frames = min(frames, float(sampling.max_frames or frames))
    cells = math.ceil(frames / settings.cell_frames)
    grid_h, grid_w = layout.grid_hw(layout.frame_hw(header.height, header.width))
    per_cell = grid_h * grid_w
    budget = Keep.parse(settings.keep).budget(cells, per_cell)
    every_s = settings.anchor_every_s
    anchors = min(cells, math.ceil(duration_s / every_s) if every_s else 1) or 1
    free = (cells - anchors) * per_cell
    kept = anchors * per_cell + (free if budget is None else min(budget, free))
    vectors = settings.vector_bytes * (1 + settings.deepstack_layers)
    store_bytes = kept * (vectors + _TOKEN_SCALARS_BYTES) + cells * (2 * settings.dim + _CELL_SCALARS_BYTES)
    return (
        duration_s,
        cells,
        cells * per_cell,
        kept,
        store_bytes,
        source_frames * header.width * header.height,
    )


def _scaled(
    sizes: npt.NDArray[np.float64], values: npt.NDArray[np.float64], total: float, *, exact: bool
) -> Range:
    """The total of `values` over the archive, by the ratio of values to sizes in the sample."""
    sampled, summed = float(sizes.sum()), float(values.sum())
    if exact or sampled == 0:
        return Range(summed, summed, summed)
    ratio = summed / sampled
    count = len(sizes)
    # Standard error of a ratio estimate: residuals about the ratio, scaled up to the archive.
    spread = math.sqrt(float(((values - ratio * sizes) ** 2).sum()) / max(1, count - 1) / count)
    error = 2 * spread / (sampled / count) * total
    middle = ratio * total
    return Range(max(summed, middle - error), middle, middle + error)
