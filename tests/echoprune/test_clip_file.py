"""Scenes as files: each way of storing gives the pictures of the truth back, upright and at their times."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from echoprune.clip_file import ENCODINGS, Encoding, frame_times, read_comment, write_video
from echoprune.draw import Painter
from echoprune.probe import scan_video
from echoprune.scene import Scene, plan_scene

SECONDS = 6.0
SIZE = (128, 96)

each_encoding = pytest.mark.parametrize(
    "encoding", ENCODINGS, ids=[f"{e.codec}-{e.fps}{'-vfr' * e.vfr}{e.suffix}" for e in ENCODINGS]
)


def scene_of(seed: int = 7) -> Scene:
    return plan_scene(np.random.default_rng(seed), seconds=SECONDS, size=SIZE, task="drift")


def times_of(encoding: Encoding) -> np.ndarray:
    return frame_times(np.random.default_rng(1), seconds=SECONDS, encoding=encoding)


def read(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    turned = [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4) for frame in frames]
    return [float(frame.pts * frame.time_base) for frame in frames], turned


@each_encoding
def test_a_file_shows_the_scene_upright_at_its_times(encoding: Encoding, tmp_path: Path) -> None:
    path, scene, times = tmp_path / f"x{encoding.suffix}", scene_of(), times_of(encoding)
    write_video(path, scene, times_s=times, encoding=encoding, comment="which truth")
    shown_s, frames = read(path)
    assert np.allclose(shown_s, times, atol=1e-3)
    painter = Painter(scene)
    assert {frame.shape for frame in frames} == {(SIZE[1], SIZE[0], 3)}
    for index in range(0, len(times), 7):
        wanted = painter.frame(float(times[index])).astype(float)
        # Half-resolution colour, quantisation and grain cost up to about 4 levels on average; a wrong turn costs 20.
        assert np.abs(frames[index] - wanted).mean() < 6
    info = scan_video(str(path))
    assert (info.width, info.height, info.rotation) == (*SIZE, encoding.rotation)
    assert (info.vfr, info.incomplete) == (encoding.vfr, "")
    assert float((info.end_pts - info.pts[0]) * info.time_base) == pytest.approx(SECONDS, abs=0.05)
    assert read_comment(path) == "which truth"


def test_the_ways_of_storing_are_those_of_archives() -> None:
    assert {each.codec for each in ENCODINGS} == {"libx264", "libx265", "libvpx-vp9"}
    assert {each.suffix for each in ENCODINGS} == {".mp4", ".webm", ".mov"}
    assert min(each.fps for each in ENCODINGS) == 8 and max(each.fps for each in ENCODINGS) == 30
    assert any(each.vfr for each in ENCODINGS) and any(each.rotation for each in ENCODINGS)


@each_encoding
def test_frame_times_begin_at_zero_and_leave_out_a_third_if_they_vary(encoding: Encoding) -> None:
    times = frame_times(np.random.default_rng(0), seconds=100.0, encoding=encoding)
    gaps = np.round(np.diff(times) * encoding.fps).astype(int)
    assert times[0] == 0.0 and times[-1] == pytest.approx(100.0 - 1 / encoding.fps)
    assert np.allclose(times * encoding.fps, np.round(times * encoding.fps))
    if encoding.vfr:
        assert set(gaps.tolist()) > {1, 2} and len(times) / (100 * encoding.fps) == pytest.approx(
            2 / 3, abs=0.05
        )
    else:
        assert set(gaps.tolist()) == {1}


@each_encoding
def test_the_same_scene_gives_the_same_bytes(encoding: Encoding, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{encoding.suffix}" for name in "abc"]
    for path in paths:
        write_video(path, scene_of(), times_s=times_of(encoding), encoding=encoding)
    first, *others = (path.read_bytes() for path in paths)
    assert all(other == first for other in others)


def test_a_stopped_write_leaves_what_was_there(tmp_path: Path) -> None:
    path, encoding = tmp_path / "x.mp4", ENCODINGS[0]
    path.write_text("the one before")
    seen: list[str] = []

    def stop() -> None:
        seen.extend(each.name for each in tmp_path.iterdir() if each != path and not seen)
        if len(list(tmp_path.iterdir())) == 2 and len(seen) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, scene_of(), times_s=times_of(encoding), encoding=encoding, on_frame=stop)
    # While it is written its name is hidden, so that no index takes it.
    assert seen == [".x.unfinished.mp4"]
    assert [each.name for each in tmp_path.iterdir()] == ["x.mp4"] and path.read_text() == "the one before"


def test_comments_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert read_comment(tmp_path / "text.mp4") is None
    assert read_comment(tmp_path / "missing.mp4") is None
    write_video(tmp_path / "x.mp4", scene_of(), times_s=np.array([0.0]), encoding=ENCODINGS[0])
    assert read_comment(tmp_path / "x.mp4") == ""
