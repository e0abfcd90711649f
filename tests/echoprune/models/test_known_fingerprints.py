"""Fingerprints are worked out once for files that do not change, and anew for any that did."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from echoprune.models import families, find_family, fingerprint, known_fingerprints
from echoprune.models.tiny import write_tiny_checkpoint


class Work:
    """Gives another fingerprint each time, so that one that was worked out anew is seen."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return f"{self.times:064x}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_fingerprints, "_SETTLED_S", 0.0)
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    time.sleep(0.02)
    return made


def test_once_for_files_that_stay_as_they_are(folder: Path) -> None:
    work = Work()
    first = known_fingerprints.remembered(folder, work)
    (folder / "README.md").write_text("nothing that tokens depend on")
    assert known_fingerprints.remembered(folder, work) == first
    # Another way to the same folder.
    (folder.parent / "link").symlink_to(folder)
    assert known_fingerprints.remembered(folder.parent / "link", work) == first
    assert work.times == 1


@pytest.mark.parametrize(
    "how", ["bytes", "bytes and time", "another file in its place", "one more", "config"]
)
def test_anew_for_files_that_changed(how: str, folder: Path) -> None:
    work = Work()
    known_fingerprints.remembered(folder, work)
    weights = folder / "model.safetensors"
    before = weights.stat()
    if how == "bytes":
        weights.write_bytes(b"WEIGHTS")
    elif how == "bytes and time":
        weights.write_bytes(b"WEIGHTS")
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif how == "another file in its place":
        (folder / "other").write_bytes(b"WEIGHTS")
        os.utime(folder / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        (folder / "other").replace(weights)
    elif how == "one more":
        (folder / "more.safetensors").write_bytes(b"")
    else:
        (folder / "config.json").write_text('{"a": 1}')
    time.sleep(0.02)
    assert known_fingerprints.remembered(folder, work) == f"{2:064x}"
    assert known_fingerprints.remembered(folder, work) == f"{2:064x}"


def test_files_that_changed_just_now_are_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_fingerprints, "_SETTLED_S", 60.0)
    work = Work()
    for _ in range(2):
        known_fingerprints.remembered(folder, work)
    assert work.times == 2


def test_a_file_that_comes_meanwhile_belongs_to_the_next_time(folder: Path) -> None:
    work = Work()

    def downloads() -> str:
        (folder / "second.safetensors").write_bytes(b"more")
        time.sleep(0.02)
        return work()

    known_fingerprints.remembered(folder, downloads)
    assert known_fingerprints.remembered(folder, work) == f"{2:064x}"
    assert known_fingerprints.remembered(folder, work) == f"{2:064x}"


@pytest.mark.parametrize("content", [b"", b"xyz", b"\xff" * 64, b"A" * 64])
def test_what_is_no_fingerprint_is_worked_out(content: bytes, folder: Path) -> None:
    work = Work()
    known_fingerprints.remembered(folder, work)
    (kept,) = (folder.parent / "cache" / "echoprune" / "fingerprints").iterdir()
    kept.write_bytes(content)
    assert known_fingerprints.remembered(folder, work) == f"{2:064x}"
    assert known_fingerprints.remembered(folder, work) == f"{2:064x}"


def test_where_nothing_can_be_kept_it_is_worked_out_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    work = Work()
    for _ in range(2):
        known_fingerprints.remembered(folder, work)
    assert work.times == 2


def test_an_error_is_no_fingerprint(folder: Path) -> None:
    def fails() -> str:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            known_fingerprints.remembered(folder, fails)


def test_a_checkpoints_is_that_of_before_and_another_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_fingerprints, "_SETTLED_S", 0.0)
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", seed=1)
    time.sleep(0.02)
    first, again = fingerprint(str(folder)), fingerprint(str(folder))
    other = fingerprint(str(write_tiny_checkpoint("qwen2_5_vl", folder, seed=2)))
    assert first == again != other


# sha256 of what `identity` says of a tiny checkpoint, its first 16 digits.
IDENTITIES = {
    1: {
        "llava_onevision": "d2a5d01d596b21f8",
        "qwen2_5_vl": "171b6cdd19d20319",
        "qwen3_vl": "2ffe47d4ce7477d7",
    }
}


@pytest.mark.parametrize("name", families())
def test_another_identity_is_another_rule(name: str, tmp_path: Path) -> None:
    folder, family = find_family(str(write_tiny_checkpoint(name, tmp_path / "model")))
    found = hashlib.sha256(json.dumps(family.identity(folder), sort_keys=True).encode()).hexdigest()[:16]
    rule = known_fingerprints._RULE
    assert IDENTITIES[rule][name] == found, "fingerprints are others now: raise _RULE, and name them here"
