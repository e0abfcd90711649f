"""A cluster of two nodes for the tests of each file, which goes with them: idle it takes a tenth of a core."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nodes import TwoNodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults")
    (made / "stores").mkdir()
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[TwoNodes]:
    # A shell's background job starts with Ctrl-C ignored, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with TwoNodes(folder) as nodes:
        yield nodes
    signal.signal(signal.SIGINT, before)
