"""The method against reference vectors computed elsewhere in float64 (`tests/data/reference`)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from echoprune.echo import echo_scores
from echoprune.prune import select_tokens
from echoprune.query import relevance

REFERENCE = sorted((Path(__file__).parents[1] / "data" / "reference").glob("*.npz"))


def test_the_reference_vectors_are_there():
    assert len(REFERENCE) == 3


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_scores_and_choice_are_the_references(path):
    with np.load(path) as arrays:
        case = dict(arrays)
    tokens = torch.from_numpy(case["tokens"])
    window = int(case["window"])
    scores = echo_scores(
        tokens,
        grid_hw=tuple(case["grid_hw"].tolist()),
        temperature=float(case["temperature"]),
        window=None if window == -1 else window,
    )
    match = relevance(
        tokens, torch.from_numpy(case["query"]), query_mask=torch.from_numpy(case["query_mask"])
    )
    np.testing.assert_allclose(scores.correspondence.numpy(), case["correspondence"], atol=1e-5)
    np.testing.assert_allclose(scores.echo.numpy(), case["echo"], atol=1e-5)
    np.testing.assert_allclose(match.numpy(), case["relevance"], atol=1e-5)
    keep = select_tokens(scores, budget=int(case["budget"]), relevance=match)
    assert keep.tolist() == case["keep"].tolist()
