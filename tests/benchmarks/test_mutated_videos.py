"""A short part of the run over damaged videos, and that its damage is what it says: seeded, of every kind, of every clip."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutated_videos import Batch, make_files, run_batch, source_clips
from benchmarks.mutations import KINDS, mutated
from benchmarks.shown_pictures import shown
from echoprune.models.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return source_clips(tmp_path_factory.mktemp("clips") / "clips")


def test_damaged_copies_are_seeded_and_damaged(clips: list[Path]) -> None:
    numbers = range(len(KINDS) * len(clips))
    copies = [mutated(number, clips, seed=7) for number in numbers]
    assert copies == [mutated(number, clips, seed=7) for number in numbers]
    assert copies != [mutated(number, clips, seed=8) for number in numbers]
    assert {name.split("-", 1)[1] for name, _ in copies} == {
        f"{kind}-{clip.name}" for kind in KINDS for clip in clips
    }
    whole = {clip.read_bytes() for clip in clips}
    # Zeros over zeros, or a byte that is drawn again, change nothing.
    assert sum(data in whole for _, data in copies) < len(copies) // 20


@pytest.mark.parametrize("name", ["cfr.mp4", "odd.webm"])
def test_whole_clips_show_what_they_should(name: str, clips: list[Path]) -> None:
    found = shown(next(path for path in clips if path.name == name), name)
    assert found.pictures >= 4 and not found.wrong and not found.smeared
    # As if it were another clip: the third picture is not at the time that it has there.
    assert shown(next(path for path in clips if path.name == "vfr.mp4"), "cfr.mp4").wrong


def test_every_damaged_file_ends_as_one_row(clips: list[Path], tmp_path: Path) -> None:
    """52 files of every kind of damage through `index` and `verify`: one Ray. `python -m benchmarks.mutated_videos` does 1,000."""
    videos, files = tmp_path / "videos", 4 * len(KINDS)
    # Every eighth block of kinds is another clip.
    numbers = [block * 8 * len(KINDS) + kind for block in range(4) for kind in range(len(KINDS))]
    make_files(videos, clips, numbers=numbers, seed=1)
    batch = Batch(first=0, files=files)
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    run_batch(batch, videos, tmp_path / "store", model, timeout_s=60)
    assert batch.faults == []
    assert sum(batch.statuses.values()) == files and set(batch.statuses) == {"ok", "partial", "failed"}
    assert batch.judged >= 5 and len(batch.silent) <= 2
