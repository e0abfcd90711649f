"""An index run from end to end: settings, lease, plan, workers, report. The driver sees ids, never tensors.

list -> plan (frozen) -> lease -> workers take shards -> receipts -> run_report.json
"""

from __future__ import annotations

import json
import logging
import socket
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from echoprune.errors import ConfigError
from echoprune.index import sampling_of
from echoprune.lease import Lease
from echoprune.models import ModelSettings, fingerprint, model_settings
from echoprune.plan import Plan, Shard, extend_plan, load_plan, pending
from echoprune.prune import Keep
from echoprune.receipt import read_receipts, sweep
from echoprune.sample import Sampling, parse_fps
from echoprune.schema import SETTINGS_FILE, StoreSettings
from echoprune.sources import list_sources
from echoprune.storage import Storage
from echoprune.store import create_store
from pipelines.config import IndexConfig
from pipelines.decode_actor import VideoOpener
from pipelines.events import Event
from pipelines.index_worker import IndexJob, IndexWorker
from pipelines.ray_session import Crew, crew, session, start_worker
from pipelines.schedule import Scheduler
from pipelines.tally import Tally
from pipelines.versions import versions

log = logging.getLogger(__name__)

# Small archives are cut so finely too: enough for 8 GPUs to end within a few hundredths of each other. A constant, since
# the plan must not depend on the machine.
MIN_SHARDS = 32
REPORT_FILE = "run_report.json"


def run_index(config: IndexConfig, *, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Brings the store up to date with its plan and `config.paths`; returns the report, also in run_report.json.

    Raises ConfigError before anything ran, StoreError or ModelError when the run broke. What was committed stands.
    """
    if not config.paths:
        raise ConfigError("no PATHS: give video files, globs, folders or a manifest")
    sources = list_sources(config.paths)
    model = model_settings(config.model, max_pixels=config.max_pixels or None)
    settings = store_settings(config, model)
    run_id = datetime.now(UTC).strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]
    with ExitStack() as ray_session:
        # Before a new store is made: wrong options of the cluster must not leave an empty store behind.
        fresh = not Storage(config.store).exists(SETTINGS_FILE)
        people = _connect(config, ray_session) if fresh else None
        storage = create_store(config.store, settings)
        with Lease.acquire(storage, run_id=run_id) as lease:
            sweep(storage)
            extend_plan(
                storage,
                sources,
                shard_bytes=config.shard_mb << 20,
                shard_videos=config.shard_videos,
                min_shards=MIN_SHARDS,
            )
            plan, receipts = load_plan(storage), read_receipts(storage)
            shards = pending(plan, receipts)
            todo = sum(len(shard.sources) for shard in shards)
            tally = Tally(
                videos=todo,
                source_bytes=sum(shard.size_bytes for shard in shards),
                done_before=len(plan) - todo,
            )
            started_at = datetime.now(UTC)
            quarantined: set[str] = set()
            try:
                if shards:
                    # Ray ends before the lease is given up: no worker may write after that.
                    with ray_session:
                        job = IndexJob(
                            config=config,
                            settings=settings,
                            opener=VideoOpener(model.layout, sampling_of(settings), settings.segment_cells),
                            crew=people or _connect(config, ray_session),
                            store=storage.url,
                            run_id=run_id,
                            lease_epoch=lease.epoch,
                        )
                        quarantined = _run_shards(job, shards, tally, on_progress=on_progress)
            finally:
                report = {
                    "run_id": run_id,
                    "host": socket.gethostname(),
                    "started_at": started_at.isoformat(),
                    "finished_at": datetime.now(UTC).isoformat(),
                    "versions": versions(),
                    "config": config.as_dict(),
                    "run": tally.report() | {"failures": tally.failures},
                    "quarantined": sorted(quarantined),
                    "store": _standing(plan, storage),
                }
                text = json.dumps(report, indent=2) + "\n"
                storage.write_bytes(f"runs/{run_id}.json", text.encode())
                storage.write_bytes(REPORT_FILE, text.encode())
    return report


def store_settings(config: IndexConfig, model: ModelSettings) -> StoreSettings:
    """All that decides the store's bytes, with the model family's defaults filled in."""
    compute_dtype = model.dtype if config.compute_dtype == "auto" else config.compute_dtype
    chosen = sampling(config)
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
        keep=str(Keep.parse(config.keep)),
        anchor_every_s=config.anchor_every,
        temperature=model.default_temperature if config.temperature is None else config.temperature,
        window=config.window_side(family=model.default_window),
        dtype=compute_dtype if config.dtype == "auto" else config.dtype,
    )


def sampling(config: IndexConfig) -> Sampling:
    """The sampling that the options mean; ConfigError where --fps is no number."""
    fps = parse_fps(config.fps)
    if config.frames is not None:
        return Sampling(frames=config.frames)
    return Sampling(fps=fps, max_frames=config.max_frames)


def _connect(config: IndexConfig, until: ExitStack) -> Crew:
    """The actors that there is room for on Ray, which is connected until the end of `until`."""
    # Twice what may be in flight, and room for Ray itself.
    until.enter_context(
        session(config.address, object_store_bytes=2 * (config.in_flight_mb << 20) + (128 << 20))
    )
    return crew(encoders=config.encoders, decoders=config.decoders_per_encoder, device=config.device)


def _run_shards(
    job: IndexJob, shards: list[Shard], tally: Tally, *, on_progress: Callable[[dict[str, Any]], None]
) -> set[str]:
    """Runs the shards on the connected Ray; returns the ids of videos that were quarantined."""
    people = job.crew
    log.info("%d encoders with %d decode actors each", people.encoders, people.decoders)

    def on_event(shard_id: str, event: Event) -> None:
        tally.add(shard_id, event)
        on_progress(tally.snapshot())

    on_progress(tally.snapshot())
    scheduler = Scheduler(
        make_worker=lambda: start_worker(IndexWorker, job, people),
        workers=people.encoders,
        on_event=on_event,
    )
    scheduler.run(shards)
    return scheduler.quarantined


def _standing(plan: Plan, storage: Storage) -> dict[str, int]:
    """How the whole store stands after the run, by receipts."""
    receipts = read_receipts(storage).values()
    done = {status: sum(getattr(each, status) for each in receipts) for status in ("ok", "partial", "failed")}
    return done | {"missing": len(plan) - sum(done.values())}
