"""What a segment's frames cost an actor to hand over through Ray's shared memory, freed at once or as Ray does it by itself.

    python -m benchmarks.handed_over

CPU milliseconds and page faults of an actor for each answer of 9.6 MB (16 frames of 448 x 448 pixels) that is dropped when it has come.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import ray

SHAPE = (16, 448, 448, 3)
STORE_BYTES = 1 << 30


class Decoder:
    """Gives frames, and says what it has cost so far."""

    def frames(self) -> np.ndarray:
        """A segment of them."""
        return np.ones(SHAPE, np.uint8)

    def spent(self) -> tuple[float, int]:
        """CPU seconds, and page faults."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime, usage.ru_minflt


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each way, each in a process and a Ray of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handed_over", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--segments", type=int, default=50, help="of each of four rounds (50)")
    parser.add_argument("--batch", type=int, help="what Ray frees together, in this process alone")
    options = parser.parse_args(arguments)
    if options.batch:
        measure(options.segments)
        return 0
    for batch in (100, 1):
        print(f"freed by {batch}, or each second:", flush=True)
        command = [sys.executable, "-m", "benchmarks.handed_over", "--batch", str(batch)]
        command += ["--segments", str(options.segments)]
        subprocess.run(command, env=os.environ | {"RAY_free_objects_batch_size": str(batch)}, check=True)
    return 0


def measure(segments: int) -> None:
    """Four rounds: in the first ones memory is used that was not used before."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=STORE_BYTES)
    decoder = ray.remote(Decoder).remote()
    for number in range(4):
        before = ray.get(decoder.spent.remote())
        for _ in range(segments):
            ray.get(decoder.frames.remote())
        after = ray.get(decoder.spent.remote())
        cpu_ms, faults = 1e3 * (after[0] - before[0]) / segments, (after[1] - before[1]) / segments
        print(
            f"  round {number + 1}: {cpu_ms:.1f} ms of CPU and {faults:.0f} page faults a segment", flush=True
        )
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
