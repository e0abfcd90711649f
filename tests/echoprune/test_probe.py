"""What a scan says about clips whose encoder-side truth is known."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from echoprune.probe import probe_header, scan_video
from tests.clips import CLIPS, Clip, even, write


@pytest.mark.parametrize("clip", CLIPS.values(), ids=lambda clip: clip.name)
def test_times_and_size_are_the_encoders(clip: Clip, tmp_path: Path) -> None:
    info = scan_video(str(write(clip, tmp_path)))
    times = [Fraction(int(t)) * info.time_base for t in info.pts - info.pts[0]]
    assert times == [Fraction(t - clip.times_ms[0], 1000) for t in clip.times_ms]
    assert (info.width, info.height) == ((clip.width, clip.height) if clip.rotation % 180 == 0 else (96, 128))
    # MP4 gives the last frame of an uneven clip the duration of the one before.
    assert info.duration_s == pytest.approx(float(clip.duration_s), abs=0.021)
    assert info.vfr == (
        clip.times_ms != even(len(clip.times_ms), step_ms=clip.last_ms, start_ms=clip.times_ms[0])
    )
    assert info.rotation == clip.rotation % 360
    assert info.incomplete == ""
    assert info.pix_fmt == clip.pix_fmt


@pytest.mark.parametrize(("name", "start_s"), [("late.mp4", 5.0), ("late.mkv", 5.0), ("cfr.mp4", 0.0)])
def test_start_is_kept(name: str, start_s: float, tmp_path: Path) -> None:
    assert scan_video(str(write(CLIPS[name], tmp_path))).start_pts_s == start_s


def test_clean_cut_points(tmp_path: Path) -> None:
    closed = scan_video(str(write(CLIPS["bframes.mp4"], tmp_path)))
    assert np.searchsorted(closed.pts, closed.cut_pts).tolist() == [0, 24, 48, 72, 96]
    opened = scan_video(str(write(CLIPS["open_gop.mp4"], tmp_path)))
    assert opened.cut_pts.tolist() == [opened.pts[0]]


def test_frames_cut_away_by_an_edit_list_are_not_presented(tmp_path: Path) -> None:
    # MP4 has no negative times: the muxer writes an edit list that starts at 0, inside a group of pictures.
    clip = replace(CLIPS["cfr.mp4"], name="edited.mp4", times_ms=even(60, start_ms=-1000))
    info = scan_video(str(write(clip, tmp_path)))
    assert (len(info.pts), info.start_pts_s, info.duration_s) == (35, 0.0, pytest.approx(1.4))
    assert info.incomplete == ""


def test_the_best_of_several_streams(tmp_path: Path) -> None:
    info = scan_video(str(write(CLIPS["two_streams.mp4"], tmp_path)))
    assert (info.stream_index, info.width) == (1, 128)


def test_longer_sound_is_not_missing_video(tmp_path: Path) -> None:
    for name in ("long_sound.mp4", "long_sound.mkv"):
        info = scan_video(str(write(CLIPS[name], tmp_path)))
        assert (info.duration_s, info.incomplete) == (2.0, "")


def test_header_alone(tmp_path: Path) -> None:
    header = probe_header(str(write(CLIPS["bframes.mkv"], tmp_path)))
    assert (header.duration_s, header.width, header.height) == (4.0, 128, 96)
    assert (header.fps, header.codec) == (25.0, "h264")
