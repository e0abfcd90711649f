"""Tables and picture of an evaluation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from echoprune.errors import ConfigError
from echoprune.evaluation import Outcome, ResultRow, question_groups, result_rows
from echoprune.evaluation_grid import make_grid
from echoprune.evaluation_picture import COLOURS, draw_evaluation, spread
from echoprune.evaluation_table import main_table, markdown, short_tables

LABELS: dict[str, str | None] = {f"q{i}": ("event_order", "static_kind")[i % 2] for i in range(8)}


def result(budgets: list[str], *, frames: list[int] | None = None) -> tuple[list[ResultRow], str]:
    """Rows, and their Markdown, of a run in which `anchored` is always right and `uniform` on static questions."""
    grid = make_grid(
        policies=["anchored", "uniform"],
        frames=frames or [16, 32, 96],
        budgets=budgets,
        keeps=["all", "0.25"],
        needs_all={"uniform"},
        fits=lambda frames, keep, budget: frames == 16,
    )
    found = {
        shown: {
            name: Outcome(
                own.policy != "uniform" or label == "static_kind",
                False,
                60,
                70,
                label == "event_order" or None,
            )
            for name, label in LABELS.items()
        }
        for shown, own in grid.shown.items()
    }
    rows = result_rows(found, question_groups(LABELS), reference="anchored")
    return rows, markdown(rows, grid.left_out)


def test_the_main_table_has_the_most_frames_and_the_dense_run_that_fits() -> None:
    rows, text = result(["64", "all"])
    header, *lines = main_table(rows)
    assert header == [
        "policy",
        "frames",
        "budget",
        "keep",
        "event",
        "static",
        "all",
        "difference",
        "to",
        "evidence",
        "tokens",
    ]
    assert [tuple(line[:4]) for line in lines] == [
        ("dense", "16", "64", "all"), ("anchored", "96", "64", "all"), ("uniform", "96", "64", "all"),
        ("dense", "96", "all", "all"), ("dense", "16", "64", "0.25"), ("anchored", "96", "64", "0.25"),
        ("dense", "96", "all", "0.25"),
    ]  # fmt: skip
    uniform = dict(zip(header, lines[2], strict=True))
    assert uniform["event"].startswith("0.0 (0.0 to ") and uniform["all"].startswith("50.0 (")
    assert uniform["difference"].startswith("-50.0 (-") and uniform["to"] == "anchored"
    assert (uniform["evidence"], uniform["tokens"]) == ("100.0", "60")
    assert [line[8] for line in lines] == [
        "anchored, 96 frames", "", "anchored", "anchored, budget 64", "anchored, 96 frames", "keep all", "keep all",
    ]  # fmt: skip
    assert "| uniform |  | 0.0 / 100.0 | 0.0 / 100.0 |" in text
    assert "By kind of question (event_order 4, static_kind 4)" in text
    assert text.rstrip().endswith("Left out: uniform needs all tokens, and the store keeps 0.25.")


def test_the_table_of_a_terminal_is_the_same_in_short() -> None:
    rows, _ = result(["64", "all"])
    tables = short_tables(rows, reach=True)
    assert list(tables) == [
        "budget 64, keep all",
        "budget all, keep all",
        "budget 64, keep 0.25",
        "budget all, keep 0.25",
    ]
    assert tables["budget 64, keep all"][3][:3] == ["uniform", "96", "0.0 ±49.0"]
    assert short_tables(rows, reach=False)["budget 64, keep all"][3][2:5] == ["0.0", "100.0", "50.0"]


@pytest.mark.parametrize(
    ("budgets", "frames"), [(["64", "all"], [16, 32, 96]), (["all"], [16]), (["64"], [96])]
)
def test_a_picture_whatever_there_is(tmp_path: Path, budgets: list[str], frames: list[int]) -> None:
    rows, _ = result(budgets, frames=frames)
    draw_evaluation(rows, tmp_path / "eval.png", reference="anchored")
    first = (tmp_path / "eval.png").read_bytes()
    assert first.startswith(b"\x89PNG") and len(first) > 5000
    draw_evaluation(rows, tmp_path / "eval.png", reference="anchored")
    assert (tmp_path / "eval.png").read_bytes() == first
    with pytest.raises(ConfigError, match="cannot write the picture"):
        draw_evaluation(rows, tmp_path / "no" / "eval.png", reference="anchored")


def test_a_line_that_is_the_same_as_the_references_is_seen_in_it(tmp_path: Path) -> None:
    """Of what stands still both policies know all; their panels are the right ones."""
    rows, _ = result(["64"])
    draw_evaluation(rows, tmp_path / "eval.png", reference="anchored")
    picture = imread(tmp_path / "eval.png")[..., :3]
    width = picture.shape[1]
    panel = picture[:, int(0.56 * width) : int(0.88 * width)]
    for colour in COLOURS[:2]:
        seen = (np.abs(panel - to_rgb(colour)).max(axis=2) < 0.05).any(axis=0)
        assert seen.mean() > 0.8, colour


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10).map(sorted))
def test_names_keep_their_order_and_distance(heights: list[float]) -> None:
    moved = spread(heights, step=0.06)
    assert all(b - a >= 0.06 - 1e-9 for a, b in itertools.pairwise(moved))
    assert min(moved) >= -1e-9 and max(moved) <= 1 + 1e-9
    if all(b - a >= 0.06 for a, b in itertools.pairwise(heights)):
        assert moved == pytest.approx(heights)
