"""Small stores for tests, built with the real writer from random tokens: no video, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echoprune.dtype import codec, encode_rows
from echoprune.errors import StoreError
from echoprune.plan import Source, extend_plan
from echoprune.pool import pool_cells
from echoprune.receipt import Receipt, read_receipts
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import video_id
from echoprune.spill import SpilledColumn
from echoprune.storage import Storage
from echoprune.store import create_store


def settings(**changes: Any) -> StoreSettings:
    values: dict[str, Any] = {
        "family": "qwen2_5_vl",
        "model_fingerprint": "ab" * 32,
        "dim": 24,
        "compute_dtype": "fp32",
        "fps": "2",
        "max_frames": None,
        "frames": None,
        "max_pixels": 200704,
        "decoder": "auto",
        "cell_frames": 2,
        "segment_cells": 8,
        "keep": "0.25",
        "anchor_every_s": 30.0,
        "temperature": 0.5,
        "window": None,
        "dtype": "fp32",
    }
    return StoreSettings(**(values | changes))


@dataclass(frozen=True)
class Clip:
    """One made-up video: its grid, all its tokens, and which of them are kept."""

    uri: str
    grid_thw: tuple[int, int, int]
    tokens: torch.Tensor
    deepstack: torch.Tensor | None
    correspondence: torch.Tensor
    echo: torch.Tensor
    kept: np.ndarray

    @property
    def video_id(self) -> str:
        return video_id(self.uri)

    @property
    def time_s(self) -> np.ndarray:
        return np.arange(self.grid_thw[0], dtype=np.float64)

    @property
    def anchor(self) -> np.ndarray:
        return np.arange(self.grid_thw[0]) % 3 == 0


def clip(
    uri: str,
    made_with: StoreSettings,
    *,
    cells: int = 4,
    grid_hw: tuple[int, int] = (3, 5),
    keep: float = 0.5,
    seed: int = 0,
) -> Clip:
    random = torch.Generator().manual_seed(seed)
    count = cells * grid_hw[0] * grid_hw[1]
    layers = made_with.deepstack_layers
    kept = torch.rand(count, generator=random) < keep
    return Clip(
        uri=uri,
        grid_thw=(cells, *grid_hw),
        tokens=codec(made_with.dtype).rounded(torch.randn(count, made_with.dim, generator=random)),
        deepstack=torch.randn(layers, count, made_with.dim, generator=random) if layers else None,
        correspondence=torch.rand(count, generator=random),
        echo=torch.rand(count, generator=random),
        kept=np.flatnonzero(kept.numpy()),
    )


def add_clip(
    writer: ShardWriter,
    made_with: StoreSettings,
    made: Clip,
    *,
    chunk: int = 7,
    spilled: SpilledColumn | None = None,
) -> None:
    cells, height, width = made.grid_thw
    encoding = codec(made_with.dtype)
    read = encoding.read_back(made.tokens)
    pooled, radius = pool_cells(read.reshape(cells, height * width, -1))
    if spilled is not None:
        spilled.append(pooled)
    rows = encode_rows(
        made.tokens[made.kept],
        made_with,
        correspondence=made.correspondence[made.kept],
        echo=made.echo[made.kept],
        deepstack=None if made.deepstack is None else made.deepstack[:, made.kept],
    )
    writer.add_video(
        {
            "video_id": made.video_id,
            "uri": made.uri,
            "size_bytes": 1000,
            "status": "ok",
            "cells": cells,
            "grid_h": height,
            "grid_w": width,
            "duration_s": float(cells),
            "highest_dropped_novelty": -0.5,
        },
        {
            "time_s": made.time_s,
            "end_s": made.time_s + 1,
            "pts_s": made.time_s + 0.1,
            "anchor": made.anchor,
            "mean_novelty": np.zeros(cells, np.float32),
            "pooled": pooled if spilled is None else spilled,
            "radius": radius,
        },
        ((made.kept[i : i + chunk], rows[i : i + chunk]) for i in range(0, len(rows), chunk)),
    )


def add_failed(writer: ShardWriter, uri: str, *, host: str = "here") -> None:
    error = {"uri": uri, "video_id": video_id(uri)}
    writer.add_video(
        error
        | {"status": "failed", "error_stage": "probe", "error_class": "missing", "error": "no such file"}
    )
    writer.add_failure(
        error
        | {
            "stage": "probe",
            "class": "missing",
            "message": "no such file",
            "attempt": 1,
            "host": host,
            "time": datetime(2026, 5, 11, tzinfo=UTC),
        }
    )


def receipt(writer: ShardWriter, files: Sequence[Any], shard_id: str, *, generation: int = 0) -> Receipt:
    return Receipt(
        shard_id=shard_id,
        generation=generation,
        files=tuple(file.entry for file in files),
        ok=writer.outcomes["ok"],
        partial=writer.outcomes["partial"],
        failed=writer.outcomes["failed"],
        lease_epoch=1,
        run_id="run",
        host="here",
        started_at="2026-05-11T00:00:00+00:00",
        finished_at="2026-05-11T00:00:01+00:00",
        versions={"echoprune": "0"},
        config={"keep": "0.25"},
    )


def write_shard(
    storage: Storage,
    made_with: StoreSettings,
    clips: Sequence[Clip],
    *,
    shard_id: str = "a1",
    failed: Sequence[str] = (),
    generation: int = 0,
    **limits: int,
) -> Receipt:
    with storage.tmp_dir() as folder:
        writer = ShardWriter(folder, made_with, shard_id, generation=generation, **limits)
        for made in clips:
            add_clip(writer, made_with, made)
        for uri in failed:
            add_failed(writer, uri)
        files = writer.close()
        written = receipt(writer, files, shard_id, generation=generation)
        commit(storage, files, written, check_epoch=lambda: None)
    return written


def small_store(root: Path, made_with: StoreSettings) -> tuple[Storage, list[Clip]]:
    """A store of two shards: four clips, and one file that failed."""
    storage = create_store(root, made_with)
    clips = [clip(f"/archive/ä clip {i}.mp4", made_with, cells=3 + i, seed=i) for i in range(4)]
    write_shard(storage, made_with, clips[:2], shard_id="a1", failed=["/archive/bad.mp4"])
    write_shard(storage, made_with, clips[2:], shard_id="b2")
    return storage, clips


def planned_store(
    root: Path, made_with: StoreSettings, *, failed: Sequence[str] = (), count: int = 6, shard_videos: int = 3
) -> tuple[Storage, dict[str, Clip]]:
    """A store of `count` clips and the `failed` files, all of them in its plan; the clips by uri."""
    storage = create_store(root, made_with)
    clips = {
        f"/archive/{i}.mp4": clip(f"/archive/{i}.mp4", made_with, cells=3 + i, seed=i) for i in range(count)
    }
    sources = [Source(uri, 1000) for uri in [*clips, *failed]]
    for shard in extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=shard_videos):
        uris = [source.uri for source in shard.sources]
        good = [clips[uri] for uri in uris if uri in clips]
        bad = [uri for uri in uris if uri not in clips]
        write_shard(storage, made_with, good, shard_id=shard.shard_id, failed=bad)
    return storage, clips


def file_of(root: Storage | Path, table: str, shard_id: str = "a1") -> str:
    """The name of the first file that a committed shard has of a table."""
    storage = root if isinstance(root, Storage) else Storage(root)
    return read_receipts(storage)[shard_id].files_of(table)[0].name


@contextmanager
def breaking(at: int) -> Iterator[list[str]]:
    """Within the block the `at`-th write, put or removal of a store's files raises StoreError instead; the list names those done.

    Leases are left alone, so that the block can end as a process does that its disk has failed.
    """
    done: list[str] = []
    real = {
        name: getattr(Storage, name) for name in ("put_file", "write_bytes", "create_exclusive", "remove")
    }

    def broken(name: str) -> Any:
        def call(storage: Storage, *given: Any, **more: Any) -> Any:
            target = str(given[1] if name == "put_file" else given[0])
            if not target.startswith(("lease/", "runs/", "run_report")):
                done.append(f"{name} {target}")
                if len(done) == at + 1:
                    raise StoreError(f"the disk failed at {done[-1]}")
            return real[name](storage, *given, **more)

        return call

    for name in real:
        setattr(Storage, name, broken(name))
    try:
        yield done
    finally:
        for name, method in real.items():
            setattr(Storage, name, method)
