"""Rules for all tests: random numbers are put back after each, and what needs a GPU says so.

A test marked `gpu` is skipped where there is no CUDA device. With ECHOPRUNE_REQUIRE_GPU=1 it runs, and so fails,
instead: a machine that is meant to have a GPU must not pass by skipping.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("ECHOPRUNE_REQUIRE_GPU") == "1":
        pytest.fail("ECHOPRUNE_REQUIRE_GPU=1, but torch finds no CUDA device")
    pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _random_numbers_put_back() -> Iterator[None]:
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
