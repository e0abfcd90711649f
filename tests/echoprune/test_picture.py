from pathlib import Path

import av
import numpy as np
import pytest

from echoprune import page
from echoprune.picture import draw_kept, draw_novelty, draw_video, fade_pruned

T, H, W = 6, 48, 64


def colour(hex_code: str) -> np.ndarray:
    return np.array([int(hex_code[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def count(image: np.ndarray, hex_code: str) -> int:
    return int((image == colour(hex_code)).all(axis=2).sum())


@pytest.fixture
def frames() -> np.ndarray:
    return np.broadcast_to(np.array([200, 30, 160], np.uint8), (T, H, W, 3)).copy()


@pytest.fixture
def numbers() -> dict[str, np.ndarray]:
    return {
        "times_s": np.arange(10) * 0.5,
        "mean_novelty": np.r_[np.nan, np.linspace(-2, -1, 9)],
        "kept_per_cell": np.array([12, 1, 2, 3, 4, 12, 4, 3, 2, 1]),
        "anchor": np.array([True] + [False] * 4 + [True] + [False] * 4),
    }


def test_fade_keeps_kept_pixels_and_greys_the_rest() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 7, 10, 3), dtype=np.uint8)  # 7 and 10 are no multiples of 3 and 4
    kept = rng.random((2, 3, 4)) < 0.5
    faded = fade_pruned(frames, kept)
    for t, y, x in np.ndindex(2, 7, 10):
        pixel = faded[t, y, x]
        if kept[t, y * 3 // 7, x * 4 // 10]:
            assert pixel.tolist() == frames[t, y, x].tolist()
        else:
            assert pixel.max() == pixel.min() >= 170


def test_contact_sheet_shows_kept_tokens_in_colour(tmp_path: Path, frames: np.ndarray) -> None:
    none, some = np.zeros((T, 3, 4), bool), np.zeros((T, 3, 4), bool)
    some[:, 1, 2] = True
    areas = []
    for kept in (none, some, ~none):
        draw_kept(frames, kept, np.arange(T) * 1.0, tmp_path / "kept.png", title="a clip")
        areas.append(count(read(tmp_path / "kept.png"), "#C81EA0"))
    assert areas[0] == 0
    assert areas[1] == pytest.approx(areas[2] / 12, rel=0.1)


def test_anchors_have_a_frame_of_their_own(tmp_path: Path, frames: np.ndarray) -> None:
    kept, anchor = np.zeros((T, 3, 4), bool), np.array([True] + [False] * (T - 1))
    draw_kept(frames, kept, np.arange(T) * 1.0, tmp_path / "with.png", title="", anchor=anchor)
    draw_kept(frames, kept, np.arange(T) * 1.0, tmp_path / "without.png", title="")
    assert count(read(tmp_path / "with.png"), page.ANCHOR_COLOUR) > 1000
    assert count(read(tmp_path / "without.png"), page.ANCHOR_COLOUR) == 0


def test_novelty_picture_has_line_bars_and_anchors(tmp_path: Path, numbers: dict[str, np.ndarray]) -> None:
    draw_novelty(**numbers, tokens_per_cell=12, path=tmp_path / "novelty.png", title="a clip")
    image = read(tmp_path / "novelty.png")
    assert count(image, page.NOVELTY_COLOUR) > 500
    # Two anchors of 12 tokens, and 20 tokens chosen: bars in the same proportion.
    anchors, chosen = count(image, page.ANCHOR_COLOUR), count(image, page.KEPT_COLOUR)
    assert anchors / chosen == pytest.approx(24 / 20, rel=0.1)


def test_video_picture_holds_both_and_is_the_same_each_time(
    tmp_path: Path, frames: np.ndarray, numbers: dict[str, np.ndarray]
) -> None:
    kept = np.ones((T, 3, 4), bool)
    for name in ("one.png", "two.png"):
        draw_video(frames, kept, shown_cells=np.arange(T), **numbers, path=tmp_path / name, title="a clip")
    image = read(tmp_path / "one.png")
    assert count(image, "#C81EA0") > 10_000
    assert count(image, page.NOVELTY_COLOUR) > 500
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("title", ["costs $5 or $x_{", "日本語 🎬.mp4", "x" * 500, "", "line\nbreak"])
def test_any_file_name_can_be_the_title(tmp_path: Path, frames: np.ndarray, title: str) -> None:
    draw_kept(frames, np.ones((T, 3, 4), bool), np.arange(T) * 1.0, tmp_path / "kept.png", title=title)
    assert read(tmp_path / "kept.png").shape[1] == round(page.WIDTH_IN * page.DPI)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cells", [1, 2, 600, 601, 20_000])
def test_any_number_of_cells_can_be_drawn(tmp_path: Path, cells: int) -> None:
    draw_novelty(
        np.arange(cells) * 1.0,
        np.r_[np.nan, np.full(cells - 1, -2.0)],
        kept_per_cell=np.full(cells, 3),
        anchor=np.arange(cells) % 30 == 0,
        tokens_per_cell=3,
        path=tmp_path / "novelty.png",
    )
    assert count(read(tmp_path / "novelty.png"), page.ANCHOR_COLOUR) > 0


def test_shapes_that_disagree_are_refused(
    tmp_path: Path, frames: np.ndarray, numbers: dict[str, np.ndarray]
) -> None:
    kept = np.ones((T, 3, 4), bool)
    with pytest.raises(ValueError, match=r"kept_mask must be bool \(6, h, w\)"):
        draw_kept(frames, kept[1:], np.arange(T) * 1.0, tmp_path / "x.png", title="")
    with pytest.raises(ValueError, match="frames must be uint8"):
        draw_kept(frames.astype(float), kept, np.arange(T) * 1.0, tmp_path / "x.png", title="")
    with pytest.raises(ValueError, match="must all be"):
        draw_novelty(**{**numbers, "anchor": np.zeros(3, bool)}, tokens_per_cell=12, path=tmp_path / "x.png")
    with pytest.raises(ValueError, match="indices below 10"):
        draw_video(frames, kept, shown_cells=np.arange(T) + 5, **numbers, path=tmp_path / "x.png", title="")
    assert not list(tmp_path.iterdir())
