"""One disturbed run: started, disturbed, given again where its driver went, and compared with the clean one."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.bench import CODES, RUN_LIMIT_S, Bench, order
from tests.faults.nodes import send
from tests.faults.seeds import Fault, Trial

WORKERS = {"index": "IndexWorker", "answer": "AnswerWorker"}
# A run that had ended before a fault's moment shows nothing: it is made again, with the fault at once.
TRIES = 3
MISSED = "missed"


@dataclass
class Outcome:
    """`wrong`: in what the finished store differs from the clean one. `runs`: how often the command was given in the last of the `tries`."""

    trial: Trial
    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    tries: int = 1
    seconds: float = 0.0

    @property
    def word(self) -> str:
        """What became of it: ok, wrong, or missed, which shows nothing."""
        if not self.wrong:
            return "ok"
        return "missed" if self.wrong[0].startswith(MISSED) else "wrong"


class MissedError(Exception):
    """The run had ended before the fault's moment."""


def carry_out(bench: Bench, trial: Trial) -> Outcome:
    """The outcome of a trial; the store is left where something is wrong."""
    begun = time.monotonic()
    outcome = Outcome(trial)
    out = bench.folder / "stores" / f"seed-{trial.seed}"
    for outcome.tries in range(1, TRIES + 1):
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".log").unlink(missing_ok=True)
        outcome.runs, outcome.wrong = 0, []
        try:
            _Run(bench, trial, out, outcome, at_once=outcome.tries > 1).carry_out()
        except MissedError as error:
            outcome.wrong = [f"{MISSED}: {error}"]
            continue
        except (AssertionError, subprocess.TimeoutExpired) as error:
            outcome.wrong = [str(error), bench.told(out)]
            break
        else:
            outcome.wrong = bench.differences(trial.job, out)
            break
        finally:
            (bench.folder / "kill.json").unlink(missing_ok=True)
            _quiet(bench)
    if not outcome.wrong:
        shutil.rmtree(out)
        out.with_suffix(".log").unlink()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _quiet(bench: Bench) -> None:
    """Waits until no actor of a run is left, and sees to it that there are two nodes."""
    bench.cluster.second.wait()
    if not bench.cluster.second.raylet():
        bench.cluster.second.end()
        bench.cluster.add().wait()
    deadline = time.monotonic() + RUN_LIMIT_S
    for name in (*WORKERS.values(), "DecodeActor"):
        while left := bench.cluster.actors(name):
            assert time.monotonic() < deadline, f"{name} {left} outlive their driver"
            time.sleep(0.05)


class _Run:
    def __init__(self, bench: Bench, trial: Trial, out: Path, outcome: Outcome, *, at_once: bool) -> None:
        self._bench, self._trial, self._out, self._outcome = bench, trial, out, outcome
        self._at_once = at_once
        self._chance = random.Random(trial.seed)
        self._shards = bench.receipts(bench.clean(trial.job))
        self._waiting = list(trial.faults)

    def carry_out(self) -> None:
        while True:
            with self._bench.started(self._trial.job, self._out) as process:
                self._outcome.runs += 1
                self._disturb(process)
                code = process.wait(timeout=RUN_LIMIT_S)
            if code == CODES[self._trial.job]:
                if self._waiting:
                    raise MissedError(str(self._waiting[0]))
                return
            killed = code in (-signal.SIGKILL, 143)
            assert killed, f"exit code {code}"

    def _disturb(self, process: subprocess.Popen[bytes]) -> None:
        """Does the faults that wait, in turn, until one of them has ended the driver."""
        while self._waiting and process.poll() is None:
            fault = self._waiting[0]
            if fault.kind == "step":
                self._at_step(fault, process)
            else:
                self._until(fault, process)
                getattr(self, f"_{fault.kind}")(process)
            self._waiting.pop(0)

    def _at_step(self, fault: Fault, process: subprocess.Popen[bytes]) -> None:
        fired = order(self._bench.folder, fault.step, 1 if self._at_once else fault.nth)
        process.wait(timeout=RUN_LIMIT_S)
        if not fired.exists():
            raise MissedError(str(fault))

    def _until(self, fault: Fault, process: subprocess.Popen[bytes]) -> None:
        """Waits for the moment of a fault."""
        deadline = time.monotonic() + RUN_LIMIT_S
        wanted = 0 if self._at_once else int(fault.after * self._shards)
        while (
            self._bench.receipts(self._out) < wanted or not self._out.exists() or not self._workers()
        ) and process.poll() is None:
            assert time.monotonic() < deadline, f"{fault}: never that far"
            time.sleep(0.05)
        if not self._at_once:
            time.sleep(fault.delay_s)
        if process.poll() is not None:
            raise MissedError(str(fault))

    def _workers(self) -> list[int]:
        return self._bench.cluster.actors(WORKERS[self._trial.job])

    def _encoder(self, process: subprocess.Popen[bytes]) -> None:
        self._kill_one(WORKERS[self._trial.job], process)

    def _decoder(self, process: subprocess.Popen[bytes]) -> None:
        self._kill_one("DecodeActor", process)

    def _kill_one(self, name: str, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            if found := self._bench.cluster.actors(name):
                send([self._chance.choice(found)], signal.SIGKILL)
                return
            time.sleep(0.05)
        raise MissedError(f"no {name} left")

    def _node(self, process: subprocess.Popen[bytes]) -> None:
        self._bench.cluster.second.vanish()
        self._bench.cluster.add()

    def _late(self, process: subprocess.Popen[bytes]) -> None:
        self._bench.cluster.second.vanish()

    def _spot(self, process: subprocess.Popen[bytes]) -> None:
        self._bench.cluster.second.wait()
        send(self._bench.cluster.second.raylet(), signal.SIGTERM)

    def _driver(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        # What comes next is for the run that follows.
        process.wait(timeout=RUN_LIMIT_S)

    def _head(self, process: subprocess.Popen[bytes]) -> None:
        for node in self._bench.cluster.nodes:
            node.vanish()
        # A job that was submitted runs on the head.
        self._driver(process)
        self._bench.cluster.begin()

    def _terminate(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        assert process.wait(timeout=RUN_LIMIT_S) == 143, self._bench.told(self._out)

    def _zombie(self, process: subprocess.Popen[bytes]) -> None:
        stopped = self._workers()[:1]
        send(stopped, signal.SIGSTOP)
        self._driver(process)
        epoch = self._epoch()
        try:
            with self._bench.started(self._trial.job, self._out) as second:
                self._outcome.runs += 1
                deadline = time.monotonic() + RUN_LIMIT_S
                while self._epoch() == epoch:
                    assert second.poll() is None and time.monotonic() < deadline, self._bench.told(self._out)
                    time.sleep(0.05)
                send(stopped, signal.SIGCONT)
                code = second.wait(timeout=RUN_LIMIT_S)
                assert code == CODES[self._trial.job], f"exit code {code}"
        finally:
            send(stopped, signal.SIGCONT)

    def _epoch(self) -> str:
        return max((path.name for path in (self._out / "lease").glob("*.json")), default="")
