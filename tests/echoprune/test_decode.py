"""The right frame at every sampled instant, read back from the decoded pixels; spans; seeking; fallback."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from echoprune import decode_decord
from echoprune.data import Frames, TimeGrid, VideoInfo
from echoprune.decode import decode, spans
from echoprune.decord_log import listening
from echoprune.errors import ConfigError, MediaError
from echoprune.probe import scan_video
from echoprune.sample import Sampling, time_grid
from tests.clips import CLIPS, Clip, Pixels, damage, even, expected, read_index, write

VIDEOS = Path(__file__).parents[3] / "shared" / "videos"
DECORD_EXACT = {
    "cfr.mp4", "bframes.mp4", "bframes.mkv", "vfr.mp4", "vfr.mkv", "late.mp4", "late.mkv", "two_streams.mp4",
    "vp9.webm", "av1.mp4", "one_frame.mp4", "long_sound.mp4", "long_sound.mkv", "fragmented.mp4", "slow.mp4",
    "many_keys.mp4", "many_keys.mkv", "ünï cöde: 电影 %03d.mp4",
}  # fmt: skip


def _grid(info: VideoInfo, sampling: Sampling, *, frame_hw: tuple[int, int] = (48, 64)) -> TimeGrid:
    return time_grid(info, sampling, frame_hw=frame_hw, grid_hw=(2, 2), cell_frames=2, segment_cells=3)


def _pixels(segments: list[Frames]) -> Pixels:
    return np.concatenate([frames.pixels for frames in segments])


def _indices(segments: list[Frames]) -> list[int]:
    return [read_index(picture) for picture in _pixels(segments)]


def _keep(target: list[Frames], source: Iterator[Frames]) -> None:
    """Collect segments one by one, so that those before an error are there."""
    for frames in source:
        target.append(frames)


def _filled(indices: list[int]) -> list[int]:
    return indices + indices[-1:] * (len(indices) % 2)


@pytest.mark.parametrize("clip", CLIPS.values(), ids=lambda clip: clip.name)
def test_every_sampled_frame_is_the_one_on_screen(clip: Clip, tmp_path: Path) -> None:
    info = scan_video(str(write(clip, tmp_path)))
    grid = _grid(info, Sampling(fps=Fraction(5)))
    want = _filled(expected(clip, fps=Fraction(5)))
    whole: dict[str, Pixels] = {}
    for decoder in ("auto", "pyav", "decord"):
        if decoder == "decord" and clip.name not in DECORD_EXACT:
            with pytest.raises(MediaError, match="--decoder auto"):
                list(decode(info, grid, decoder=decoder))
            continue
        segments = list(decode(info, grid, decoder=decoder))
        assert _indices(segments) == want, decoder
        assert [s.first_cell for s in segments] == list(range(0, grid.cells, 3))
        assert {s.decoder for s in segments} == {
            "decord" if clip.name in DECORD_EXACT and decoder != "pyav" else "pyav"
        }
        whole[decoder] = _pixels(segments)
        for parts in (2, 3):
            cut = spans(info, grid, parts=parts, decoder=decoder)
            assert len(cut) == 1 or decoder == "pyav" or clip.name not in DECORD_EXACT
            joined = [
                f for a, b in cut for f in decode(info, grid, decoder=decoder, first_cell=a, stop_cell=b)
            ]
            assert [s.first_cell for s in joined] == [s.first_cell for s in segments]
            assert np.array_equal(_pixels(joined), whole[decoder])
    assert np.array_equal(whole["auto"], whole["pyav"])


@pytest.mark.parametrize("name", ["many_keys.mp4", "many_keys.mkv", "vfr.mp4", "stream.ts", "refresh.mkv"])
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_sparse_samples(name: str, decoder: str, tmp_path: Path) -> None:
    info = scan_video(str(write(CLIPS[name], tmp_path)))
    segments = list(decode(info, _grid(info, Sampling(frames=4)), decoder=decoder))
    # The instants of the file's own duration: MP4 shortens the last frame of an uneven clip.
    clip = replace(
        CLIPS[name],
        last_ms=CLIPS[name].last_ms - round(1000 * (float(CLIPS[name].duration_s) - info.duration_s)),
    )
    assert _indices(segments) == expected(clip, count=4)


def test_sparse_samples_skip_what_lies_between(tmp_path: Path) -> None:
    clip = CLIPS["many_keys.mp4"]
    broken = damage(write(clip, tmp_path), tmp_path / "broken.mp4", at=0.37)
    info = scan_video(str(broken))
    assert _indices(list(decode(info, _grid(info, Sampling(frames=4)), decoder="pyav"))) == expected(
        clip, count=4
    )
    for sampling, hurt in ((Sampling(frames=4), False), (Sampling(fps=Fraction(25)), True)):
        damaged = sum(frames.damaged for frames in decode(info, _grid(info, sampling), decoder="pyav"))
        assert bool(damaged) == hurt


def test_spans_cut_at_clean_points_and_not_where_seeking_is_wrong(tmp_path: Path) -> None:
    info = scan_video(str(write(CLIPS["many_keys.mp4"], tmp_path)))
    grid = _grid(info, Sampling(fps=Fraction(25)))
    cut = spans(info, grid, parts=4, decoder="pyav")
    assert len(cut) == 4
    assert [a for a, _ in cut[1:]] == [b for _, b in cut[:-1]]
    # Segments of 6 frames, groups of 12: every span can begin on a keyframe, and does.
    assert all(grid.cell_pts[a] in info.cut_pts for a, _ in cut)
    # A short video that decord may take is decoded whole, for decord to be trusted with any of it.
    assert spans(info, grid, parts=4) == spans(info, grid, parts=4, decoder="decord") == [(0, 125)]
    stream = scan_video(str(write(CLIPS["stream.ts"], tmp_path)))
    assert spans(stream, _grid(stream, Sampling()), parts=4) == [(0, 4)]


def test_a_video_that_decord_fails_on_is_decoded_by_pyav(tmp_path: Path) -> None:
    clip = CLIPS["bframes.mp4"]
    broken = damage(write(clip, tmp_path), tmp_path / "broken.mp4", at=0.7)
    info = scan_video(str(broken))
    grid = _grid(info, Sampling(fps=Fraction(25)))
    got: dict[str, list[Frames]] = {}
    for decoder in ("auto", "pyav", "decord"):
        got[decoder] = []
        try:
            _keep(got[decoder], decode(info, grid, decoder=decoder))
        except MediaError as error:
            assert decoder == "decord" and re.search(r"\d+\.\d+ s", str(error))
            assert (error.stage, error.kind) == ("decode", "decode_failed")
    assert not got["decord"]
    assert {s.decoder for s in got["auto"]} == {"pyav"}
    assert [s.first_cell for s in got["auto"]] == [s.first_cell for s in got["pyav"]]
    assert np.array_equal(_pixels(got["auto"]), _pixels(got["pyav"]))
    assert sum(s.damaged for s in got["auto"]) > 0
    assert _indices(got["auto"])[:60] == list(range(60)) and _indices(got["auto"])[-4:] == [96, 97, 98, 99]


def test_without_decord_pyav_decodes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python has it where an import is known to fail, such as on a system that decord has no package for.
    monkeypatch.setitem(sys.modules, "decord", None)
    clip = CLIPS["bframes.mp4"]
    info = scan_video(str(write(clip, tmp_path)))
    grid = _grid(info, Sampling(fps=Fraction(5)))
    segments = list(decode(info, grid))
    assert {segment.decoder for segment in segments} == {"pyav"}
    assert _indices(segments) == _filled(expected(clip, fps=Fraction(5)))
    with pytest.raises(MediaError, match="decord cannot be imported"):
        list(decode(info, grid, decoder="decord"))


def _smeared(folder: Path, clip: Clip) -> list[VideoInfo]:
    """Copies of a clip, each with one byte changed, in which PyAV patches frames but decodes them all."""
    whole = write(clip, folder)
    found = []
    for at in np.arange(1, 20) / 20:
        copy = damage(whole, folder / f"{at:.2f} {clip.name}", at=at, length=1)
        info = scan_video(str(copy))
        try:
            patched = sum(s.damaged for s in decode(info, _grid(info, Sampling()), decoder="pyav"))
        except MediaError:
            continue
        if patched:
            found.append(info)
    return found


def test_pictures_that_decord_would_patch_silently(tmp_path: Path) -> None:
    smeared = _smeared(tmp_path, CLIPS["bframes.mp4"])
    assert len(smeared) >= 5
    for info in smeared:
        grid = _grid(info, Sampling(fps=Fraction(25)))
        with pytest.raises(MediaError, match="patching pictures; use --decoder auto") as raised:
            next(decode(info, grid, decoder="decord"))
        assert raised.value.kind == "decode_failed"
        auto, pyav = (list(decode(info, grid, decoder=decoder)) for decoder in ("auto", "pyav"))
        assert {s.decoder for s in auto} == {"pyav"}
        assert [s.damaged for s in auto] == [s.damaged for s in pyav]
        assert np.array_equal(_pixels(auto), _pixels(pyav))


def test_damage_between_the_samples_counts_whatever_is_sampled(tmp_path: Path) -> None:
    """Which decoder is used depends on the file alone: not on the samples, the span, or how far decord got ahead."""
    for info in _smeared(tmp_path, CLIPS["many_keys.mp4"])[:4]:
        for sampling in (Sampling(frames=1), Sampling(frames=3), Sampling(fps=Fraction(25))):
            grid = _grid(info, sampling)
            assert {s.decoder for s in decode(info, grid)} == {"pyav"}
            assert {s.decoder for s in decode(info, grid, stop_cell=1)} == {"pyav"}


def test_damage_of_a_video_too_large_for_decord_is_noticed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_decord, "AHEAD_BYTES", 100_000)
    whole = scan_video(str(write(CLIPS["many_keys.mp4"], tmp_path)))
    grid = _grid(whole, Sampling(fps=Fraction(25)))
    right = _pixels(list(decode(whole, grid)))
    for info in _smeared(tmp_path, CLIPS["many_keys.mp4"])[:3]:
        got: list[Frames] = []
        with pytest.raises(MediaError, match="patching pictures"):
            _keep(got, decode(info, grid, decoder="decord"))
        assert all(np.array_equal(s.pixels, right[2 * s.first_cell :][: len(s.pixels)]) for s in got)


def test_decord_is_left_where_its_errors_cannot_be_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_decord, "listening", lambda _: listening(None))
    info = scan_video(str(write(CLIPS["cfr.mp4"], tmp_path)))
    grid = _grid(info, Sampling())
    assert {s.decoder for s in decode(info, grid)} == {"pyav"}
    with pytest.raises(MediaError, match="cannot be heard") as raised:
        next(decode(info, grid, decoder="decord"))
    assert raised.value.kind == "decoder_unfit"


def test_decord_is_left_where_its_memory_is_not_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CLIPS["bframes.mp4"]
    info = scan_video(str(write(clip, tmp_path)))
    grid = _grid(info, Sampling(fps=Fraction(25)))
    whole = list(decode(info, grid))
    monkeypatch.setattr(decode_decord, "AHEAD_BYTES", 100_000)
    assert {s.decoder for s in decode(info, grid)} == {"pyav"}
    # Asked for by name it is used all the same, with a new reader for each group of frames.
    again = list(decode(info, grid, decoder="decord"))
    assert {s.decoder for s in again} == {"decord"}
    assert np.array_equal(_pixels(again), _pixels(whole))


def test_frames_before_an_edit_list_are_decoded_but_not_shown(tmp_path: Path) -> None:
    # The muxer cuts the 25 frames before 0 away, in the middle of a group of pictures.
    clip = replace(CLIPS["cfr.mp4"], name="edited.mp4", times_ms=even(60, start_ms=-1000))
    info = scan_video(str(write(clip, tmp_path)))
    for decoder in ("auto", "pyav"):
        segments = list(decode(info, _grid(info, Sampling(fps=Fraction(5))), decoder=decoder))
        assert _indices(segments) == _filled([25, 30, 35, 40, 45, 50, 55])


def test_rotation_and_native_size(tmp_path: Path) -> None:
    for name in ("rotated90.mp4", "rotated180.mp4", "rotated270.mov"):
        clip = CLIPS[name]
        info = scan_video(str(write(clip, tmp_path)))
        grid = _grid(info, Sampling(), frame_hw=(info.height, info.width))
        assert _indices(list(decode(info, grid))) == _filled(expected(clip))


def test_wrong_arguments(tmp_path: Path) -> None:
    info = scan_video(str(write(CLIPS["cfr.mp4"], tmp_path)))
    grid = _grid(info, Sampling())
    with pytest.raises(ConfigError, match="auto, decord, pyav"):
        next(decode(info, grid, decoder="opencv"))
    with pytest.raises(ValueError, match="not within"):
        next(decode(info, grid, first_cell=3, stop_cell=9))
    with pytest.raises(ValueError, match="parts"):
        spans(info, grid, parts=0)


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no real clips here")
@pytest.mark.parametrize(
    ("name", "frames", "hw", "decoder"),
    [
        ("flipping_a_pancake.mkv", 310, (240, 426), "decord"),
        ("nasa_13013.mp4", 390, (270, 480), "decord"),
        ("bigbuckbunny.mp4", 132, (720, 1280), "decord"),
        ("carphone_pristine.mp4", 120, (144, 176), "decord"),
        ("h265_video.mp4", 10, (128, 128), "pyav"),
        ("rotated_90.mov", 3, (568, 320), "pyav"),
    ],
)
def test_real_clips(name: str, frames: int, hw: tuple[int, int], decoder: str) -> None:
    info = scan_video(str(VIDEOS / name))
    assert (len(info.pts), info.height, info.width, info.incomplete) == (frames, *hw, "")
    grid = _grid(info, Sampling(), frame_hw=hw)
    segments = list(decode(info, grid))
    assert {s.decoder for s in segments} == {decoder}
    assert sum(s.cells for s in segments) == grid.cells
    assert np.array_equal(_pixels(segments), _pixels(list(decode(info, grid, decoder="pyav"))))


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no real clips here")
def test_real_clip_that_breaks() -> None:
    info = scan_video(str(VIDEOS / "corrupted.mp4"))
    grid = _grid(info, Sampling(fps=Fraction(25)))
    segments = list(decode(info, grid))
    assert sum(s.cells for s in segments) == grid.cells
    assert 0 < sum(s.damaged for s in segments) < grid.frames
