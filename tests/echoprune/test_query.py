"""Relevance against the oracle and at its edges."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echoprune.errors import ConfigError, ModelError
from echoprune.query import CHUNK_TOKENS, GPU_CHUNK_TOKENS, relevance
from tests import oracle

NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("ECHOPRUNE_REQUIRE_GPU") != "1", reason="no CUDA device"
)
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]


@given(
    shape=st.sampled_from([(), (7,), (2, 3), (3, 2, 2), (0, 4)]),
    words=st.integers(1, 6),
    dim=st.integers(1, 9),
    reduce=st.sampled_from(["max", "mean", "softmax"]),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_relevance_is_the_oracles(shape, words, dim, reduce, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(*shape, dim, generator=generator) * 5
    query = torch.randn(words, dim, generator=generator)
    query[0] = 0
    mask = torch.rand(words, generator=generator) < 0.6 if masked else None
    if mask is not None:
        mask[0] = True
    result = relevance(tokens, query, query_mask=mask, reduce=reduce)
    expected = oracle.relevance(tokens.reshape(-1, dim), query, query_mask=mask, reduce=reduce)
    assert result.dtype == torch.float32
    assert result.shape == shape
    np.testing.assert_allclose(result.numpy().reshape(-1), expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
@pytest.mark.parametrize("words", [1, 2, 3, 17, 40])
@pytest.mark.parametrize("dim", [33, 3584])
def test_a_token_scores_the_same_in_any_company(device, reduce, words, dim):
    generator = torch.Generator().manual_seed(words)
    together = GPU_CHUNK_TOKENS if device == "cuda" else CHUNK_TOKENS
    tokens = torch.randn(together * 2 + 37, dim, generator=generator).to(device)
    query = torch.randn(words, dim, generator=generator).to(device)
    everyone = relevance(tokens, query, reduce=reduce)
    chosen = (torch.rand(len(tokens), generator=generator) < 0.3).to(device)
    assert torch.equal(relevance(tokens[chosen], query, reduce=reduce), everyone[chosen])
    assert torch.equal(relevance(tokens[-5:], query, reduce=reduce), everyone[-5:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(50, 64, generator=generator).to(dtype)
    query = torch.randn(4, 64, generator=generator).to(dtype)
    expected = oracle.relevance(tokens.double(), query.double())
    np.testing.assert_allclose(relevance(tokens, query).numpy(), expected, atol=1e-5)


def test_a_sharp_softmax_is_the_maximum_and_a_flat_one_the_mean():
    generator = torch.Generator().manual_seed(2)
    tokens, query = torch.randn(20, 16, generator=generator), torch.randn(5, 16, generator=generator)
    sharp = relevance(tokens, query, reduce="softmax", temperature=1e-4)
    flat = relevance(tokens, query, reduce="softmax", temperature=1e4)
    torch.testing.assert_close(sharp, relevance(tokens, query), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat, relevance(tokens, query, reduce="mean"), atol=1e-4, rtol=0)


def test_a_question_without_words_is_refused():
    tokens = torch.randn(3, 8)
    with pytest.raises(ValueError, match="no query token"):
        relevance(tokens, torch.empty(0, 8))
    with pytest.raises(ValueError, match="no query token"):
        relevance(tokens, torch.randn(2, 8), query_mask=torch.zeros(2, dtype=torch.bool))


def test_options_and_shapes_that_do_not_fit_are_refused():
    tokens, query = torch.randn(3, 8), torch.randn(2, 8)
    with pytest.raises(ConfigError, match="max, mean, softmax"):
        relevance(tokens, query, reduce="min")
    with pytest.raises(ConfigError, match="temperature"):
        relevance(tokens, query, reduce="softmax", temperature=0)
    with pytest.raises(ValueError, match="do not fit"):
        relevance(tokens, torch.randn(2, 9))
    with pytest.raises(ValueError, match="query_mask"):
        relevance(tokens, query, query_mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="floating"):
        relevance(tokens.long(), query)


def test_values_that_are_not_finite_are_an_error_of_the_model():
    tokens, query = torch.randn(5, 8), torch.randn(2, 8)
    broken = tokens.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(ModelError, match="1 of 5 visual tokens"):
        relevance(broken, query)
    with pytest.raises(ModelError, match="2 of 2 query tokens"):
        relevance(tokens, query * float("inf"))
