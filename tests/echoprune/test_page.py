from pathlib import Path

import pytest

from echoprune.errors import ConfigError
from echoprune.page import clock, fit_title, new_page, place_axes, write_png


@pytest.mark.parametrize(
    ("time_s", "tenths", "shown"),
    [
        (0, True, "0.0 s"),
        (12.54, True, "12.5 s"),
        (180, True, "0:03:00"),
        (12.5, False, "0:00:12"),
        (3725, False, "1:02:05"),
    ],
)
def test_clock(time_s: float, tenths: bool, shown: str) -> None:
    assert clock(time_s, tenths=tenths) == shown


def test_titles_are_cut_in_the_middle_and_lacking_glyphs_boxed() -> None:
    assert fit_title("clip.mp4") == "clip.mp4"
    long = fit_title("a" * 200 + "b" * 200)
    assert len(long) <= 90
    assert long.startswith("aaa")
    assert long.endswith("bbb")
    assert fit_title("é日") == "é□"


def test_axes_are_placed_from_the_upper_left_corner() -> None:
    place = place_axes(new_page(6.0), left=1.2, top=1.5, width=6.0, height=3.0).get_position()
    assert place.bounds == pytest.approx((0.1, 0.25, 0.5, 0.5))


def test_a_picture_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    for path in (tmp_path / "nodir" / "x.png", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot write the picture .*: (No such file|Is a directory)"):
            write_png(new_page(1.0), path)
