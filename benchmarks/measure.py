"""How the GPU benchmarks measure: seconds by the device's own clock, the rate of matrix products, errors, records."""

from __future__ import annotations

import json
import os
import platform
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from pipelines.versions import versions

# Operations, rows, columns and inner width of a matrix product, and how often it is done.
Product = tuple[int, int, int, int]


def seconds_of(call: Callable[[], object], device: torch.device, *, repeat: int = 10, warm: int = 3) -> float:
    """The median of `repeat` calls, after `warm` that are not counted; on a GPU by its own events."""
    for _ in range(warm):
        call()
    if device.type != "cuda":
        found = []
        for _ in range(repeat):
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
        return statistics.median(found)
    torch.cuda.synchronize()
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)
    ]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) / 1e3 for begin, end in marks)


def matmul_rate(products: Sequence[Product], device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of these matrix products (times, rows, columns, inner) done one after another, random values."""
    operations, taken = 0.0, 0.0
    for times, rows, columns, inner in products:
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randn(columns, inner, device=device, dtype=dtype)
        taken += times * seconds_of(lambda x=x, weight=weight: x @ weight.t(), device)  # type: ignore[misc]
        operations += times * 2.0 * rows * columns * inner
    return operations / taken


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact|, in float64."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def machine() -> dict[str, Any]:
    """What it ran on."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def write_record(path: Path | None, options: dict[str, Any], results: object) -> None:
    """Writes `results` with date, machine, versions and options as JSON; nothing without a path.

    Called after every part, so that a run that is cut off leaves what it had.
    """
    if path is None:
        return
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "options": {name: value for name, value in options.items() if name != "json"},
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def kernels_of(call: Callable[[], object], device: torch.device, *, most: int = 14) -> list[dict[str, Any]]:
    """The kernels of one call by the GPU's time, longest first: name, microseconds, calls; [] without a GPU."""
    if device.type != "cuda":
        return []
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - takes a second to load

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    rows = [row for row in found.key_averages() if row.self_device_time_total > 0]
    rows.sort(key=lambda row: -row.self_device_time_total)
    return [
        {"kernel": row.key[:80], "us": round(row.self_device_time_total, 1), "calls": row.count}
        for row in rows[:most]
    ]


@dataclass
class Spent:
    """Seconds and number of calls by name; `spans`: each call's name, thread, begin and end."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    spans: list[tuple[str, str, float, float]] = field(default_factory=list)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, owner: Any, name: str, until: ExitStack) -> None:
        """Counts calls of `owner`.`name` until the end of `until`."""
        call: Callable[..., Any] = getattr(owner, name)
        title = f"{owner.__name__}.{name}"

        @wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                ended = time.perf_counter()
                with self._counting:
                    self.seconds[title] += ended - began
                    self.calls[title] += 1
                    self.spans.append((title, threading.current_thread().name, began, ended))

        setattr(owner, name, counted)
        until.callback(setattr, owner, name, call)
