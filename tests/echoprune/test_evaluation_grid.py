"""Which settings an evaluation runs, and which it need not or cannot."""

from __future__ import annotations

import pytest

from echoprune.errors import ConfigError
from echoprune.evaluation_grid import DENSE, Grid, Setting, budget_text, keep_text, listed, make_grid

KEPT = {16: 300, 320: 6000}


def fits(frames: int, keep: str, budget: str) -> bool:
    return int(budget) >= KEPT[frames] * (1 if keep == "all" else 0.25)


def grid(budgets: list[str], keeps: list[str]) -> Grid:
    return make_grid(
        policies=["anchored", "mmtok"],
        frames=[16, 320],
        budgets=budgets,
        keeps=keeps,
        needs_all={"mmtok"},
        fits=fits,
    )


def test_what_fits_is_the_dense_run_once() -> None:
    found = grid(["512", "1000", "all"], ["all"])
    short, whole = Setting(DENSE, 16, "all", "all"), Setting(DENSE, 320, "all", "all")
    assert [each for each in found.shown if each.frames == 16] == [
        Setting(DENSE, 16, budget, "all") for budget in ("512", "1000", "all")
    ]
    assert {own for shown, own in found.shown.items() if shown.frames == 16} == {short}
    assert found.dense == 4 and not found.left_out
    assert set(found.settings) == {
        short, whole, *(Setting(policy, 320, budget, "all") for policy in ("anchored", "mmtok") for budget in ("512", "1000"))
    }  # fmt: skip
    assert len(found.settings) == len(set(found.settings)) == 6
    assert found.settings[0] == whole and found.settings[-1] == short, "the longest first"


def test_a_policy_that_needs_all_is_left_out_of_a_pruned_store() -> None:
    found = grid(["512"], ["all", "0.25"])
    assert [str(setting) for setting, _ in found.left_out] == ["mmtok, 320 frames, budget 512, keep 0.25"]
    assert "needs all tokens" in found.left_out[0][1]
    assert Setting("anchored", 320, "512", "0.25") in found.shown
    assert Setting("mmtok", 320, "512", "all") in found.shown


def test_names_are_files_of_their_own() -> None:
    assert Setting("evs", 96, "0.05", "4/cell").name == "evs-frames-96-budget-0.05-keep-4-per-cell"
    names = {each.name for each in grid(["512", "all"], ["all", "0.25"]).settings}
    assert len(names) == len(grid(["512", "all"], ["all", "0.25"]).settings)


@pytest.mark.parametrize(
    ("given", "shortest"),
    [("5%", "0.05"), (".050", "0.05"), ("0512", "512"), ("100%", "all"), ("all", "all")],
)
def test_budgets_in_their_shortest_form(given: str, shortest: str) -> None:
    assert budget_text(given) == shortest


@pytest.mark.parametrize(
    ("given", "shortest"), [("0.250", "0.25"), ("1.0", "all"), ("8/cell", "8/cell"), ("all", "all")]
)
def test_keeps_in_their_shortest_form(given: str, shortest: str) -> None:
    assert keep_text(given) == shortest


def test_lists() -> None:
    assert listed(" a, b,a,", option="--x") == ["a", "b"]
    with pytest.raises(ConfigError, match="--x is ' ,'"):
        listed(" ,", option="--x")
