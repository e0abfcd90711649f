"""An index run from end to end: sources, settings, lease, plan, and the shards that are not committed yet.

list -> plan (frozen) -> lease -> shards (shard_run.py) -> receipts -> run_report.json
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from echoprune.errors import ConfigError
from echoprune.lease import Lease
from echoprune.models import ModelSettings, fingerprint, model_settings
from echoprune.plan import extend_plan, load_plan, pending
from echoprune.prune import Keep
from echoprune.receipt import committed
from echoprune.s3_options import use_s3
from echoprune.sample import Sampling, parse_fps
from echoprune.schema import NOVELTY, PLAIN_TOWER, StoreSettings
from echoprune.sources import list_sources
from echoprune.store import create_store, is_new
from pipelines.chosen import index_dtype_of, tower_of
from pipelines.config import IndexConfig
from pipelines.drive import OnProgress
from pipelines.maintain import finish_earlier, new_run_id
from pipelines.shard_run import ShardRun, connect

# Small archives are cut so finely too: enough for 8 GPUs to end within a few hundredths of each other. A constant, since
# the plan must not depend on the machine.
MIN_SHARDS = 32


def run_index(config: IndexConfig, *, on_progress: OnProgress) -> dict[str, Any]:
    """Brings the store up to date with its plan and `config.paths`; returns the report, also in run_report.json.

    Raises ConfigError before anything ran, StoreError or ModelError when the run broke. What was committed stands.
    """
    if not config.paths:
        raise ConfigError("no PATHS: give video files, globs, folders or a manifest")
    use_s3(config.s3)
    sources = list_sources(config.paths, s3=config.s3_inputs)
    model = model_settings(config.model, max_pixels=config.max_pixels or None)
    settings = store_settings(config, model)
    run_id = new_run_id()
    with ExitStack() as ray_session:
        # Before a new store is made: wrong options of the cluster must not leave an empty store behind.
        people = connect(config, ray_session) if is_new(config.store) else None
        settings = replace(
            settings,
            tower=tower_of(config, people),
            compute_dtype=index_dtype_of(config, people, own=model.dtype),
        )
        storage = create_store(config.store, settings)
        with Lease.acquire(storage, run_id=run_id) as lease:
            receipts = finish_earlier(storage, settings, lease).receipts
            extend_plan(
                storage,
                sources,
                shard_bytes=config.shard_mb << 20,
                shard_videos=config.shard_videos,
                min_shards=MIN_SHARDS,
                bring_back=config.bring_back,
            )
            shards = pending(load_plan(storage), committed(receipts))
            run = ShardRun(config, settings, model.layout, storage, lease, "index")
            return run.carry_out(shards, receipts, ray_session, people=people, on_progress=on_progress)


def store_settings(config: IndexConfig, model: ModelSettings) -> StoreSettings:
    """All that decides the store's bytes, with the model family's defaults filled in.

    A tower yet to be chosen is the plain one, and what the encoder is yet to compute in is the checkpoint's own.
    """
    compute_dtype = model.dtype if config.compute_dtype == "auto" else config.compute_dtype
    chosen = sampling(config)
    keep = Keep.parse(config.keep)
    return StoreSettings(
        family=model.family,
        model_fingerprint=fingerprint(config.model),
        dim=model.dim,
        deepstack_layers=model.deepstack_layers,
        compute_dtype=compute_dtype,
        fps=None if chosen.frames else str(chosen.fps),
        max_frames=chosen.max_frames,
        frames=chosen.frames,
        max_pixels=config.max_pixels or None,
        decoder=config.decoder,
        cell_frames=model.layout.cell_frames,
        segment_cells=config.segment_cells,
        keep=str(keep),
        anchor_every_s=config.anchor_every,
        temperature=model.default_temperature if config.temperature is None else config.temperature,
        window=config.window_side(family=model.default_window),
        dtype=compute_dtype if config.dtype == "auto" else config.dtype,
        tower=PLAIN_TOWER if config.tower == "auto" else config.tower,
        compression=config.compression,
        # Where nothing is dropped it has no effect, and the store is that of before there was a choice.
        rank_by=NOVELTY if keep == Keep() else config.rank_by,
    )


def sampling(config: IndexConfig) -> Sampling:
    """The sampling that the options mean; ConfigError where --fps is no number."""
    fps = parse_fps(config.fps)
    if config.frames is not None:
        return Sampling(frames=config.frames)
    return Sampling(fps=fps, max_frames=config.max_frames)
