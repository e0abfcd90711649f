"""Sampled instants against loops in exact fractions."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.data import TimeGrid, VideoInfo
from echoprune.errors import ConfigError, MediaError
from echoprune.sample import Sampling, parse_fps, time_grid


def _info(gaps: list[int], *, start: int = 0, time_base: Fraction = Fraction(1, 1000)) -> VideoInfo:
    pts = start + np.cumsum([0, *gaps[:-1]])
    return VideoInfo(
        uri="v.mp4",
        stream_index=0,
        container="mov",
        codec="h264",
        pix_fmt="yuv420p",
        width=64,
        height=48,
        rotation=0,
        time_base=time_base,
        pts=pts,
        cut_pts=pts[:1],
        end_pts=int(start + sum(gaps)),
        vfr=False,
    )


def _grid(info: VideoInfo, sampling: Sampling) -> TimeGrid:
    return time_grid(info, sampling, frame_hw=(28, 28), grid_hw=(1, 1), cell_frames=2, segment_cells=2)


def test_by_hand_on_a_variable_rate() -> None:
    # Shown at 0, 100, 900, 1000 ms; over at 1600.
    grid = _grid(_info([100, 800, 100, 600], start=7000), Sampling())
    assert grid.times_s.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert grid.frame_pts.tolist() == [7000, 7100, 8000, 8000]
    assert (grid.end_s, grid.cells) == (1.6, 2)


def test_an_instant_at_the_very_end_is_not_sampled() -> None:
    assert _grid(_info([500, 500]), Sampling()).times_s.tolist() == [0.0, 0.5]
    assert _grid(_info([500, 501]), Sampling()).times_s.tolist() == [0.0, 0.5, 1.0]


def test_one_frame_gives_one_sample() -> None:
    for sampling in (Sampling(), Sampling(frames=8), Sampling(max_frames=3)):
        assert _grid(_info([1]), sampling).frame_pts.tolist() == [0]


def test_max_frames_lowers_the_rate_and_covers_the_whole_video() -> None:
    info = _info([40] * 1000)  # 40 s
    assert _grid(info, Sampling(max_frames=80)).times_s.tolist() == [k / 2 for k in range(80)]
    assert _grid(info, Sampling(max_frames=16)).times_s.tolist() == [k * 2.5 for k in range(16)]


def test_frames_are_uniform_and_no_more_than_there_are() -> None:
    assert _grid(_info([40] * 1000), Sampling(frames=16)).times_s.tolist() == [k * 2.5 for k in range(16)]
    assert _grid(_info([40] * 5), Sampling(frames=16)).frame_pts.tolist() == [0, 40, 80, 120, 160]


def test_no_drift_over_three_hours_of_ntsc() -> None:
    info = _info([1001] * 323_676, time_base=Fraction(1, 30_000))
    grid = _grid(info, Sampling(fps=Fraction(30_000, 1001)))
    assert np.array_equal(grid.frame_pts, info.pts)
    assert grid.times_s[-1] == pytest.approx(323_675 * 1001 / 30_000, rel=1e-15)


@given(
    gaps=st.lists(st.integers(1, 700), min_size=1, max_size=60),
    start=st.integers(-5000, 5000),
    ticks=st.sampled_from([1000, 90_000, 12_800, 30_000]),
    fps=st.fractions(Fraction(1, 10), Fraction(60), max_denominator=1001),
    limit=st.none() | st.integers(1, 50),
)
def test_the_last_frame_at_or_before_each_instant(
    gaps: list[int], start: int, ticks: int, fps: Fraction, limit: int | None
) -> None:
    info = _info(gaps, start=start, time_base=Fraction(1, ticks))
    duration = Fraction(sum(gaps), ticks)
    instants = []
    while len(instants) / fps < duration:
        instants.append(len(instants) / fps)
    if limit is not None and len(instants) > limit:
        instants = [k * duration / limit for k in range(limit)]
    shown = [max(int(p) for p in info.pts if (int(p) - start) * info.time_base <= t) for t in instants]
    grid = _grid(info, Sampling(fps=fps, max_frames=limit))
    assert grid.frame_pts.tolist() == shown
    assert grid.times_s.tolist() == [float(t) for t in instants]


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": Fraction(0)},
        {"fps": Fraction(-1)},
        {"fps": Fraction(1001)},
        {"max_frames": 0},
        {"frames": 0},
        {"frames": 4, "max_frames": 4},
    ],
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give"):
        Sampling(**wrong)


def test_products_beyond_64_bits_are_exact() -> None:
    rate = Fraction(999_999_999_999_989, 999_999_999_999_999)
    info = _info([7 * 10**12] * 30, time_base=Fraction(1, 10**12 + 39))
    grid = _grid(info, Sampling(fps=rate))
    duration = Fraction(210 * 10**12, 10**12 + 39)
    instants = [k / rate for k in range(len(grid.times_s) + 1)]
    assert instants[-2] < duration <= instants[-1]
    assert grid.times_s.tolist() == [float(t) for t in instants[:-1]]
    assert grid.frame_pts.tolist() == [
        max(int(p) for p in info.pts if p * info.time_base <= t) for t in instants[:-1]
    ]


def test_millions_of_instants_take_a_moment_and_more_are_refused() -> None:
    month = _info([600_000] * 6 * 24 * 30)
    begun = time.monotonic()
    grid = _grid(month, Sampling())
    # 0.2 s; two lists of Python fractions took 12 s.
    assert time.monotonic() - begun < 4
    assert (grid.frames, grid.times_s[-1]) == (5_184_000, 2_591_999.5)
    with pytest.raises(
        MediaError, match=r"v\.mp4: 25,920,000 frames would be sampled of 2592000 s"
    ) as raised:
        _grid(month, Sampling(fps=Fraction(10)))
    assert (raised.value.stage, raised.value.kind) == ("probe", "too_long")
    assert _grid(month, Sampling(fps=Fraction(10), max_frames=4)).times_s.tolist() == [
        0,
        648e3,
        1296e3,
        1944e3,
    ]
    with pytest.raises(MediaError):
        _grid(_info([2**62]), Sampling())


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("2", Fraction(2)),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("2.", Fraction(2)),
        ("30000/1001", Fraction(30000, 1001)),
        ("1000", Fraction(1000)),
        ("0.123456789012345", Fraction(123456789012345, 10**15)),
    ],
)
def test_rates_as_written(text: str, rate: Fraction) -> None:
    assert parse_fps(text) == rate == parse_fps(str(parse_fps(text)))


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999",
        "1e3",
        "0",
        "0/5",
        "2/0",
        "-1",
        "1001",
        "nan",
        "inf",
        "",
        " 2",
        "2 fps",
        "9" * 10_000,
        "\u0662",
        "1_0",
    ],
)
def test_what_is_no_rate_is_one_line_at_once(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="--fps is") as raised:
        parse_fps(text)
    assert time.monotonic() - begun < 1
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200
