"""An object store that is away: shorter than the patience it is waited for, longer it ends the run, which goes on later."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echoprune.errors import StoreUnavailableError
from echoprune.s3_options import S3Options, use_s3
from echoprune.status import store_status
from echoprune.verify import verify
from pipelines.config import IndexConfig
from pipelines.index import run_index
from tests.clips import Clip, even, write
from tests.pipelines import in_process
from tests.pipelines.conftest import tables
from tests.s3_servers import FaultProxy

pytestmark = pytest.mark.usefixtures("shared_ray")

VIDEOS = 6
# What an operator is promised to survive, and longer than any pause between two attempts (echoprune/backoff.py).
OUTAGE_S = 60.0
# A short one ends once it has been noticed so often.
REFUSED = 6
BASE = "s3://bucket/outage"


@pytest.fixture(scope="module")
def served(rclone_folder: Path) -> Path:
    folder = rclone_folder / "bucket" / "outage"
    (folder / "archive").mkdir(parents=True)
    one = write(Clip("0.mp4", even(50)), folder / "archive")
    for number in range(1, VIDEOS):
        shutil.copy(one, folder / "archive" / f"{number}.mp4")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _s3_put_back() -> Iterator[None]:
    yield
    use_s3(S3Options())


def config(store: str, tiny: Path, endpoint: str, *, patience_s: float) -> IndexConfig:
    return IndexConfig(
        store=f"{BASE}/{store}", model=str(tiny), paths=(f"{BASE}/archive",), max_pixels=20_000, shard_videos=1,
        decoders_per_gpu="0", s3_endpoint=endpoint, s3_patience=patience_s,
    )  # fmt: skip


def index(store: str, tiny: Path, endpoint: str, *, patience_s: float) -> dict[str, Any]:
    return run_index(config(store, tiny, endpoint, patience_s=patience_s), on_progress=lambda snapshot: None)


class Outage:
    """From the first receipt on the service is away: until so many requests were refused and seconds are over, or until `end`."""

    def __init__(
        self, proxy: FaultProxy, receipts: Path, *, refused: float = math.inf, seconds: float = 0.0
    ) -> None:
        self._proxy, self._receipts, self._refused, self._seconds = proxy, receipts, refused, seconds
        self.lasted_s = 0.0
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    @property
    def refused(self) -> int:
        return self._proxy.injected["reset"]

    def _go(self) -> None:
        while not list(self._receipts.glob("*.json")):
            time.sleep(0.02)
        self._proxy.down = True
        begun = time.monotonic()
        while self._proxy.down:
            self.lasted_s = time.monotonic() - begun
            if self.refused >= self._refused and self.lasted_s >= self._seconds:
                self.end()
            time.sleep(0.02)

    def end(self) -> None:
        self._proxy.down = False


@pytest.fixture(scope="module")
def clean(served: Path, tiny: Path, rclone_endpoint: str) -> dict[str, str]:
    """The tables of a run that nothing disturbed."""
    in_process.index(config("clean", tiny, rclone_endpoint, patience_s=30))
    return tables(served / "clean")


def away_for_a_while(
    served: Path, tiny: Path, endpoint: str, clean: dict[str, str], *, seconds: float
) -> Outage:
    name = f"waited {seconds:g} s"
    with FaultProxy(endpoint).running() as proxy:
        outage = Outage(proxy, served / name / "receipts", refused=REFUSED, seconds=seconds)
        report = index(name, tiny, proxy.endpoint, patience_s=180)
    assert report["run"]["s3"]["retries"] > 0
    assert report["store"] == {"ok": VIDEOS, "partial": 0, "failed": 0, "missing": 0}
    assert tables(served / name) == clean
    return outage


def test_a_service_that_is_away_for_a_while_is_waited_for(
    served: Path, tiny: Path, rclone_endpoint: str, clean: dict[str, str]
) -> None:
    outage = away_for_a_while(served, tiny, rclone_endpoint, clean, seconds=0.0)
    assert outage.refused >= REFUSED


@pytest.mark.long
def test_one_that_is_away_for_a_minute_is_waited_for(
    served: Path, tiny: Path, rclone_endpoint: str, clean: dict[str, str]
) -> None:
    outage = away_for_a_while(served, tiny, rclone_endpoint, clean, seconds=OUTAGE_S)
    assert outage.lasted_s >= OUTAGE_S


def test_one_that_stays_away_ends_the_run_which_goes_on_later(
    served: Path, tiny: Path, rclone_endpoint: str, clean: dict[str, str]
) -> None:
    with FaultProxy(rclone_endpoint).running() as proxy:
        outage = Outage(proxy, served / "given up" / "receipts")
        with pytest.raises(StoreUnavailableError, match=r"check the network.*run the same command again"):
            index("given up", tiny, proxy.endpoint, patience_s=3)
        outage.end()
        done = len(list((served / "given up" / "receipts").glob("*.json")))
        assert 0 < done < VIDEOS
        report = index("given up", tiny, proxy.endpoint, patience_s=60)
    assert report["run"]["videos"]["before"] == done
    use_s3(S3Options(endpoint=rclone_endpoint))
    # The service's being away is the fault of no video.
    assert store_status(f"{BASE}/given up")["failures"] == [] and list(verify(f"{BASE}/given up")) == []
    assert tables(served / "given up") == clean
