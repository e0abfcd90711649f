"""Damage that the demuxer alone notices makes a video partial; whole files of every kind say nothing."""

from __future__ import annotations

from pathlib import Path

import av.logging
import pytest

from echoprune.demuxer_log import listening
from echoprune.probe import scan_video
from tests.clips import CLIPS, write


def without(source: Path, target: Path, *, at: float, length: int) -> Path:
    """A copy with `length` bytes missing."""
    data = source.read_bytes()
    begin = int(len(data) * at)
    target.write_bytes(data[:begin] + data[begin + length :])
    return target


@pytest.mark.parametrize("name", ["vp8.webm", "odd.webm", "bframes.mkv"])
def test_a_hole_in_a_matroska_file_is_told(name: str, tmp_path: Path) -> None:
    holed = without(write(CLIPS[name], tmp_path), tmp_path / f"holed-{name}", at=0.5, length=700)
    info = scan_video(str(holed))
    assert info.incomplete and "\n" not in info.incomplete
    # The same complaint about a second file is heard as well.
    assert scan_video(str(holed)).incomplete == info.incomplete


@pytest.mark.parametrize("name", sorted(CLIPS))
def test_whole_files_say_nothing(name: str, tmp_path: Path) -> None:
    assert scan_video(str(write(CLIPS[name], tmp_path))).incomplete == ""


def test_only_the_named_demuxer_counts_and_the_level_is_put_back() -> None:
    av.logging.set_level(av.logging.FATAL)
    try:
        with listening() as heard:
            av.logging.log(av.logging.ERROR, "h264", "no frame!")
            av.logging.log(av.logging.WARNING, "avi", "a mere warning")
            av.logging.log(av.logging.ERROR, "avi", "first\nof two")
            av.logging.log(av.logging.ERROR, "avi", "second")
        assert heard.complaint("avi") == "first of two"
        assert heard.complaint("matroska,webm") == ""
        assert av.logging.get_level() == av.logging.FATAL and av.logging.get_skip_repeated()
    finally:
        av.logging.set_level(None)
