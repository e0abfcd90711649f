"""Shards to receipts on Ray, under a lease, with a report: what index and retry runs share. The driver sees ids, never tensors."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from echoprune.index import sampling_of
from echoprune.lease import Lease
from echoprune.models.encoder import FrameLayout
from echoprune.plan import Shard, load_plan
from echoprune.receipt import Receipt, read_receipts
from echoprune.schema import StoreSettings
from echoprune.storage import Storage
from pipelines.at_work import SHARDS_AT_MOST
from pipelines.config import IndexConfig, decoders_of
from pipelines.crew import Crew, crew, nodes_alive, start_worker
from pipelines.decode_actor import VideoOpener
from pipelines.drive import OnProgress, drive
from pipelines.index_worker import IndexJob, IndexWorker
from pipelines.ray_session import joins, session
from pipelines.run_end import reported, sweep_leftovers
from pipelines.schedule import Scheduler
from pipelines.tally import Tally
from pipelines.versions import versions

log = logging.getLogger(__name__)


def connect(config: IndexConfig, until: ExitStack) -> Crew:
    """The actors that there is room for on Ray, which is connected until the end of `until`."""
    # For each encoder of a private Ray twice what may be in flight, and room for Ray itself.
    here = torch.cuda.device_count() if config.device != "cpu" else 0
    # Each takes a core: more than those are refused when Ray has said how many it has.
    encoders = min(config.encoders or max(1, here), os.cpu_count() or 1)
    until.enter_context(
        session(config.address, object_store_bytes=2 * encoders * (config.in_flight_mb << 20) + (128 << 20))
    )
    return crew(
        nodes_alive(),
        encoders=config.encoders,
        decoders=decoders_of(config.decoders_per_gpu),
        device=config.device,
        grow_to=config.grow_to,
        may_join=joins(config.address),
    )


def works_beside(people: Crew) -> bool:
    """Whether encoders leave what follows to threads, and have their next shard decoded meanwhile.

    On a GPU. A CPU is the encoder itself: it would take memory and save nothing.
    """
    return bool(people.gpus_each)


@dataclass(frozen=True)
class ShardRun:
    """A run over shards of one store, whose lease is held. `job`: the command's name, for the report."""

    config: IndexConfig
    settings: StoreSettings
    layout: FrameLayout
    storage: Storage
    lease: Lease
    job: str

    def carry_out(
        self,
        shards: list[Shard],
        receipts: Mapping[str, Receipt],
        ray_session: ExitStack,
        *,
        people: Crew | None = None,
        on_progress: OnProgress,
    ) -> dict[str, Any]:
        """Runs the shards; returns the report, which is also written to the store, whatever ends the run.

        `receipts`: those that counted when it was found out which shards there are to run. `people`: of the Ray that `ray_session` is connected to already; None: it is connected here, if there is a shard.
        """
        todo = [source for shard in shards for source in shard.todo]
        planned = len(load_plan(self.storage))
        stored = sum(receipt.videos for receipt in receipts.values())
        tally = Tally(
            videos=len(todo),
            source_bytes=sum(source.size_bytes or 0 for source in todo),
            done_before=stored - sum(len(shard.redo) for shard in shards),
        )
        started_at = datetime.now(UTC)
        quarantined: set[str] = set()

        def work() -> None:
            if shards:
                # Ray ends before the lease is given up: no worker may write after that.
                with ray_session:
                    crew = people or connect(self.config, ray_session)
                    scheduler = self._run(shards, crew, tally, on_progress=on_progress)
                quarantined.update(scheduler.quarantined)
                rewritten = any(shard.redo for shard in shards)
                sweep_leftovers(self.storage, self.lease, deaths=scheduler.deaths, rewritten=rewritten)

        def report() -> dict[str, Any]:
            return {
                "run_id": self.lease.holder.run_id,
                "job": self.job,
                "host": socket.gethostname(),
                "started_at": started_at.isoformat(),
                "finished_at": datetime.now(UTC).isoformat(),
                "versions": versions(),
                "config": self.config.as_dict(),
                "run": tally.report(),
                "quarantined": sorted(quarantined),
                "store": _standing(planned, self.storage),
            }

        return reported(self.storage, self.lease, work, report)

    def _run(self, shards: list[Shard], people: Crew, tally: Tally, *, on_progress: OnProgress) -> Scheduler:
        """Runs the shards on the connected Ray; returns who ran them."""
        settings = self.settings
        log.info("%d encoders with %d decode actors each", people.encoders, people.decoders)
        job = IndexJob(
            config=self.config,
            settings=settings,
            opener=VideoOpener(self.layout, sampling_of(settings), settings.segment_cells),
            crew=people,
            store=self.storage.url,
            run_id=self.lease.holder.run_id,
            lease_epoch=self.lease.epoch,
            beside=works_beside(people),
        )
        return drive(
            shards,
            lambda: start_worker(IndexWorker, job, people, calls=SHARDS_AT_MOST if job.beside else 1),
            tally,
            job=self.job,
            people=people,
            fixed=self.config.encoders is not None,
            of=tally.videos,
            max_failed=self.config.max_failed,
            on_progress=on_progress,
        )


def _standing(planned: int, storage: Storage) -> dict[str, int]:
    """How the whole store stands after the run, by receipts."""
    receipts = read_receipts(storage).values()
    done = {status: sum(getattr(each, status) for each in receipts) for status in ("ok", "partial", "failed")}
    return done | {"missing": planned - sum(done.values())}
