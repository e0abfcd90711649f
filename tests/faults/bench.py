"""The runs that are disturbed: an archive of real clips, a tiny model, what one undisturbed index and answer of it give."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoprune.answer_store import open_answers
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.status import store_status
from echoprune.store import open_store
from echoprune.verify import verify
from tests.clips import Clip, cut, even, uneven, write
from tests.faults.nodes import LIMIT_S, REPOSITORY, TwoNodes
from tests.faults.seeds import Step, steps_of

RUN_LIMIT_S = 300
TABLES = {"index": ("videos", "cells", "tokens", "plan"), "answer": ("answers", "plan")}
# What is not a video makes the clean index end with 3.
CODES = {"index": 3, "answer": 0}


@dataclass
class Bench:
    """`folder`: where all of it lies, for several invocations; what is there already is not made again.

    `copies`: of clips, beside six files; `questions`: asked by an answer run, two a shard.
    """

    folder: Path
    cluster: TwoNodes
    copies: int = 36
    questions: int = 24
    steps: list[Step] = field(default_factory=list)

    def command(self, job: str, out: Path) -> list[str]:
        """The command line of a run into `out`."""
        common = ["--model", self.folder / "tiny", "--address", self.cluster.address, "--device", "cpu"]
        if job == "index":
            of_job = [
                "index", self.folder / "archive", "--store", out, "--max-pixels", "20000", "--fps", "3",
                "--segment-cells", "2", "--encoders", "2", "--decoders-per-gpu", "1",
            ]  # fmt: skip
        else:
            of_job = [
                "answer", self.clean("index"), "--questions", self.folder / "questions.jsonl", "--out", out,
                "--budget", "32", "--max-new-tokens", "8", "--shard-questions", "2", "--batch", "2", "--workers", "2",
            ]  # fmt: skip
        return [sys.executable, "-m", "jobs.cli", *map(str, [*of_job, *common])]

    @contextmanager
    def started(self, job: str, out: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A run under way; what it prints is added to `<out>.log`. It has ended when the block has."""
        environment = os.environ | self.cluster.environment
        environment.pop("RAY_ADDRESS", None)
        with out.with_suffix(".log").open("a") as log:
            process = subprocess.Popen(
                self.command(job, out), stdout=log, stderr=log, cwd=REPOSITORY, env=environment, start_new_session=True
            )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=LIMIT_S)

    def clean(self, job: str) -> Path:
        """What the undisturbed run made."""
        return self.folder / "stores" / f"clean-{job}"

    def prepare(self) -> None:
        """Makes the archive, the model and the clean stores, as far as they are not there; finds the steps."""
        archive = self.folder / "archive"
        if not archive.exists():
            made = self.folder / "archive.part"
            shutil.rmtree(made, ignore_errors=True)
            _archive(made, self.copies)
            write_tiny_checkpoint("qwen2_5_vl", self.folder / "tiny")
            (self.folder / "questions.jsonl").write_text(_questions(self.questions))
            made.rename(archive)
        for job in ("index", "answer"):
            noted = self.folder / f"trace-{job}"
            if not noted.exists():
                self._run_clean(job, noted)
            self.steps += steps_of(job, noted.read_text())

    def _run_clean(self, job: str, noted: Path) -> None:
        out = self.clean(job)
        shutil.rmtree(out, ignore_errors=True)
        (self.folder / "kill.json").unlink(missing_ok=True)
        trace = self.folder / "trace"
        trace.write_text("")
        try:
            with self.started(job, out) as process:
                assert process.wait(timeout=RUN_LIMIT_S) == CODES[job], _tail(out)
            wrong = self.differences(job, out)
            assert not wrong, wrong
        finally:
            trace.rename(noted.with_suffix(".part"))
        noted.with_suffix(".part").rename(noted)

    def receipts(self, out: Path) -> int:
        """How many shards are committed."""
        return sum(name.suffix == ".json" for name in (out / "receipts").glob("*"))

    def differences(self, job: str, out: Path) -> list[str]:
        """In what a finished run differs from the clean one; [] if in nothing."""
        found = [f"verify: {line}" for line in verify(out)]
        ours, theirs = tables(out, job), tables(self.clean(job), job)
        if ours != theirs:
            names = sorted(dict(ours.items() ^ theirs.items()))
            found.append(f"{len(names)} table files differ, such as {names[0]}")
        if self.receipts(out) != self.receipts(self.clean(job)):
            found.append(f"{self.receipts(out)} receipts, not {self.receipts(self.clean(job))}")
        if job == "answer":
            ids = open_answers(out).table(["question_id"])["question_id"].to_pylist()
            expected = [f"q{i:02}" for i in range(self.questions)]
        else:
            status = store_status(out)
            if status["quarantined"] or status["videos"]["missing"]:
                found.append(f"status: {status['videos']}, {status['quarantined']} quarantined")
            ids = [Path(uri).name for uri in open_store(out).videos()["uri"].to_pylist()]
            expected = [path.name for path in (self.folder / "archive").iterdir()]
            attempts = [_attempts(each) for each in (out, self.clean(job))]
            if attempts[0] != attempts[1]:
                found.append(f"failed attempts {attempts[0]}, not {attempts[1]}")
        lost, twice = set(expected) - set(ids), len(ids) - len(set(ids))
        if lost or twice or set(ids) - set(expected):
            found.append(f"{len(lost)} rows lost, {twice} there twice")
        return found

    def told(self, out: Path) -> str:
        """The end of what the runs into `out` printed."""
        return _tail(out)


def tables(out: Path, job: str) -> dict[str, str]:
    """sha256 of the files of tables that no fault may change."""
    found = [path for table in TABLES[job] for path in sorted((out / table).rglob("*.parquet"))]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def order(folder: Path, step: str, nth: int) -> Path:
    """Tells the hook to end the next process at that step; the file that is there once it has."""
    token = uuid.uuid4().hex
    text: dict[str, Any] = {"step": step, "nth": nth, "token": token}
    # Whole or not at all: any process may look at any time.
    part = folder / "kill.part"
    part.write_text(json.dumps(text))
    part.rename(folder / "kill.json")
    return folder / f"fired-{token}"


def _attempts(store: Path) -> list[tuple[str, str, str]]:
    rows = open_store(store).failures().to_pylist()
    return sorted((Path(row["uri"]).name, row["stage"], row["class"]) for row in rows)


def _tail(out: Path) -> str:
    return out.with_suffix(".log").read_text(errors="replace")[-2000:]


def _archive(folder: Path, copies: int) -> None:
    """Short clips of several kinds, one that breaks off, one that is none: several shards of one, and of two videos."""
    folder.mkdir()
    write(Clip("plain.mp4", even(80)), folder)
    write(Clip("b frames.mp4", even(60), options={"bf": "2"}), folder)
    write(Clip("vfr.mkv", uneven(30)), folder)
    write(Clip("tall.mp4", even(40), width=96, height=160), folder)
    whole = write(Clip("whole.mp4", even(120), muxer={"movflags": "faststart"}), folder)
    cut(whole, folder / "cut.mp4", keep=0.6)
    whole.unlink()
    (folder / "text.mp4").write_text("not a video")
    originals = [folder / name for name in ("plain.mp4", "b frames.mp4", "vfr.mkv", "tall.mp4")]
    for number in range(copies):
        original = originals[number % len(originals)]
        shutil.copyfile(original, folder / f"{original.stem} {number:02}{original.suffix}")


def _questions(count: int) -> str:
    names = ("plain.mp4", "vfr.mkv", "tall.mp4", "cut.mp4")
    rows = [
        {"question_id": f"q{i:02}", "video": names[i % 4], "question": f"What moves, {i}?"}
        for i in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)
