"""What all policies have in common: the registry, and the properties of what they return."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import echoprune.policies
from echoprune.errors import ConfigError, ModelError
from echoprune.policies import POLICIES, Candidates, policy
from tests.policy_cases import candidates, kept

ROOT = Path(__file__).parents[3]


def test_the_registry_knows_its_names() -> None:
    assert next(iter(POLICIES)) == "anchored"
    for name, each in POLICIES.items():
        assert policy(name) is each and each.name == name
        assert each.summary and each.summary != name
        # What compares vectors must have them all, and what takes a pruned store chooses by score.
        assert each.needs_all or not each.needs_vectors
        assert each.needs_all == (each.first is None)
    with pytest.raises(ConfigError, match=r"--policy is 'top'; give one of anchored, echoprune, uniform"):
        policy("top")


def test_every_file_of_the_folder_is_a_policy_or_serves_some() -> None:
    folder = Path(echoprune.policies.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "candidates", "spread"}
    assert {each.choose.__module__.rsplit(".", 1)[1] for each in POLICIES.values()} == modules


def test_the_documentation_names_every_policy_and_what_it_needs() -> None:
    rows = {
        line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in (ROOT / "docs" / "policies.md").read_text().splitlines()
        if line.startswith("| `")
    }
    assert list(rows) == list(POLICIES)
    for name, (needs, vectors, question, *_) in rows.items():
        each = POLICIES[name]
        assert needs == ("every token" if each.needs_all else "what is stored")
        assert (vectors, question) == tuple(
            "yes" if value else "no" for value in (each.needs_vectors, each.uses_query)
        )


cases = st.builds(
    candidates,
    cells=st.integers(1, 11),
    grid_hw=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    budget=st.integers(1, 60),
    seed=st.integers(0, 10_000),
    dim=st.integers(1, 5),
    words=st.integers(1, 3),
    levels=st.sampled_from([0, 1, 2, 3]),
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=120, deadline=None)
@given(case=cases)
def test_exactly_the_budget_in_order_and_each_once(name: str, case: Candidates) -> None:
    total = len(case.stored.t)
    before = case.vectors.clone() if case.vectors is not None else None
    indices = POLICIES[name].choose(case)
    assert indices.dtype == torch.int64 and indices.ndim == 1
    assert len(indices) == min(case.budget or 0, total)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert int(indices.min()) >= 0 and int(indices.max()) < total
    assert torch.equal(indices, POLICIES[name].choose(replace(case)))
    assert before is not None and torch.equal(before, case.vectors)


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_beyond_all_keeps_all(name: str) -> None:
    for budget in (30, 31, 10**9):
        assert kept(name, candidates(budget=budget)) == list(range(30))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"anchored", "echoprune"}))
def test_without_a_question_baselines_keep_to_the_budget(name: str) -> None:
    assert len(kept(name, candidates(budget=11, relevance=None, query=None))) == 11


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"uniform", "random", "dycoke"}))
def test_equal_tokens_are_kept_from_the_lowest_index_on(name: str) -> None:
    """Of mmtok too: the first one covers all that are like it."""
    same = candidates(cells=4, budget=9, dim=3)
    flat = replace(same.stored, correspondence=torch.zeros(24), echo=torch.zeros(24))
    for value in (0.0, 1.0):
        case = replace(
            same,
            stored=flat,
            first="whole",
            relevance=torch.zeros(24),
            vectors=torch.full((4, 6, 3), value),
            query=torch.ones(2, 3),
        )
        indices = kept(name, case)
        # In vidcom2 each cell has its quota first, round(9 / 4) = 2, then comes one more; first = whole is half of the 9.
        expected = {
            "vidcom2": [0, 1, 2, 6, 7, 12, 13, 18, 19],
            "anchored": [0, 1, 2, 3, 4, 6, 7, 8, 9],
            "echoprune": [0, 1, 2, 3, 4, 6, 7, 8, 9],
        }.get(name, list(range(9)))
        assert indices == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name, each in POLICIES.items() if each.needs_vectors])
def test_vectors_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    case = candidates(cells=4, budget=12)
    assert case.vectors is not None
    case.vectors[2, 3, 1] = bad
    with pytest.raises(ModelError, match=r"1 of .* not finite"):
        POLICIES[name].choose(case)


@pytest.mark.parametrize("name", ["anchored", "echoprune", "evs"])
def test_scores_that_are_not_numbers_are_refused(name: str) -> None:
    case = candidates()
    case.stored.correspondence[20] = float("nan")
    with pytest.raises(ModelError, match="1 of 30 token scores are NaN"):
        POLICIES[name].choose(case)


@pytest.mark.parametrize("name", [name for name, each in POLICIES.items() if each.needs_vectors])
def test_missing_vectors_are_a_mistake(name: str) -> None:
    for vectors in (None, torch.zeros(5, 4, 6)):
        with pytest.raises(ValueError, match="needs the vectors"):
            POLICIES[name].choose(candidates(vectors=vectors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name, each in POLICIES.items() if each.needs_vectors])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    case = candidates(cells=6, budget=13, seed=3)
    assert case.vectors is not None
    half = case.vectors.to(dtype)
    assert kept(name, replace(case, vectors=half)) == kept(name, replace(case, vectors=half.float()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", POLICIES)
def test_a_gpu_keeps_the_same(name: str) -> None:
    case = candidates(cells=9, grid_hw=(4, 4), budget=37, dim=16)
    assert case.vectors is not None and case.query is not None and case.relevance is not None
    there = replace(case, vectors=case.vectors.cuda(), query=case.query.cuda())
    assert kept(name, there) == kept(name, case)
    stored = replace(
        case.stored,
        t=case.stored.t.cuda(),
        correspondence=case.stored.correspondence.cuda(),
        echo=case.stored.echo.cuda(),
    )
    assert kept(name, replace(there, stored=stored, relevance=case.relevance.cuda())) == kept(name, case)
