"""Rules for all tests: random numbers are put back after each, and what needs a GPU says so.

A test marked `gpu` is skipped where there is no CUDA device. With ECHOPRUNE_REQUIRE_GPU=1 it runs, and so fails,
instead: a machine that is meant to have a GPU must not pass by skipping.
"""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

# Else some calls to Ray start one where there is none: open to others, and left to the next file, whose own does not start.
# Read when ray is imported.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Else Ray's actors run at niceness 15: while another worker of pytest computes, they get 3 % of a core, and time out.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
# A shell's background job starts with Ctrl-C ignored, and the commands that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The workers of pytest share the cores: with all of them each, their threads would wait for one another.
torch.set_num_threads(
    max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("ECHOPRUNE_REQUIRE_GPU") == "1":
        pytest.fail("ECHOPRUNE_REQUIRE_GPU=1, but torch finds no CUDA device")
    pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For processes that tests start too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _random_numbers_put_back() -> Iterator[None]:
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)


@pytest.fixture(autouse=True)
def _no_real_time_priority_left() -> Iterator[None]:
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, (
            "processes started from here would starve all others"
        )


@pytest.fixture(scope="session")
def _rays() -> Iterator[ExitStack]:
    with ExitStack() as rays:
        yield rays


@pytest.fixture(scope="module", autouse=True)
def _no_ray_of_the_files_before(request: pytest.FixtureRequest, _rays: ExitStack) -> None:
    """Ends it where this file does not share it: what is to start a Ray of its own would share it unasked."""
    marks = request.node.iter_markers("usefixtures")
    if not any("shared_ray" in mark.args for mark in marks):
        _rays.close()


@pytest.fixture(scope="module")
def shared_ray(s3_environment: None, _rays: ExitStack) -> None:
    """One private Ray for this file and those before and behind it that ask too, by `pytestmark`; its start takes seconds.

    For files whose tests leave no actors behind, and need nothing of their own in its environment.
    """
    import ray

    from pipelines.ray_session import session

    if not ray.is_initialized():
        _rays.enter_context(session(None, object_store_bytes=200 << 20))


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[None]:
    """The variables of the test servers, for the whole session: Ray's processes inherit them."""
    from tests.s3_servers import environment

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def rclone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rclone_endpoint` serves: a folder with the bucket "bucket".

    Of one file of tests: the server remembers listings for minutes, and would not see what the next file puts there.
    """
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    return folder


@pytest.fixture(scope="module")
def rclone_endpoint(s3_environment: None, rclone_folder: Path) -> Iterator[str]:
    """A server that ignores conditions of puts, as several that are compatible with S3 do."""
    from tests.s3_servers import rclone

    with rclone(rclone_folder) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto_endpoint(s3_environment: None) -> Iterator[str]:
    """A server that obeys conditions, as AWS does; with the bucket "bucket"."""
    from echoprune.s3_client import s3_client
    from echoprune.s3_options import S3Options
    from tests.s3_servers import moto

    with moto() as endpoint:
        s3_client(S3Options(endpoint=endpoint))._ask("create_bucket", Bucket="bucket")
        yield endpoint


@pytest.fixture
def s3_url(moto_endpoint: str) -> Iterator[str]:
    """An empty place on a server that obeys conditions, which this process is set to."""
    from echoprune.s3_options import S3Options, use_s3

    use_s3(S3Options(endpoint=moto_endpoint, patience_s=20))
    yield f"s3://bucket/{uuid.uuid4().hex}"
    use_s3(S3Options())
