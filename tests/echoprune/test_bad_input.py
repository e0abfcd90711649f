"""Files that are no videos, or only parts of one: the class of each failure, and what is rescued."""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from echoprune.data import VideoInfo
from echoprune.decode import decode
from echoprune.decode_pyav import pictures
from echoprune.errors import MediaError
from echoprune.index import index_video
from echoprune.models import load_encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.probe import probe_header, scan_video
from echoprune.sample import Sampling, time_grid
from tests.clips import CLIPS, Clip, cut, damage, even, expected, read_index, write, write_sound
from tests.stores import settings


def _missing(folder: Path) -> Path:
    return folder / "none.mp4"


def _directory(folder: Path) -> Path:
    return folder


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def _holding(name: str, data: bytes):
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    make.__name__ = name
    return make


def _without_moov(folder: Path) -> Path:
    return cut(write(CLIPS["bframes.mp4"], folder), folder / "no moov.mp4", keep=0.5)


def _sound(folder: Path) -> Path:
    return write_sound(folder / "sound.mp4")


def _playlist(folder: Path) -> Path:
    path = write(CLIPS["stream.ts"], folder)
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{path.name}'\n")
    return folder / "list.mp4"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_missing, "missing"),
        (_directory, "not_a_file"),
        (_pipe, "not_a_file"),
        (_holding("empty.mp4", b""), "empty"),
        (_holding("text.mp4", b"no video\n" * 99), "not_a_video"),
        (_holding("text.txt", b"no video\n" * 99), "not_a_video"),
        (_holding("noise.mkv", bytes(range(256)) * 40), "not_a_video"),
        (_without_moov, "not_a_video"),
        (_sound, "no_video_stream"),
    ],
)
def test_class_of_failure(make, kind: str, tmp_path: Path) -> None:
    uri = str(make(tmp_path))
    for probe in (scan_video, probe_header):
        with pytest.raises(MediaError) as raised:
            probe(uri)
        assert (raised.value.stage, raised.value.kind) == ("probe", kind)
        assert str(raised.value).startswith(uri)
        assert "\n" not in str(raised.value)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.kind) == (str(raised.value), kind)


def test_a_file_does_not_pull_in_others(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as raised:
        scan_video(str(_playlist(tmp_path)))
    assert raised.value.kind == "not_a_video"


def test_permission_denied(tmp_path: Path) -> None:
    path = write(CLIPS["cfr.mp4"], tmp_path)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything: be nobody for a moment
    try:
        with pytest.raises(MediaError, match="permission denied") as raised:
            scan_video(str(path))
    finally:
        os.seteuid(user)
    assert raised.value.kind == "unreadable"


def test_names_of_any_bytes_and_with_a_colon(tmp_path: Path) -> None:
    clip = write(CLIPS["cfr.mp4"], tmp_path)
    for name in (b"http: a.mp4", b"b %d \xff.mp4", b"-c.mp4"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(clip.read_bytes())
        got, kind = _rescued(scan_video(str(path)))
        assert (len(got), kind) == (20, "")


def _rescued(info: VideoInfo) -> tuple[list[int], str]:
    """The indices that decode at 5 frames a second, and the class of the error that ends them."""
    grid = time_grid(
        info, Sampling(fps=Fraction(5)), frame_hw=(48, 64), grid_hw=(2, 2), cell_frames=1, segment_cells=3
    )
    got: list[int] = []
    try:
        for frames in decode(info, grid):
            got.extend(read_index(picture) for picture in frames.pixels)
    except MediaError as error:
        assert "\n" not in str(error)
        return got, error.kind
    return got, ""


@pytest.mark.parametrize(
    ("name", "noticed"),
    [
        ("bframes.mp4", "damaged"),
        ("bframes.mkv", "header promises"),
        ("mpeg4.avi", "header promises"),
        ("fragmented.mp4", "damaged"),
        ("stream.ts", ""),  # no header that promises anything
    ],
)
def test_cut_in_the_middle(name: str, noticed: str, tmp_path: Path) -> None:
    clip = CLIPS[name]
    if name == "bframes.mp4":
        clip = replace(clip, muxer={"movflags": "faststart"})
    whole = write(clip, tmp_path)
    info = scan_video(str(cut(whole, tmp_path / f"cut {name}", keep=0.6)))
    assert noticed in info.incomplete
    assert bool(noticed) == bool(info.incomplete)
    got, kind = _rescued(info)
    assert kind == ""
    assert 3 <= len(got) < len(expected(clip, fps=Fraction(5)))
    want = expected(clip, fps=Fraction(5))[: len(got)]
    assert got[:-1] == want[:-1]
    # The lost packet may have been a frame between two that are there: the one before it stays on screen.
    assert 0 <= want[-1] - got[-1] < 3


@pytest.mark.parametrize("at", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["bframes.mp4", "many_keys.mp4", "open_gop_h264.mp4", "ten_bit.mp4"])
def test_noise_in_the_middle(name: str, at: float, tmp_path: Path) -> None:
    """Decoding goes on behind it. What is wrong is marked as damaged, and all up to the next clean keyframe, which open groups lack."""
    clip = CLIPS[name]
    info = scan_video(str(damage(write(clip, tmp_path), tmp_path / "noise.mp4", at=at)))
    found = [(read_index(picture), damaged) for _, picture, damaged in pictures(info, info.pts)]
    marked = [index for index, (_, damaged) in enumerate(found) if damaged]
    assert [got for got, damaged in found if not damaged] == [
        index for index in range(len(clip.times_ms)) if index not in marked
    ]
    assert marked and (max(marked) - min(marked) < 3 * clip.gop or name == "open_gop_h264.mp4")
    assert min(marked) / len(found) == pytest.approx(at, abs=0.3)
    got, kind = _rescued(info)
    assert len(got) == len(expected(clip, fps=Fraction(5))) and kind == ""


def test_noise_to_the_end(tmp_path: Path) -> None:
    clip = CLIPS["av1.mp4"]
    got, kind = _rescued(scan_video(str(damage(write(clip, tmp_path), tmp_path / "noise.mp4", at=0.8))))
    assert kind == "decode_failed"
    assert 6 <= len(got) < 10
    assert got == expected(clip, fps=Fraction(5))[: len(got)]


def test_patched_frames_are_counted(tmp_path: Path) -> None:
    path = write(CLIPS["bframes.mp4"], tmp_path)
    patched = 0
    for eighth in range(1, 8):
        info = scan_video(str(damage(path, tmp_path / "byte.mp4", at=eighth / 8, length=1)))
        grid = time_grid(info, Sampling(), frame_hw=(48, 64), grid_hw=(2, 2), cell_frames=2, segment_cells=1)
        try:
            patched += sum(frames.damaged for frames in decode(info, grid, decoder="pyav"))
        except MediaError as error:
            assert error.kind == "decode_failed"
    assert patched > 0
    info = scan_video(str(path))
    assert sum(frames.damaged for frames in decode(info, grid, decoder="pyav")) == 0


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_video_with_patched_frames_is_partial(decoder: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    encoder = load_encoder(str(folder), segment_cells=2, max_pixels=56 * 56)
    config = settings(dim=encoder.dim, segment_cells=2, max_pixels=56 * 56, keep="all", fps="5")
    whole = write(CLIPS["bframes.mp4"], tmp_path)
    with index_video(
        str(whole), encoder=encoder, settings=config, decoder=decoder, spill_dir=tmp_path
    ) as video:
        assert video.error is None
        cells = video.cells
    smeared = damage(whole, tmp_path / "smeared.mp4", at=0.6, length=1)
    with index_video(
        str(smeared), encoder=encoder, settings=config, decoder=decoder, spill_dir=tmp_path
    ) as video:
        assert (video.cells, video.decoder) == (cells, "pyav")
        assert video.error is not None
        assert (video.error.stage, video.error.kind) == ("decode", "damaged")
        found = re.match(
            r"frames patched by the decoder: (\d+), at about ([\d.]+) to ([\d.]+) s;", str(video.error)
        )
    assert found is not None
    assert int(found[1]) >= 1
    # The byte changed is at 60 % of the pictures of 4 s; segments are 0.8 s long.
    assert 1.6 <= float(found[2]) < float(found[3]) <= 4.0


def test_a_video_that_broke_off_or_jumps_is_partial(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    encoder = load_encoder(str(folder), segment_cells=2, max_pixels=56 * 56)
    config = settings(dim=encoder.dim, segment_cells=2, max_pixels=56 * 56, keep="all", fps="5")
    broken = cut(write(CLIPS["bframes.mkv"], tmp_path), tmp_path / "cut.mkv", keep=0.6)
    jump = write(Clip("jump.mkv", even(50) + even(10, start_ms=10**10)), tmp_path)
    for path, kind, longest_s in ((broken, "truncated", 3.0), (jump, "time_jump", 2.1)):
        with index_video(str(path), encoder=encoder, settings=config, spill_dir=tmp_path) as video:
            assert video.error is not None
            assert (video.error.stage, video.error.kind) == ("probe", kind)
            assert 1.0 < video.covered_s < longest_s


def test_a_lost_packet_of_a_transport_stream_hides_the_frames_that_need_it(tmp_path: Path) -> None:
    clip = CLIPS["stream.ts"]
    data = write(clip, tmp_path).read_bytes()
    (tmp_path / "lossy.ts").write_bytes(data[: 188 * 100] + data[188 * 101 :])
    info = scan_video(str(tmp_path / "lossy.ts"))
    assert "packets are damaged" in info.incomplete
    got, kind = _rescued(info)
    want = expected(clip, fps=Fraction(5))
    assert kind == ""
    assert len(got) == len(want)
    # Every picture is a whole one; those of the damaged group of 24 repeat the last good one before it.
    assert all(a <= b < a + 24 for a, b in zip(got, want, strict=True))
    assert sum(a != b for a, b in zip(got, want, strict=True)) in range(1, 6)


def test_the_first_frame_broken(tmp_path: Path) -> None:
    path = damage(write(CLIPS["bframes.mp4"], tmp_path), tmp_path / "first.mp4", at=0.0, length=1500)
    with pytest.raises(MediaError) as raised:
        scan_video(str(path))
    assert raised.value.kind in {"decode_failed", "no_frames"}
