"""Index runs in this process: what a driver and its one worker do to a store, with no Ray between them.

For tests of what is in the store. A worker of Ray imports torch and transformers anew: seconds of a core, for the same
bytes (test_index.py, test_job_submit.py and tests/faults compare stores of real runs).
"""

from __future__ import annotations

import pickle
import uuid
from dataclasses import replace

import ray

from echoprune.index import sampling_of
from echoprune.lease import Lease, current_epoch
from echoprune.models import ModelSettings, model_settings
from echoprune.plan import extend_plan, load_plan, pending
from echoprune.receipt import committed, read_receipts, sweep
from echoprune.s3_options import use_s3
from echoprune.schema import StoreSettings
from echoprune.sources import list_sources
from echoprune.storage import Storage
from echoprune.store import create_store
from pipelines.chosen import index_dtype_of, tower_of
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from pipelines.decode_actor import VideoOpener
from pipelines.index import MIN_SHARDS, store_settings
from pipelines.index_worker import IndexJob, IndexWorker

ALONE = Crew(encoders=1, decoders=0, gpus_each=0, threads=1)


def settings_of(config: IndexConfig) -> tuple[ModelSettings, StoreSettings]:
    """Those of the model, and those of a store that `config` makes."""
    model = model_settings(config.model, max_pixels=config.max_pixels or None)
    settings = replace(
        store_settings(config, model),
        tower=tower_of(config, ALONE),
        compute_dtype=index_dtype_of(config, ALONE, own=model.dtype),
    )
    return model, settings


def worker(config: IndexConfig, *, run_id: str) -> IndexWorker:
    """A worker that decodes by itself, its model loaded, for the store of `config`, which is made if it is not there."""
    use_s3(config.s3)
    model, settings = settings_of(config)
    job = IndexJob(
        config=config,
        settings=settings,
        opener=VideoOpener(model.layout, sampling_of(settings), settings.segment_cells),
        crew=ALONE,
        store=create_store(config.store, settings).url,
        run_id=run_id,
        lease_epoch=current_epoch(Storage(config.store)),
    )
    connected = ray.is_initialized()
    # Pickled, as it comes to a worker of Ray.
    made = IndexWorker(pickle.loads(pickle.dumps(job)))
    made.load()
    # One that decodes by itself needs no Ray, and must not bring one up: the runs that follow would share it.
    assert ray.is_initialized() == connected
    return made


def index(config: IndexConfig) -> None:
    """Brings the store up to date with `config.paths`: the lease, the plan, each shard, the end of the lease."""
    use_s3(config.s3)
    storage = create_store(config.store, settings_of(config)[1])
    with Lease.acquire(storage, run_id=uuid.uuid4().hex) as lease:
        sweep(storage)
        extend_plan(
            storage,
            list_sources(config.paths, s3=config.s3_inputs),
            shard_bytes=config.shard_mb << 20,
            shard_videos=config.shard_videos,
            min_shards=MIN_SHARDS,
        )
        made = worker(config, run_id=lease.holder.run_id)
        for shard in pending(load_plan(storage), committed(read_receipts(storage))):
            for _ in made.run_shard(shard, {}):
                pass
