"""Python imports this at its start where PYTHONPATH names this folder: it notes the steps of a store, and dies at one.

A step is what a process does to a file or folder of a store: who does it, what, and in which table ("worker rename
receipts"). Python announces each to audit hooks before it happens, so that the product needs no word about faults.

Of the folder in ECHOPRUNE_FAULTS: `stores/` has the stores; where `trace` is there each step is noted in it; where
`kill.json` names a step, the first process that comes to it for the `nth` time ends as by `kill -9`, once for each `token`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from contextlib import suppress

FOLDER = os.environ.get("ECHOPRUNE_FAULTS", "")
STORES = f"{FOLDER}/stores/"
# What is announced, and which of its arguments is the path that changes.
EVENTS = {"os.rename": 1, "os.link": 1, "os.remove": 0, "open": 0}

seen: Counter[tuple[str, str]] = Counter()


def step(event: str, arguments: tuple[object, ...]) -> str:
    """The step's name; "" for what is none."""
    path = arguments[EVENTS[event]]
    if not isinstance(path, str) or not path.startswith(STORES):
        return ""
    _, _, inside = path.removeprefix(STORES).partition("/")
    table = inside.split("/")[0] or "root"
    what = event.removeprefix("os.")
    if event == "open":
        if os.path.isdir(path):
            what = "sync"
        elif table == ".tmp" and str(arguments[1])[:1] in ("x", "w"):
            what = "build"
        else:
            return ""
    who = "worker" if os.path.basename(sys.argv[0]) == "default_worker.py" else "driver"
    return f"{who} {what} {table}"


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS:
        return
    name = step(event, arguments)
    if not name:
        return
    # What is opened here lies outside of the stores.
    with suppress(FileNotFoundError):
        file = os.open(f"{FOLDER}/trace", os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{os.getpid()} {name}\n".encode())
        os.close(file)
    with suppress(FileNotFoundError):
        with open(f"{FOLDER}/kill.json") as text:
            order = json.load(text)
        if order["step"] != name:
            return
        seen[order["token"], name] += 1
        if seen[order["token"], name] < order["nth"]:
            return
        with suppress(FileExistsError):
            os.close(os.open(f"{FOLDER}/fired-{order['token']}", os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)


if FOLDER:
    sys.addaudithook(hook)
