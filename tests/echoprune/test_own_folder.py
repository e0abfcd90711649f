"""Folders of a process: what a killed one left goes, what a living one has stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from echoprune.own_folder import OwnFolder, own_base
from echoprune.storage import Storage

REPOSITORY = Path(__file__).parents[2]
KILLED = """
import os
from echoprune.staging import StagingFolder
from echoprune.storage import Storage
videos = StagingFolder(most_bytes=1)
(videos.path / "left").write_bytes(b"x")
with Storage("s3://bucket/store").tmp_dir() as folder:
    (folder / "tokens").mkdir()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos that it had fetched, and the files of a shard for a store in S3."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = OwnFolder("videos")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", KILLED], cwd=REPOSITORY, env=environment, check=False, timeout=60)
    # The second of its folders was made while the first was in use.
    assert len(list(own_base().iterdir())) == 3 and own_base().parent == tmp_path
    with Storage("s3://bucket/store").tmp_dir() as folder:
        assert set(own_base().iterdir()) == {living.path, folder}
    living.close()
    assert list(own_base().iterdir()) == []
