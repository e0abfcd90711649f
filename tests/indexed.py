"""Small stores made by the real index from made-up frames and a tiny model: no video file, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echoprune.data import Frames, TimeGrid
from echoprune.index import drain, index_segments
from echoprune.models import fingerprint, load_encoder, model_settings
from echoprune.models.encoder import Encoder
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import video_id
from echoprune.store import TokenStore, create_store, open_store
from tests import stores


@dataclass(frozen=True)
class Footage:
    """A made-up video at 2 frames a second: a still picture, with noise in a corner during `event` cells."""

    uri: str
    cells: int
    seed: int = 0
    event: tuple[int, int] = (0, 0)

    def frames(self, hw: tuple[int, int], cell_frames: int) -> np.ndarray:
        random = np.random.default_rng(self.seed)
        still = random.integers(0, 256, (*hw, 3), dtype=np.uint8)
        pixels = np.repeat(still[None], self.cells * cell_frames, axis=0)
        for index in range(self.event[0] * cell_frames, self.event[1] * cell_frames):
            corner = pixels[index, : hw[0] // 2, : hw[1] // 2]
            corner[:] = random.integers(0, 256, corner.shape, dtype=np.uint8)
        return pixels


def settings_of(model: Path, **changes: Any) -> StoreSettings:
    """The settings of a store made with `model`, lossless in float32 unless `changes` say otherwise."""
    found = model_settings(str(model))
    values: dict[str, Any] = {
        "family": found.family,
        "model_fingerprint": fingerprint(str(model)),
        "dim": found.dim,
        "deepstack_layers": found.deepstack_layers,
        "compute_dtype": "fp32",
        "fps": "2",
        "max_frames": None,
        "frames": None,
        "max_pixels": None,
        "decoder": "auto",
        "cell_frames": found.layout.cell_frames,
        "segment_cells": 4,
        "keep": "all",
        "anchor_every_s": 0.0,
        "temperature": found.default_temperature,
        "window": found.default_window,
        "dtype": "fp32",
    }
    return StoreSettings(**(values | changes))


def index(
    folder: Path,
    model: Path,
    footage: Sequence[Footage],
    *,
    failed: Sequence[str] = (),
    shard_id: str = "a1",
    **changes: Any,
) -> TokenStore:
    """The store in `folder` with one shard, `shard_id`, of `footage`, indexed by the encoder of `model`."""
    made_with = settings_of(model, **changes)
    encoder = load_encoder(
        str(model), segment_cells=made_with.segment_cells, device="cpu", compute_dtype="fp32"
    )
    storage = create_store(folder, made_with)
    with storage.tmp_dir() as place:
        writer = ShardWriter(place, made_with, shard_id)
        for each in footage:
            _add(writer, each, encoder, made_with, place)
        for uri in failed:
            stores.add_failed(writer, uri)
        files = writer.close()
        commit(storage, files, stores.receipt(writer, files, shard_id), check_epoch=lambda: None)
    return open_store(folder)


def _add(
    writer: ShardWriter, footage: Footage, encoder: Encoder, made_with: StoreSettings, place: Path
) -> None:
    layout = encoder.layout
    hw = layout.frame_hw(120, 200)
    each = layout.cell_frames
    pixels = footage.frames(hw, each)
    grid = TimeGrid(
        times_s=np.arange(len(pixels)) / 2,
        frame_pts=np.arange(len(pixels), dtype=np.int64) * 500,
        frame_hw=hw,
        grid_hw=layout.grid_hw(hw),
        cell_frames=each,
        segment_cells=made_with.segment_cells,
        end_s=len(pixels) / 2,
    )
    step = made_with.segment_cells * each
    segments = (
        Frames(pixels[begin : begin + step], first_cell=begin // each, cell_frames=each, decoder="pyav")
        for begin in range(0, len(pixels), step)
    )
    progress = index_segments(
        segments, grid=grid, time_base_s=0.001, encoder=encoder, settings=made_with, spill_dir=place
    )
    with drain(progress) as indexed:
        columns = ("time_s", "end_s", "pts_s", "anchor", "mean_novelty", "pooled", "radius")
        writer.add_video(
            {
                "video_id": video_id(footage.uri),
                "uri": footage.uri,
                "status": "ok",
                "cells": indexed.cells,
                "grid_h": grid.grid_hw[0],
                "grid_w": grid.grid_hw[1],
                "duration_s": grid.end_s,
                "covered_s": indexed.covered_s,
                "highest_dropped_novelty": indexed.selection.highest_dropped,
            },
            {name: getattr(indexed.columns, name) for name in columns},
            indexed.selection.chunks(100),
        )
