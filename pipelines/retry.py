"""A retry run from end to end: failed videos of a store again, each shard of theirs under a new generation of its receipt."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from echoprune.errors import ConfigError, UnknownModelError
from echoprune.lease import Lease
from echoprune.models import model_settings
from echoprune.receipt import Receipt
from echoprune.rewrite import shards_to_redo
from echoprune.s3_options import use_s3
from echoprune.schema import StoreSettings
from echoprune.store import open_store
from pipelines.config import S3_OPTIONS, IndexConfig
from pipelines.drive import OnProgress
from pipelines.index import store_settings
from pipelines.maintain import finish_earlier, new_run_id
from pipelines.retry_config import RetryConfig
from pipelines.shard_run import ShardRun


def run_retry(config: RetryConfig, *, on_progress: OnProgress) -> dict[str, Any]:
    """Indexes failed videos of the store again; returns the report of the run, as of an index run.

    Everything that decides tokens comes from store.json; sources are those that were planned. Raises ConfigError or
    StoreMismatchError before anything ran, StoreError or ModelError when the run broke. What was committed stands.
    """
    use_s3(config.s3)
    store = open_store(config.store)
    settings, storage = store.settings, store.storage
    as_index = index_config(config, settings, model=config.model or _recorded_model(store.receipts.values()))
    try:
        model = model_settings(as_index.model, max_pixels=as_index.max_pixels or None)
    except UnknownModelError as error:
        if config.model:
            raise
        raise ConfigError(
            f"the store was made with --model {as_index.model}, which cannot be used here ({error}): give --model"
        ) from error
    settings.require_same(store_settings(as_index, model))
    with ExitStack() as ray_session, Lease.acquire(storage, run_id=new_run_id(), option="STORE") as lease:
        receipts = finish_earlier(storage, settings, lease).receipts
        shards = shards_to_redo(storage, settings, receipts, classes=config.classes, partial=config.partial)
        run = ShardRun(as_index, settings, model.layout, storage, lease, "retry")
        return run.carry_out(shards, receipts, ray_session, on_progress=on_progress)


def index_config(config: RetryConfig, settings: StoreSettings, *, model: str) -> IndexConfig:
    """The configuration of an index run with the settings of a store, on what `config` says to run on."""
    return IndexConfig(
        store=config.store,
        model=model,
        fps=settings.fps or "2",
        max_frames=settings.max_frames,
        frames=settings.frames,
        max_pixels=settings.max_pixels or 0,
        decoder=settings.decoder,
        keep=settings.keep,
        anchor_every=settings.anchor_every_s,
        dtype=settings.dtype,
        temperature=settings.temperature,
        window="full" if settings.window is None else str(settings.window),
        compute_dtype=settings.compute_dtype,
        tower=settings.tower,
        compression=settings.compression,
        rank_by=settings.rank_by,
        segment_cells=settings.segment_cells,
        **{name: getattr(config, name) for name in RUN_OPTIONS},
    )


RUN_OPTIONS = (
    "device",
    "encoders",
    "decoders_per_gpu",
    "grow_to",
    "in_flight_mb",
    "decode_timeout",
    "max_failed",
    "address",
    *S3_OPTIONS,
)


def _recorded_model(receipts: Iterable[Receipt]) -> str:
    """The --model that the newest shard was made with."""
    newest = max(receipts, key=lambda receipt: receipt.finished_at, default=None)
    model = str(newest.config.get("model", "")) if newest else ""
    if not model:
        raise ConfigError("no receipt of the store names the model that it was made with: give --model")
    return model
