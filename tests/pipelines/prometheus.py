"""What the nodes of a connected Ray export to Prometheus."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable

import ray

_LINE = re.compile(r"ray_(echoprune_\w+)\{(.*)\} (\S+)")


def exported() -> Counter[tuple[str, str, str]]:
    """(name, command, value of the further label) -> total, over all nodes and processes."""
    found: Counter[tuple[str, str, str]] = Counter()
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        for name, labels, value in _LINE.findall(text):
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            own = label.get("status") or label.get("doing") or label.get("outcome") or ""
            found[name, label["command"], own] += float(value)
    return found


def wait_until(
    holds: Callable[[Counter[tuple[str, str, str]]], bool], *, most_s: float = 120.0
) -> Counter[tuple[str, str, str]]:
    """What is exported once `holds` of it; Ray does so every 10 s. What there is after `most_s`, if it never holds."""
    end = time.monotonic() + most_s
    while True:
        found = exported()
        if holds(found) or time.monotonic() > end:
            return found
        time.sleep(1.0)
