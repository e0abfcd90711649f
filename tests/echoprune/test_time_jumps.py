"""Files whose time stamps jump are read up to there; those that merely stand still for minutes are whole."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from echoprune.decode import decode
from echoprune.probe import scan_video
from echoprune.sample import Sampling, time_grid
from echoprune.time_jumps import goes_back, last_stands, stands_still
from tests.clips import Clip, even, read_index, write

HOUR_MS = 3_600_000
YEAR_MS = 365 * 24 * HOUR_MS


@pytest.mark.parametrize("name", ["jump.mkv", "jump.mp4"])
@pytest.mark.parametrize("by_ms", [HOUR_MS, 30 * 24 * HOUR_MS, 300 * YEAR_MS])
def test_a_jump_ahead_ends_the_video(name: str, by_ms: int, tmp_path: Path) -> None:
    if name.endswith("mp4") and by_ms > HOUR_MS:
        pytest.skip("a gap in MP4 has 32 bits of ticks")
    clip = Clip(name, even(50) + even(10, start_ms=by_ms), options={"bf": "0"}, gop=10)
    begun = time.monotonic()
    info = scan_video(str(write(clip, tmp_path)))
    assert time.monotonic() - begun < 20
    assert (len(info.pts), info.duration_s) == (50, pytest.approx(2.0))
    assert info.incomplete.startswith("time jump: after 50 frames the next is ")
    grid = time_grid(info, Sampling(), frame_hw=(48, 64), grid_hw=(2, 2), cell_frames=1, segment_cells=3)
    shown = [read_index(picture) for frames in decode(info, grid) for picture in frames.pixels]
    assert shown == [0, 12, 25, 37]


def test_time_that_goes_back_ends_the_video(tmp_path: Path) -> None:
    first = write(Clip("first.ts", even(100, start_ms=20_000)), tmp_path)
    again = write(Clip("again.ts", even(100, start_ms=21_000)), tmp_path)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + again.read_bytes())
    info = scan_video(str(tmp_path / "both.ts"))
    assert info.incomplete.startswith("time jump: time stamps go back by ")
    assert len(info.pts) == pytest.approx(100, abs=24)
    assert info.duration_s == pytest.approx(4.0, abs=1.0)
    assert info.cut_pts.tolist() == info.pts[:1].tolist()
    grid = time_grid(info, Sampling(), frame_hw=(48, 64), grid_hw=(2, 2), cell_frames=1, segment_cells=3)
    shown = [read_index(picture) for frames in decode(info, grid) for picture in frames.pixels]
    assert shown[:5] == [0, 12, 25, 37, 50]


def test_time_that_goes_back_is_seen_in_decoded_frames_too(tmp_path: Path) -> None:
    # MPEG-4 part 2: the frames are asked, not the packets.
    clip = Clip("first.ts", even(50, start_ms=20_000), codec="mpeg4", options={"b": "2000000"})
    first = write(clip, tmp_path)
    again = write(replace(clip, name="again.ts", times_ms=even(50, start_ms=10_000)), tmp_path)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + again.read_bytes())
    info = scan_video(str(tmp_path / "both.ts"))
    assert info.incomplete.startswith("time jump: time stamps go back by ")
    assert 45 <= len(info.pts) <= 50


def test_a_slide_show_of_minutes_is_whole(tmp_path: Path) -> None:
    minutes = 60_000
    times = (0, 5 * minutes, 6 * minutes, 15 * minutes, 25 * minutes)
    for name, bframes in (("slides.mkv", "0"), ("slides.mp4", "2")):
        info = scan_video(str(write(Clip(name, times, last_ms=minutes, options={"bf": bframes}), tmp_path)))
        assert ([float(t * info.time_base) for t in info.pts], info.incomplete) == (
            [t / 1000 for t in times],
            "",
        )


def test_a_last_frame_of_hours_is_cut(tmp_path: Path) -> None:
    path = write(Clip("stays.mp4", even(1)), tmp_path)
    data = bytearray(path.read_bytes())
    times = data.find(b"stts") + 4
    entries, frames, ticks = struct.unpack(">4xIII", data[times : times + 16])
    assert (entries, frames) == (1, 1)
    # 40 ms, and made two hours.
    struct.pack_into(">I", data, times + 12, ticks * 25 * 7200)
    path.write_bytes(data)
    info = scan_video(str(path))
    assert info.duration_s == 600  # there is no other frame to tell how long one stays
    assert info.incomplete.startswith("time jump: the last frame is to stay for 7200.0 s")


def test_by_hand() -> None:
    ms = Fraction(1, 1000)
    yes, no = np.ones(4, np.bool_), np.zeros(4, np.bool_)
    assert goes_back(np.array([0, 80, 40, 120]), yes, ms) == (4, "")  # a wrong flag, not a clock
    assert goes_back(np.array([0, 5000, 3000, 9000]), no, ms) == (4, "")  # reordered pictures
    assert goes_back(np.array([0, 5000, 3000, 9000]), yes, ms)[0] == 2
    assert goes_back(np.array([2**63 - 1, -(2**63), 0, 1]), yes, ms)[0] == 1
    assert goes_back(np.empty(0, np.int64), no[:0], ms) == (0, "")
    assert stands_still(np.array([0, 600_000, 1_200_001]), ms)[0] == 2
    assert stands_still(np.array([0, 600_000, 1_200_000]), ms) == (3, "")
    assert stands_still(np.array([-(2**63), 2**63 - 1]), ms)[0] == 1
    assert last_stands(600_000, ms) == "" != last_stands(600_001, ms)
