"""Whether an index survives damaged videos: each ends as one row, none stops, hangs or bloats the run.

    python -m benchmarks.mutated_videos --count 1000 --out mutated [--videos MORE_CLIPS]

Renders short clips of many codecs and containers, adds the first seconds of those in --videos, damages copies of them
(mutations.py) and indexes these with `python -m jobs.cli index` in runs of some hundred files, memory watched. Run again
it goes on with the batch that it was at. What a store says of a file is compared with the pictures of its clip, which
carry their number. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av

import echoprune
from benchmarks.mutations import KINDS, mutated
from benchmarks.resident import Usage, watch
from benchmarks.shown_pictures import shown_each
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.plan import load_plan
from echoprune.storage import Storage
from tests.clips import CLIPS, write

REPOSITORY = Path(__file__).parents[1]
CUT_S = 2.0
# A decoder's memory rises by up to 100 MiB when it first meets a large clip and stays there: 411 to 417 MiB from file 700 to
# file 2,000 of one run. So the second half of a run is looked at, and the lowest of each quarter.
GROWTH_MIB = 64.0
# A hang costs the watchdog's time twice, with a new process each time; a file itself less than a second.
START_S, FILE_S = 120.0, 3.0


@dataclass
class Batch:
    """One run over some hundred files: counts, sizes in MiB and what was wrong, one line each."""

    first: int
    files: int
    wall_s: float = 0.0
    others_cores: float = 0.0
    silent_s: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    early_mib: dict[str, float] = field(default_factory=dict)
    late_mib: dict[str, float] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    judged: int = 0
    silent: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all batches and prints the table; 0 if every check passed, 1 if not."""
    options = _parser().parse_args(arguments)
    folder: Any = (
        tempfile.TemporaryDirectory(prefix="mutated-") if options.out is None else nullcontext(options.out)
    )
    with folder as name:
        work = Path(name).resolve()
        clips = source_clips(work / "clips", more=options.videos)
        model = work / "model"
        if not model.exists():
            write_tiny_checkpoint("qwen2_5_vl", model)
        batches = []
        for first in range(0, options.count, options.batch):
            files = min(options.batch, options.count - first)
            batch = Batch(first, files)
            done = work / f"batch-{options.seed}-{first:05d}-{files}.json"
            if done.exists():
                batch = Batch(**json.loads(done.read_text(encoding="utf-8")))
            else:
                videos = work / f"videos-{options.seed}-{first:05d}"
                make_files(videos, clips, numbers=range(first, first + files), seed=options.seed)
                run_batch(
                    batch, videos, work / f"store-{videos.name}", model, timeout_s=options.decode_timeout
                )
                done.write_text(json.dumps(asdict(batch), indent=1) + "\n", encoding="utf-8")
            print(_line(batch), flush=True)
            batches.append(batch)
        print("\n".join(summary(batches)))
    return 1 if any(batch.faults for batch in batches) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutated_videos", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--count", type=int, default=1000, help="damaged files in all (1000)")
    parser.add_argument("--batch", type=int, default=500, help="files of one run (500)")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged how (0)")
    parser.add_argument(
        "--videos", type=Path, help="folder of further clips to damage; their first 2 s are taken"
    )
    parser.add_argument("--decode-timeout", type=float, default=30, help="as of `index`, seconds (30)")
    parser.add_argument(
        "--out", type=Path, help="folder for files, stores and results, kept; default: none is kept"
    )
    return parser


def source_clips(folder: Path, *, more: Path | None = None) -> list[Path]:
    """The whole clips in `folder`, made unless they are there: those of the tests, and the first 2 s of those in `more`."""
    if not folder.exists():
        making = folder.with_name(folder.name + ".part")
        making.mkdir(parents=True, exist_ok=True)
        for clip in CLIPS.values():
            write(clip, making)
        for path in sorted(more.iterdir()) if more is not None else ():
            if path.suffix in {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts"}:
                _cut_short(path, making / f"real-{path.name}")
        making.rename(folder)
    return sorted(folder.iterdir())


def _cut_short(source: Path, target: Path) -> None:
    """The packets of the first seconds, as they are."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.best("video")
        copy = writer.add_stream_from_template(stream)
        for packet in reader.demux(stream):
            if packet.dts is None or packet.dts * stream.time_base > CUT_S:
                break
            packet.stream = copy
            writer.mux(packet)


def make_files(folder: Path, clips: Sequence[Path], *, numbers: Iterable[int], seed: int) -> None:
    """The damaged copies of these numbers, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        name, data = mutated(number, clips, seed=seed)
        (folder / name).write_bytes(data)


def run_batch(batch: Batch, videos: Path, store: Path, model: Path, *, timeout_s: float) -> None:
    """Indexes `videos` and checks what came of it; writes it all into `batch`."""
    # A list, since folders and globs leave out suffixes that are rarely videos (.nut).
    listed = videos.with_suffix(".jsonl")
    lines = [json.dumps({"uri": str(path)}) for path in sorted(videos.iterdir())]
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ["index", listed, "--store", store, "--model", model, "--segment-cells", 2]
    command += ["--decode-timeout", timeout_s, "--shard-videos", 25]
    log = store.with_suffix(".log")
    with log.open("w", encoding="utf-8") as sink:
        usage = watch(
            [sys.executable, "-m", "jobs.cli", *map(str, command)],
            cwd=REPOSITORY,
            log=sink,
            env=_environment(),
            limit_s=START_S + FILE_S * batch.files + 20 * 2 * timeout_s,
        )
    _note_usage(batch, usage)
    if usage.returncode not in (0, 3):
        batch.faults.append(f"index ended with {usage.returncode}: {_tail(log)}")
        return
    _check_log(batch, log, timeout_s=timeout_s)
    _check_rows(batch, videos, store)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "verify", str(store)],
        cwd=REPOSITORY, env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        batch.faults.append(f"verify ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")


def _environment() -> dict[str, str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    return environment


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace")[-600:].split())


def _note_usage(batch: Batch, usage: Usage) -> None:
    """Sizes: the lowest in the third and in the last quarter of the time in which decoders worked."""
    batch.wall_s, batch.others_cores = round(usage.wall_s, 1), round(usage.others_cores, 2)
    batch.peak_mib = {part: round(usage.own_peak[part], 1) for part in ("driver", "encoder", "decoder")}
    batch.processes = {part: usage.processes.get(part, 0) for part in ("encoder", "decoder")}
    working = [row for row in usage.timeline if row[1] and row[2]]
    if len(working) < 8:
        return
    quarter = len(working) // 4
    for column, part in ((4, "driver"), (1, "encoder"), (2, "decoder")):
        early = min(row[column] for row in working[2 * quarter : 3 * quarter])
        late = min(row[column] for row in working[-quarter:])
        batch.early_mib[part], batch.late_mib[part] = round(early, 1), round(late, 1)
        if late - early > GROWTH_MIB:
            batch.faults.append(f"the {part} grew from {early:.0f} to {late:.0f} MiB")


def _check_log(batch: Batch, log: Path, *, timeout_s: float) -> None:
    """Progress never stands still for longer than two watchdogs, and nothing but progress and warnings is said."""
    moved, before = 0.0, None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith('{"event": "progress"'):
            now = json.loads(line)
            standing = (now["videos_done"], now["tokens_seen"])
            if standing != before:
                moved, before = now["elapsed_s"], standing
            batch.silent_s = max(batch.silent_s, now["elapsed_s"] - moved)
        elif len(line) > 500 or not line.isprintable():
            batch.faults.append(f"noise in the output: {line[:100]!r}")
    if batch.silent_s > START_S + 2 * timeout_s:
        batch.faults.append(f"nothing moved for {batch.silent_s:.0f} s")


def _check_rows(batch: Batch, videos: Path, store: Path) -> None:
    """Every file has one row, with a status, and a class of its own unless it is ok."""
    opened = echoprune.open_store(str(store))
    rows = opened.videos().to_pylist()
    planned = set(load_plan(Storage(str(store))).table["uri"].to_pylist())
    found = Counter(row["uri"] for row in rows)
    files = {str(path) for path in videos.iterdir()}
    for uri in sorted(files | planned | set(found)):
        if not (uri in files and uri in planned and found[uri] == 1):
            batch.faults.append(f"{uri}: planned {uri in planned}, a file {uri in files}, {found[uri]} rows")
    batch.statuses = dict(Counter(row["status"] for row in rows))
    batch.classes = dict(Counter(row["error_class"] for row in rows if row["status"] != "ok"))
    known = known_classes()
    for row in rows:
        if row["status"] not in {"ok", "partial", "failed"} or (
            row["status"] != "ok" and row["error_class"] not in known
        ):
            batch.faults.append(f"{row['uri']}: {row['status']} {row['error_class']}: {row['error']}")
    _check_pictures(batch, [Path(row["uri"]) for row in rows if row["status"] == "ok"])


def _check_pictures(batch: Batch, whole: Sequence[Path]) -> None:
    """Notes which files that are ok have pictures of other moments, or unreadable ones. No fault: see the decoders' docs."""
    # Of two clips spliced together it is not known which number belongs where; real clips have none.
    parts = [(path, path.name.split("-", 1)[1]) for path in whole if "-spliced-" not in path.name]
    named = [(path, clip) for path, rest in parts for clip in CLIPS if rest.endswith(f"-{clip}")]
    found = shown_each((path, clip) for path, clip in named if f"-real-{clip}" not in path.name)
    batch.judged = len(found)
    for name, each in found.items():
        if each is None or each.wrong or each.smeared:
            what = (
                f"{each.wrong} wrong, {each.smeared} smeared of {each.pictures}" if each else "not read again"
            )
            batch.silent.append(f"{name}: {what}")


def known_classes() -> set[str]:
    """The classes that docs/operations.md explains; any other is the name of an exception that nobody foresaw."""
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.partition("## Bad files")[2].partition("\n## ")[0].splitlines()]
    return {cells[2].strip().strip("`") for cells in rows if len(cells) > 4 and "`" in cells[2]}


def _line(batch: Batch) -> str:
    grown = ", ".join(
        f"{part} {batch.early_mib.get(part, 0):.0f} to {batch.late_mib[part]:.0f}" for part in batch.late_mib
    )
    return "\n".join(
        [
            f"files {batch.first} to {batch.first + batch.files - 1}: {batch.wall_s:.0f} s, longest silence "
            f"{batch.silent_s:.0f} s; {batch.statuses}; {batch.classes}; MiB {grown}, peaks {batch.peak_mib}; "
            f"processes {batch.processes}",
            *(f"  ok, but {each}" for each in batch.silent),
            *(f"  FAULT {fault}" for fault in batch.faults),
        ]
    )


def summary(batches: Sequence[Batch]) -> Iterator[str]:
    """The table over all batches."""
    statuses: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    for batch in batches:
        statuses.update(batch.statuses)
        classes.update(batch.classes)
    files = sum(batch.files for batch in batches)
    yield f"{files} files, {len(KINDS)} kinds of damage: {dict(statuses)}"
    yield f"classes: {dict(classes.most_common())}"
    silent, judged = sum(len(batch.silent) for batch in batches), sum(batch.judged for batch in batches)
    yield f"{judged} that are ok have numbers in their pictures: {silent} of them show another moment or a smeared picture"
    faults = sum(len(batch.faults) for batch in batches)
    yield f"{'pass' if not faults else 'FAIL'}  {faults} faults"


if __name__ == "__main__":
    sys.exit(main())
