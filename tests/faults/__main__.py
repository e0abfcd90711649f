"""`make faults`: seeds that did not go well yet with the code as it is, one after the other; exit code 1 if one went wrong.

Seeds that are named are run in any case. Outcomes of other code count for nothing, nor do its clean stores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.nodes import REPOSITORY, TwoNodes
from tests.faults.run_trial import carry_out
from tests.faults.seeds import trial

SEEDS = "0-95"
CODE = ("echoprune", "pipelines", "jobs", "tests/faults")


def code_of(repository: Path) -> str:
    """A fingerprint of what is tested, and of what tests it."""
    digest = hashlib.sha256()
    for path in sorted(each for folder in CODE for each in (repository / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(repository)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def outcomes(file: Path, code: str) -> dict[int, dict[str, object]]:
    """The lines of the file by seed, the last of each; those of other code, and a line that breaks off, are none."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.get("code") == code:
            found[values["seed"]] = values
    return found


def seeds_of(text: str) -> list[int]:
    """The seeds of "first-last", or of a list with commas."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(each) for each in text.split(",")]


def seeds_left(named: str | None, known: dict[int, dict[str, object]]) -> list[int]:
    """The seeds to run: all that are `named`, else those that did not go well yet."""
    if named:
        return seeds_of(named)
    return [seed for seed in seeds_of(SEEDS) if seed not in known or known[seed]["outcome"] != "ok"]


def forget_other_code(folder: Path, code: str) -> None:
    """Removes stores and steps of runs of other code."""
    noted = folder / "code"
    if not noted.exists() or noted.read_text() != code:
        shutil.rmtree(folder / "stores", ignore_errors=True)
        for trace in folder.glob("trace-*"):
            trace.unlink()
        noted.write_text(code)
    (folder / "stores").mkdir(exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", help=f"first-last, or a list with commas: all of them; else what is left of {SEEDS}"
    )
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "faults")
    given = parser.parse_args()
    code = code_of(REPOSITORY)
    # A shell's background job starts with Ctrl-C ignored, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The nodes are in groups of their own: they are to end with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given.folder.mkdir(parents=True, exist_ok=True)
    file = given.folder / "outcomes.jsonl"
    known = outcomes(file, code)
    seeds, left = seeds_of(given.seeds or SEEDS), seeds_left(given.seeds, known)
    print(f"{len(seeds)} seeds, {len(left)} of them to run with code {code}; see {file}", flush=True)
    if left:
        forget_other_code(given.folder, code)
        with TwoNodes(given.folder) as cluster:
            bench = Bench(given.folder, cluster)
            bench.prepare()
            print(f"{len(bench.steps)} steps of a commit and around it", flush=True)
            for seed in left:
                asked = trial(seed, bench.steps)
                faults = [str(fault) for fault in asked.faults]
                print(f"seed {seed}: {asked.job}, {', '.join(faults)}", flush=True)
                found = carry_out(bench, asked)
                known[seed] = {
                    "seed": seed,
                    "code": code,
                    "job": asked.job,
                    "faults": faults,
                    "outcome": found.word,
                    "wrong": found.wrong,
                    "runs": found.runs,
                    "tries": found.tries,
                    "seconds": round(found.seconds, 1),
                }
                with file.open("a") as lines:
                    lines.write(json.dumps(known[seed]) + "\n")
                print(f"seed {seed}: {json.dumps(known[seed])}", flush=True)
    wrong = [seed for seed in seeds if known[seed]["outcome"] != "ok"]
    print(f"{len(seeds) - len(wrong)} of {len(seeds)} seeds ok" + (f", wrong: {wrong}" if wrong else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
