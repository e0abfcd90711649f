"""What is not decoded changes no sampled picture, and is left out indeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from echoprune import container as module
from echoprune import decode_pyav
from echoprune.container import open_video, packets_of, whole_frames
from echoprune.data import IntArray, VideoInfo
from echoprune.decode import decode, spans
from echoprune.needed import NOTHING, Needed
from echoprune.probe import scan_video
from echoprune.sample import Sampling, time_grid
from tests.clips import CLIPS, Clip, Pixels, damage, draw, even, read_index, write

FOUR_S = even(100)
MORE = (
    Clip("pyramid.mp4", even(250), gop=50, options={"bf": "7", "x264-params": "b-pyramid=normal:b-adapt=0"}),
    Clip("strict.mp4", even(250), gop=25, options={"bf": "5", "x264-params": "b-pyramid=strict:ref=6"}),
    Clip("no_b.mp4", even(250), gop=25, options={"bf": "0"}),
    Clip("weighted.mp4", even(200), gop=40, options={"bf": "3", "x264-params": "weightp=2:weightb=1"}),
    Clip("field.mp4", FOUR_S, options={"bf": "3", "x264-params": "tff=1"}, height=96),
    Clip("layers.mp4", FOUR_S, codec="libx265", options={"x265-params": "log-level=none:temporal-layers=2:bframes=4"}),
    Clip("lossless.mkv", FOUR_S, codec="ffv1"),
)  # fmt: skip
EVERY = CLIPS | {clip.name: clip for clip in MORE}


def sampled_at(info: VideoInfo, fps: Fraction) -> IntArray:
    grid = time_grid(
        info, Sampling(fps=fps), frame_hw=(48, 64), grid_hw=(2, 2), cell_frames=2, segment_cells=3
    )
    return np.unique(grid.frame_pts)


def pictures(info: VideoInfo, wanted: IntArray) -> list[tuple[int, Pixels, int]]:
    return list(decode_pyav.pictures(info, wanted))


def decoded(info: VideoInfo, sampled: IntArray) -> list[int]:
    """Times of the frames that the decoder gives."""
    with open_video(info.uri) as container:
        stream = container.streams[info.stream_index]
        stream.codec_context.thread_count = 1
        needed = Needed(info, sampled).begin(bytes(stream.codec_context.extradata or b""))
        return [int(frame.pts) for frame in whole_frames(container, stream, needed=needed)]


@pytest.mark.parametrize("clip", EVERY.values(), ids=lambda clip: clip.name)
def test_pictures_are_those_of_decoding_every_frame(clip: Clip, tmp_path: Path) -> None:
    info = scan_video(str(write(clip, tmp_path)))
    rates = [Fraction(1, 2), Fraction(2), Fraction(7), Fraction(25)]
    for wanted in [*(sampled_at(info, fps) for fps in rates), info.pts[-1:], info.pts[3::31]]:
        if len(wanted) == 0:
            continue
        every = pictures(replace(info, one_packet_each=False), wanted)
        assert [int(pts) for pts in wanted] == [pts for pts, _, _ in every]
        for (pts, picture, hurt), (_, expected, _) in zip(pictures(info, wanted), every, strict=True):
            assert np.array_equal(picture, expected) and not hurt, pts
        if info.one_packet_each:
            assert set(wanted.tolist()) <= set(decoded(info, wanted)) <= set(info.pts.tolist())


def test_of_mpeg2_too(tmp_path: Path) -> None:
    # Its encoder takes no clock of milliseconds, as `write` has.
    path = tmp_path / "mpeg2.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"bf": "0", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(100):
            frame = av.VideoFrame.from_ndarray(draw(index, width=128, height=96), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = scan_video(str(path))
    assert info.codec == "mpeg2video" and info.one_packet_each and len(info.cut_pts) > 3
    for step in (7, 12, 50):
        found = pictures(info, info.pts[::step])
        assert [read_index(picture) for _, picture, _ in found] == list(range(0, 100, step))
    assert len(decoded(info, info.pts[::50])) < 30


def test_of_a_time_that_two_packets_have_everything_is_decoded(tmp_path: Path) -> None:
    # A sample counted twice would leave out what the next one refers to.
    source = write(Clip("source.mp4", even(200), gop=50, options={"bf": "0"}), tmp_path)
    with av.open(str(source)) as whole, av.open(str(tmp_path / "twice.mkv"), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        before = None
        for index, packet in enumerate(whole.demux(whole.streams.video[0])):
            if packet.size == 0:
                continue
            if index == 111:
                packet.pts = packet.dts = before
            before = packet.pts
            packet.stream = stream
            container.mux(packet)
    info = scan_video(str(tmp_path / "twice.mkv"))
    assert len(info.pts) == 199 and not info.one_packet_each
    found = pictures(info, info.pts[[110, 120, 145]])
    assert [read_index(picture) for _, picture, _ in found] == [110, 121, 146]


def test_hevc_that_numbers_its_pictures_on_begins_anew(tmp_path: Path) -> None:
    # No IDR but CRA pictures, whose number follows from the last one decoded: 16 of them, and samples 16 k apart.
    numbered = "log-level=none:keyint=16:min-keyint=16:log2-max-poc-lsb=4:bframes=0:scenecut=0:open-gop=1"
    for name in ("numbered.mp4", "numbered.ts"):
        clip = Clip(name, even(200), codec="libx265", gop=16, options={"x265-params": numbered})
        info = scan_video(str(write(clip, tmp_path)))
        assert info.one_packet_each and len(info.cut_pts) == 13
        for step in (25, 40, 48, 64):
            found = pictures(info, info.pts[1::step])
            assert [read_index(picture) for _, picture, _ in found] == list(range(1, 200, step))


def test_few_samples_take_few_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip("long.mp4", even(2000), gop=25, options={"bf": "3", "preset": "ultrafast"})
    info = scan_video(str(write(clip, tmp_path)))
    read = []

    def counted(*given: Any) -> Iterator[Any]:
        for packet in packets_of(*given):
            read.append(packet)
            yield packet

    monkeypatch.setattr(module, "packets_of", counted)
    assert len(pictures(info, info.pts[:1])) == 1 and len(read) <= 5
    read.clear()
    # From the keyframe before each, and no farther than it takes to know that nothing more is needed.
    assert len(pictures(info, info.pts[10::500])) == 4 and len(read) <= 4 * 15


def test_interlaced_video_and_codecs_with_hidden_packets_are_decoded_whole(tmp_path: Path) -> None:
    for name in ("vp8.webm", "mpeg4.avi", "mpeg4_bframes.avi"):
        assert not scan_video(str(write(CLIPS[name], tmp_path))).one_packet_each
    assert not scan_video(str(write(EVERY["field.mp4"], tmp_path))).one_packet_each


def test_of_h264_half_the_frames_are_left_out_and_of_hevc_those_behind_the_last_sample(
    tmp_path: Path,
) -> None:
    for name in ("pyramid.mp4", "strict.mp4", "bframes.mp4"):
        info = scan_video(str(write(EVERY[name], tmp_path)))
        assert len(decoded(info, sampled_at(info, Fraction(2)))) < 0.6 * len(info.pts)
    # A keyframe every 25 frames, and 12 frames on the second sample: the rest of each second is left out.
    info = scan_video(str(write(EVERY["no_b.mp4"], tmp_path)))
    assert len(info.cut_pts) == 10
    assert decoded(info, info.cut_pts) == info.cut_pts.tolist()
    kept = decoded(info, sampled_at(info, Fraction(2)))
    assert len(kept) == 10 * 13
    # A run without a sample is not decoded at all.
    assert decoded(info, info.pts[30:31]) == info.pts[25:31].tolist()
    hevc = Clip("keys.mp4", even(100), gop=20, codec="libx265", options={"x265-params": "log-level=none:open-gop=0:keyint=20"})  # fmt: skip
    info = scan_video(str(write(hevc, tmp_path)))
    assert len(info.cut_pts) == 5 and decoded(info, info.cut_pts) == info.cut_pts.tolist()


def test_a_picture_that_does_not_come_is_decoded_for_with_every_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = scan_video(str(write(CLIPS["many_keys.mp4"], tmp_path)))
    wanted = info.pts[::10]
    whole = Needed.begin
    for lost in (0, 100, 240):

        def begin(self: Needed, extradata: bytes, missing: int = int(info.pts[lost])) -> Callable[[Any], str]:
            of = whole(self, extradata)
            return lambda packet: NOTHING if packet.pts == missing else of(packet)

        monkeypatch.setattr(Needed, "begin", begin)
        found = pictures(info, wanted)
        assert [read_index(picture) for _, picture, _ in found] == list(range(0, 250, 10))
        assert [pts for pts, _, _ in found] == wanted.tolist() and not any(hurt for _, _, hurt in found)


@pytest.mark.parametrize("at", [0.15, 0.3, 0.52, 0.71, 0.9])
@pytest.mark.parametrize("name", ["many_keys.mp4", "pyramid.mp4"])
def test_of_a_damaged_file_the_same_pictures_are_marked_wherever_decoding_begins(
    name: str, at: float, tmp_path: Path
) -> None:
    info = scan_video(
        str(damage(write(EVERY[name], tmp_path), tmp_path / f"broken {name}", at=at, length=60))
    )
    grid = time_grid(info, Sampling(fps=Fraction(5)), frame_hw=(48, 64), grid_hw=(2, 2), cell_frames=2, segment_cells=1)  # fmt: skip
    whole = list(decode(info, grid, decoder="pyav"))
    for parts in (2, 4):
        cut = spans(info, grid, parts=parts, decoder="pyav")
        assert len(cut) > 1
        joined = [f for a, b in cut for f in decode(info, grid, decoder="pyav", first_cell=a, stop_cell=b)]
        assert [f.damaged for f in joined] == [f.damaged for f in whole]
