"""A cluster of two nodes for the tests of each file, which goes with them: idle it takes a tenth of a core. One tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from echoprune.models.tiny import write_tiny_checkpoint
from tests.faults.nodes import TwoNodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults")
    (made / "stores").mkdir()
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[TwoNodes]:
    with TwoNodes(folder) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")
