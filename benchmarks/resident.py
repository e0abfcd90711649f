"""Memory and CPU time of a command and of all Ray processes it starts, read from /proc as it runs (Linux alone).

A process belongs to the command if it inherited a variable of its environment; its part in the work is told by its
title. Files without a name that the encoder holds open are counted too: that is where the spill files are.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

MARK = "ECHOPRUNE_BENCHMARK_RUN"
PARTS = ("driver", "encoder", "decoder", "ray")
# Reading one status file takes 0.03 ms; smaps_rollup, which would share pages out fairly, 5 ms a process.
INTERVAL_S = 0.1
_TITLES = {"ray::IndexWorker": "encoder", "ray::DecodeActor": "decoder"}
_MIB = 1 << 20
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What one command took. Sizes in MiB, one number per part of `PARTS`; a part with several processes: the sum.

    `cpu_s`: seconds of CPU. `others_cores`: CPU cores that all other work on the machine took meanwhile, on average;
    much of it makes the times worthless. `peak`: highest resident size, pages of libraries and of Ray's object store included, as the kernel keeps it.
    `own_peak`: highest anonymous memory (RssAnon), which no other process shares. `shared_peak`: most pages of
    shared memory (the object store) that one process had touched. `spill_peak_mib`: largest sum of unnamed files.
    `processes`: how many there were of each part in all, those that were replaced included.
    `timeline`: (seconds since start, own MiB of the encoder, of the decoder, spill MiB, own MiB of the driver), one per second.
    """

    wall_s: float
    returncode: int
    cpu_s: Mapping[str, float]
    others_cores: float
    peak: Mapping[str, float]
    own_peak: Mapping[str, float]
    shared_peak: float
    spill_peak_mib: float
    processes: Mapping[str, int]
    timeline: Sequence[tuple[float, ...]] = field(repr=False)


def watch(
    command: Sequence[str], *, cwd: Path, log: IO[str], env: Mapping[str, str], limit_s: float = float("inf")
) -> Usage:
    """Runs `command` to its end, its output going to `log`; returns what it took. Longer than `limit_s` it is ended."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    name, value = mark.split("=")
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env={**env, name: value}, stdout=log, stderr=subprocess.STDOUT, text=True
    )
    sampler = _Sampler(mark, driver=process.pid)
    busy_s = _busy_s()
    try:
        while process.poll() is None and time.perf_counter() - started < limit_s:
            sampler.sample(time.perf_counter() - started)
            time.sleep(INTERVAL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    wall_s = time.perf_counter() - started
    return sampler.usage(wall_s=wall_s, busy_s=_busy_s() - busy_s, returncode=process.returncode)


class _Sampler:
    """Peaks so far. Highest resident sizes are kept per process, since the kernel counts them per process."""

    def __init__(self, mark: str, *, driver: int) -> None:
        self._mark = mark.encode()
        self._foreign: set[int] = set()
        self._mine: set[int] = {driver}
        self._parts: dict[int, str] = {driver: "driver"}
        self._high: dict[int, int] = {}
        self._cpu: dict[int, float] = {}
        self._own = dict.fromkeys(PARTS, 0)
        self._shared = self._spill = 0
        self._own_s = _own_s()
        self._timeline: list[tuple[float, ...]] = []

    def sample(self, at_s: float) -> None:
        self._find()
        own = dict.fromkeys(PARTS, 0)
        spill = 0
        for pid in sorted(self._mine):
            try:
                status = _status(pid)
                part = self._part(pid)
                cpu_s = _cpu_s(pid)
                spill += _unnamed_bytes(pid) if part == "encoder" else 0
            except OSError:
                self._mine.discard(pid)  # it has ended
                continue
            own[part] += status.get("RssAnon", 0)
            self._high[pid] = max(self._high.get(pid, 0), status.get("VmHWM", 0))
            self._cpu[pid] = cpu_s
            self._shared = max(self._shared, status.get("RssShmem", 0))
        self._spill = max(self._spill, spill)
        for part in PARTS:
            self._own[part] = max(self._own[part], own[part])
        if not self._timeline or at_s - self._timeline[-1][0] >= 1.0:
            sizes = (own["encoder"], own["decoder"], spill, own["driver"])
            self._timeline.append((round(at_s, 1), *(round(size / _MIB, 1) for size in sizes)))

    def usage(self, *, wall_s: float, busy_s: float, returncode: int) -> Usage:
        peak, cpu_s = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
        for pid, part in self._parts.items():
            peak[part] += self._high.get(pid, 0)
            cpu_s[part] += self._cpu.get(pid, 0.0)
        return Usage(
            wall_s=wall_s,
            returncode=returncode,
            cpu_s=cpu_s,
            others_cores=max(0.0, busy_s - sum(cpu_s.values()) - _own_s() + self._own_s) / wall_s,
            peak={part: size / _MIB for part, size in peak.items()},
            own_peak={part: size / _MIB for part, size in self._own.items()},
            shared_peak=self._shared / _MIB,
            spill_peak_mib=self._spill / _MIB,
            processes=Counter(self._parts.values()),
            timeline=self._timeline,
        )

    def _find(self) -> None:
        now = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
        self._foreign &= now
        for pid in now - self._foreign - self._mine:
            try:
                inherited = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                inherited = b""
            (self._mine if self._mark in inherited else self._foreign).add(pid)

    def _part(self, pid: int) -> str:
        # A worker has no such title yet when it starts, and none any more while it exits: the first one counts.
        if self._parts.get(pid, "ray") == "ray":
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            named = (part for prefix, part in _TITLES.items() if title.startswith(prefix))
            self._parts[pid] = next(named, "ray")
        return self._parts[pid]


def _status(pid: int) -> dict[str, int]:
    """The sizes of /proc/PID/status, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.removesuffix(" kB")) << 10 for name, value in pairs}


def _cpu_s(pid: int) -> float:
    """User and system time so far; the title, which comes before them, may hold blanks and brackets."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _busy_s() -> float:
    """CPU seconds of all processes since the machine started, those that a host took away included."""
    user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) * _TICK_S


def _own_s() -> float:
    """CPU seconds of this process: watching costs some too."""
    return time.process_time()


def _unnamed_bytes(pid: int) -> int:
    """Disk space of the regular files that a process holds open and that no folder lists."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
            if target.startswith("/dev/") or not target.endswith("(deleted)"):
                continue  # the object store is an unlinked file of /dev/shm
            total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # closed meanwhile
    return total
