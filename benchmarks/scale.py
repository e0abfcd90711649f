"""What a run costs the driver by its size: a plan from a manifest, receipts, and shards over actors that do nothing.

    python -m benchmarks.scale plan 10000 100000 1000000        # videos of a manifest
    python -m benchmarks.scale questions 10000 100000 1000000   # questions of a file
    python -m benchmarks.scale receipts 1000 10000 100000       # of shards with three files each, all of them empty
    python -m benchmarks.scale store 1000 10000 100000          # shards of one failed video each: status, verify, gc
    python -m benchmarks.scale shards 10000 30000 100000        # through the scheduler, over two actors of a local Ray

Each size has a process of its own, so that its highest resident size is that size's alone. CPU seconds of the driver,
`clock` where Ray takes part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.answer_plan import extend_plan as extend_answer_plan
from echoprune.answer_plan import load_plan as load_answer_plan
from echoprune.garbage import find_garbage
from echoprune.plan import extend_plan, load_plan, pending
from echoprune.questions import read_questions
from echoprune.receipt import Receipt, StoredFile, committed, read_receipts, sweep
from echoprune.schema import StoreSettings, table_schema
from echoprune.sources import Source, list_sources
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.store import create_store
from echoprune.verify import verify

NOW = datetime(2026, 5, 11, tzinfo=UTC)
# What a receipt says of its run, of the usual length.
WRITER: dict[str, Any] = {
    "lease_epoch": 1,
    "run_id": "run",
    "host": "host",
    "started_at": NOW.isoformat(),
    "finished_at": NOW.isoformat(),
    "versions": {str(number): "1.0" for number in range(8)},
    "config": {f"option_{number}": "value" for number in range(28)},
}
SETTINGS: dict[str, Any] = {
    "family": "qwen2_5_vl", "model_fingerprint": "ab" * 32, "dim": 24, "compute_dtype": "fp32", "fps": "2",
    "max_frames": None, "frames": None, "max_pixels": 200704, "decoder": "auto", "cell_frames": 2, "segment_cells": 8,
    "keep": "0.25", "anchor_every_s": 30.0, "temperature": 0.5, "window": None, "dtype": "fp32",
}  # fmt: skip


def plan(count: int, folder: Path) -> dict[str, float]:
    """CPU seconds of the first steps of `index` over a manifest of `count` videos."""
    uris = [f"/archive/{number % 1000:03d}/video_{number:07d}.mp4" for number in range(count)]
    sizes = [1_000_000 + number * 7919 % 50_000_000 for number in range(count)]
    pq.write_table(pa.table({"uri": uris, "size_bytes": sizes}), folder / "videos.parquet")
    del uris, sizes
    storage = Storage(folder / "store")
    spent = {"start_mib": resident_mib()}
    sources = timed(spent, "list", lambda: list_sources([folder / "videos.parquet"]))
    timed(spent, "extend", lambda: extend_plan(storage, sources, shard_bytes=1 << 30, shard_videos=256))
    found = timed(spent, "load", lambda: load_plan(storage))
    timed(spent, "pending", lambda: pending(found, {}))
    return spent


def receipts(count: int, folder: Path) -> dict[str, float]:
    """CPU seconds of reading `count` receipts of three small files each, and of looking for files without one."""
    for name in ("videos", "cells", "tokens", "receipts"):
        (folder / name).mkdir()
    for number in range(count):
        shard_id = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        names = (f"videos/{shard_id}.parquet", f"cells/{shard_id}.parquet", f"tokens/{shard_id}-0.parquet")
        for name in names:
            (folder / name).touch()
        receipt = Receipt(
            shard_id=shard_id, generation=0, files=tuple(StoredFile(name, 1, 0, "0" * 64) for name in names), ok=1,
            partial=0, failed=0, **WRITER,
        )  # fmt: skip
        (folder / receipt.name).write_text(receipt.to_json())
    storage = Storage(folder)
    spent = {"start_mib": resident_mib()}
    found = timed(spent, "read", lambda: read_receipts(storage))
    timed(spent, "committed", lambda: committed(found))
    timed(spent, "sweep", lambda: sweep(storage))
    return spent


def questions(count: int, folder: Path) -> dict[str, float]:
    """CPU seconds of the first steps of `answer` over a file of `count` questions, ten about each video."""
    rows = {
        "question_id": [f"q{number:07d}" for number in range(count)],
        "video": [f"/archive/video_{number // 10:07d}.mp4" for number in range(count)],
        "question": [f"What happens before moment {number}?" for number in range(count)],
        "options": [["A red car stops.", "A bird lands.", "Nobody moves.", "It rains."]] * count,
        "answer": ["B"] * count,
    }
    pq.write_table(pa.table(rows), folder / "questions.parquet")
    del rows
    storage = Storage(folder / "answers")
    spent = {"start_mib": resident_mib()}
    file = timed(spent, "read", lambda: read_questions(str(folder / "questions.parquet")))
    asked = list(file.questions)
    del file
    timed(spent, "extend", lambda: extend_answer_plan(storage, asked, extra={}, batch=8))
    asked.clear()
    found = timed(spent, "load", lambda: load_answer_plan(storage))
    planned = timed(spent, "pending", lambda: found.pending({}))
    timed(spent, "hand_over", lambda: [each.load() for each in planned[:100]])
    # Of all of them, by the first hundred shards: each is made anew when a worker takes it.
    spent["hand_over"] *= len(planned) / min(100, len(planned))
    return spent


def store(count: int, folder: Path) -> dict[str, float]:
    """CPU seconds of what people ask of a store of `count` shards, each one failed video: a row of videos, one of failures."""
    settings = StoreSettings(**SETTINGS)
    storage = create_store(folder / "store", settings)
    uris = [f"/archive/video_{number:07d}.mp4" for number in range(count)]
    shards = extend_plan(storage, [Source(uri, 1000) for uri in uris], shard_bytes=1 << 40, shard_videos=1)
    root = Path(storage.url)
    for name in ("videos", "failures", "receipts"):
        (root / name).mkdir()
    for shard in shards:
        (uri,) = (source.uri for source in shard.sources)
        error = {"uri": uri, "video_id": shard.video_ids[0]}
        video = error | {
            "status": "failed", "error_stage": "probe", "error_class": "empty", "error": "0 bytes", "cells": 0,
            "tokens": 0, "kept": 0, "anchors": 0, "token_row": 0,
        }  # fmt: skip
        failure = error | {
            "stage": "probe", "class": "empty", "message": "0 bytes", "attempt": 1, "host": "h", "time": NOW,
        }  # fmt: skip
        files = []
        for name, row in (("failures", failure), ("videos", video)):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist([row], schema=table_schema(name, settings)), sink)
            content = sink.getvalue().to_pybytes()
            file = StoredFile(
                f"{name}/{shard.shard_id}.parquet", 1, len(content), hashlib.sha256(content).hexdigest()
            )
            (root / file.name).write_bytes(content)
            files.append(file)
        receipt = Receipt(
            shard_id=shard.shard_id, generation=0, files=tuple(files), ok=0, partial=0, failed=1, **WRITER,
        )  # fmt: skip
        (root / receipt.name).write_text(receipt.to_json())
    del shards, uris
    spent = {"start_mib": resident_mib()}
    timed(spent, "status", lambda: store_status(root))
    found = timed(spent, "verify", lambda: list(verify(root)))
    timed(spent, "gc", lambda: find_garbage(storage))
    if found:
        raise SystemExit(f"{len(found)} findings, the first: {found[0]}")
    return spent


def shards(count: int, folder: Path) -> dict[str, float]:
    """CPU and clock seconds of the real scheduler over `count` shards on two Ray actors that tell of them at once."""
    import ray  # noqa: PLC0415

    from pipelines.events import Event, ShardCommitted, VideoDone, VideoStarted  # noqa: PLC0415
    from pipelines.ray_session import session  # noqa: PLC0415
    from pipelines.schedule import Scheduler  # noqa: PLC0415
    from pipelines.tally import Tally  # noqa: PLC0415

    class Stub:
        def load(self) -> None: ...

        def run_shard(self, shard: Any, quarantined: dict[str, str]) -> Iterator[Event]:
            yield VideoStarted(shard.shard_id)
            yield VideoDone(shard.shard_id, "/v", "ok", 1, 1.0, 1, 1, 1, "", "")
            yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)

    class Shard:
        def __init__(self, shard_id: str) -> None:
            self.shard_id = shard_id

    spent: dict[str, float] = {}
    tally = Tally(videos=count, source_bytes=count)
    with session(None, object_store_bytes=80 << 20):
        spent["start_mib"] = resident_mib()
        scheduler = Scheduler(
            make_worker=lambda: ray.remote(Stub).options(num_cpus=0.1, max_restarts=0).remote(),
            workers=2,
            on_event=tally.add,
        )
        began = time.monotonic()
        timed(spent, "run", lambda: scheduler.run([Shard(f"{number:016x}") for number in range(count)]))
        spent["clock"] = time.monotonic() - began
    if tally.shards != count:
        raise SystemExit(f"{tally.shards} of {count} shards were committed")
    return spent


def resident_mib() -> float:
    """The highest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(spent: dict[str, float], name: str, step: Callable[[], Any]) -> Any:
    """What `step` returns; its CPU seconds and the resident size afterwards go to `spent`."""
    began = time.process_time()
    result = step()
    spent[name] = time.process_time() - began
    spent["highest_mib"] = resident_mib()
    return result


WHATS = {"plan": plan, "questions": questions, "receipts": receipts, "store": store, "shards": shards}


def main() -> None:
    """Runs each size in a process of its own, prints a line for each, and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(WHATS))
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(WHATS[given.what](given.sizes[0], Path(folder))))
        return
    results = []
    for size in given.sizes:
        command = [sys.executable, "-m", "benchmarks.scale", given.what, str(size), "--inside"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        results.append({"size": size} | {name: round(value, 3) for name, value in json.loads(said).items()})
        print("  ".join(f"{name} {value:.5g}" for name, value in results[-1].items()), flush=True)
    if given.out:
        machine = {
            "machine": platform.platform(),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        }
        given.out.write_text(json.dumps({"what": given.what, **machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
