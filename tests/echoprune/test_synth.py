from pathlib import Path

import av
import numpy as np
import pytest

from echoprune.errors import ConfigError
from echoprune.scene import draw_frame, plan_scene
from echoprune.synth import ENCODINGS, SynthVideo, render_archive

SECONDS = 6.0
SIZE = (128, 96)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> list[SynthVideo]:
    out = tmp_path_factory.mktemp("synth") / "made"
    return render_archive(out, videos=len(ENCODINGS), seconds=SECONDS, seed=7, size=SIZE)


def read(video: SynthVideo) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(video.path)) as container:
        frames = list(container.decode(video=0))
    turned = [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4) for frame in frames]
    return [float(frame.pts * frame.time_base) for frame in frames], turned


def scene_of(index: int):
    rng = np.random.default_rng([7, index])
    drift_px = 10.0 if index == 1 else 0.0
    return plan_scene(rng, seconds=SECONDS, size=SIZE, drift_px=drift_px)


def test_files_are_there_and_nothing_else(archive: list[SynthVideo]) -> None:
    folder = archive[0].path.parent
    assert sorted(folder.iterdir()) == sorted(video.path for video in archive)


@pytest.mark.parametrize(
    ("index", "codec"),
    list(enumerate(["h264", "h264", "h264", "hevc", "vp9", "h264"])),
    ids=str,
)
def test_files_are_what_they_say(archive: list[SynthVideo], index: int, codec: str) -> None:
    video = archive[index]
    with av.open(str(video.path)) as container:
        assert container.streams.video[0].codec_context.name == codec
        rotation = next(container.decode(video=0)).rotation
    assert rotation % 360 == video.encoding.rotation
    times, frames = read(video)
    assert {frame.shape for frame in frames} == {(SIZE[1], SIZE[0], 3)}
    assert times[0] == 0.0
    assert times[-1] == pytest.approx(SECONDS - 1 / video.encoding.fps, abs=1e-3)
    gaps = set(np.round(np.diff(times) * video.encoding.fps).astype(int).tolist())
    assert (gaps > {1}) if video.encoding.vfr else (gaps == {1})


@pytest.mark.parametrize("index", range(6))
def test_files_show_the_scene_upright_at_their_times(archive: list[SynthVideo], index: int) -> None:
    times, frames = read(archive[index])
    scene = scene_of(index)
    assert archive[index].objects == scene.objects
    for position in range(0, len(times), 10):
        wanted = draw_frame(scene, times[position]).astype(float)
        # Half-resolution colour and quantisation cost up to about 4 levels on average; a wrong turn costs 20.
        assert np.abs(frames[position] - wanted).mean() < 6


def test_same_seed_gives_the_same_bytes(archive: list[SynthVideo], tmp_path: Path) -> None:
    again = render_archive(tmp_path, videos=len(ENCODINGS), seconds=SECONDS, seed=7, size=SIZE)
    assert [video.objects for video in again] == [video.objects for video in archive]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(again, archive, strict=True))
    other = render_archive(tmp_path, videos=1, seconds=SECONDS, seed=8, size=SIZE)
    assert other[0].path.read_bytes() != archive[0].path.read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scene: object, time_s: float) -> np.ndarray:
        if time_s > 1:
            raise RuntimeError("stopped in the middle")
        return draw_frame(scene, time_s)

    monkeypatch.setattr("echoprune.synth.draw_frame", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        render_archive(tmp_path, videos=1, seconds=SECONDS, seed=0, size=SIZE)
    assert not list(tmp_path.iterdir())


def test_refuses_no_videos(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="videos is 0"):
        render_archive(tmp_path, videos=0, seconds=SECONDS, seed=0)
