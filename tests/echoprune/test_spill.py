"""The file of rows: thinning in place across blocks, and a disk that is full."""

import subprocess
import sys

import numpy as np
import pytest

from echoprune import spill
from echoprune.spill import SpilledColumn, SpillFile, opaque


@pytest.mark.parametrize("block_bytes", [1, 24, 100, 1 << 20])
def test_rows_survive_thinning_and_reading_in_any_block_size(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(spill, "BLOCK_BYTES", block_bytes)
    values = np.arange(101, dtype=np.int64)
    keep = np.random.default_rng(0).random(101) < 0.4
    file = SpillFile(tmp_path)
    file.append(opaque(values[:60]))
    file.append(opaque(values[60:]))
    file.retain(keep)
    left = values[keep]
    assert file.rows == len(left)
    file.append(opaque(values[:3]))
    left = np.concatenate([left, values[:3]])
    places = np.flatnonzero(np.random.default_rng(1).random(len(left)) < 0.5)
    assert file.read_at(places).view(np.int64).tolist() == left[places].tolist()
    assert file.read_at(np.empty(0, dtype=np.int64)).view(np.int64).tolist() == []
    file.close()
    file.close()


def test_a_spilled_column_reads_like_the_array_it_stands_for(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "BLOCK_BYTES", 100)
    values = np.random.default_rng(0).integers(0, 256, (57, 6), dtype=np.uint8)
    with SpilledColumn(tmp_path, 6) as column:
        assert column.shape == (0, 6) and column[:].shape == (0, 6)
        column.append(values[:20])
        column.append(np.asfortranarray(values[20:]))
        assert column.shape == values.shape
        for part in (slice(None), slice(0, 0), slice(3, 30), slice(50, 99), slice(40, 20)):
            assert column[part].dtype == np.uint8
            np.testing.assert_array_equal(column[part], values[part])
        with pytest.raises(ValueError, match="steps of 1"):
            column[::2]
        with pytest.raises(ValueError, match=r"\(m, 6\)"):
            column.append(values[:, :5])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_and_the_cure(tmp_path):
    # A limit on the size of files is the full disk that needs no other user's rights; it is the process's for good.
    script = f"""
import resource
from pathlib import Path
import numpy as np
from echoprune.errors import StoreError
from echoprune.spill import SpillFile, opaque
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
file = SpillFile(Path({str(tmp_path)!r}))
rows = opaque(np.arange(10_000, dtype=np.int64))
file.append(rows)
try:
    file.append(rows)
except StoreError as error:
    assert file.rows == 10_000
    assert file.read_at(np.array([0, 9_999])).view(np.int64).tolist() == [0, 9_999]
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(tmp_path) in done.stdout
    assert "cannot write 80000 bytes" in done.stdout
    assert "free space" in done.stdout
