"""Echo scores against the oracle, against cuts of the video, and at their edges."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echoprune.echo import EchoScorer, chunk_pairs, echo_scores
from echoprune.errors import ConfigError, ModelError
from tests import oracle

NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("ECHOPRUNE_REQUIRE_GPU") != "1", reason="no CUDA device"
)
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def moving_tokens(cells, grid_hw, dim, *, seed=0, dtype=torch.float32, device="cpu"):
    """Tokens that mostly stay as they were, of very different lengths, with an offset in common: like features."""
    generator = torch.Generator().manual_seed(seed)
    places = grid_hw[0] * grid_hw[1]
    drift = torch.randn(cells, places, dim, generator=generator).cumsum(0) * 0.3
    length = torch.rand(cells, places, 1, generator=generator) * 20 + 0.1
    return ((drift + torch.randn(places, dim, generator=generator) + 0.5) * length).to(device, dtype)


def scored_in_parts(tokens, cuts, **options):
    scorer = EchoScorer(**options)
    parts = [scorer.score(part) for part in torch.tensor_split(tokens, sorted(cuts))]
    return (
        torch.cat([part.correspondence for part in parts]),
        torch.cat([part.echo for part in parts]),
        torch.cat([part.has_past for part in parts]),
    )


@given(
    grid_hw=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    cells=st.integers(0, 11),
    dim=st.integers(1, 9),
    temperature=st.sampled_from([1e-3, 0.1, 0.5, 100.0]),
    window=st.sampled_from([None, 1, 3, 5, 99]),
    zeros=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_scores_are_the_oracles(grid_hw, cells, dim, temperature, window, zeros, seed):
    tokens = moving_tokens(cells, grid_hw, dim, seed=seed)
    if zeros:
        tokens[torch.rand(tokens.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.3] = 0
    scores = echo_scores(tokens, grid_hw=grid_hw, temperature=temperature, window=window)
    correspondence, echo = oracle.echo(
        tokens.numpy(), grid_hw=grid_hw, temperature=temperature, window=window
    )
    np.testing.assert_allclose(scores.correspondence.numpy(), correspondence, atol=1e-5)
    # A softmax at 1e-3 magnifies the rounding of near-ties; elsewhere 1e-5 as the spec asks.
    np.testing.assert_allclose(scores.echo.numpy(), echo, atol=1e-3 if temperature < 0.1 else 1e-5)
    assert scores.has_past.tolist() == [t > 0 for t in range(cells)]
    torch.testing.assert_close(scores.novelty, -scores.correspondence - scores.echo, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    grid_hw=st.sampled_from([(1, 1), (1, 7), (3, 5), (8, 8)]),
    dim=st.sampled_from([1, 33, 48]),
    window=st.sampled_from([None, 3]),
    cells=st.integers(1, 30),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_cuts_do_not_change_a_bit(device, dtype, grid_hw, dim, window, cells, data):
    cuts = data.draw(st.lists(st.integers(0, cells), max_size=6))
    tokens = moving_tokens(cells, grid_hw, dim, dtype=dtype, device=device)
    options = {"grid_hw": grid_hw, "temperature": 0.1, "window": window}
    whole = echo_scores(tokens, **options)
    correspondence, echo, has_past = scored_in_parts(tokens, cuts, **options)
    assert torch.equal(correspondence, whole.correspondence)
    assert torch.equal(echo, whole.echo)
    assert torch.equal(has_past, whole.has_past)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid_hw", "window"), [((16, 16), None), ((14, 14), 3), ((14, 14), None)])
def test_cuts_do_not_change_a_bit_at_full_width(device, dtype, grid_hw, window):
    tokens = moving_tokens(19, grid_hw, 3584, dtype=dtype, device=device)
    options = {"grid_hw": grid_hw, "temperature": 0.5, "window": window}
    whole = echo_scores(tokens, **options)
    for cuts in ([1, 2, 3], [8, 16], [5, 6, 17]):
        correspondence, echo, _ = scored_in_parts(tokens, cuts, **options)
        assert torch.equal(correspondence, whole.correspondence)
        assert torch.equal(echo, whole.echo)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 3])
def test_half_precision_tokens_are_scored_in_float32(device, dtype, window):
    tokens = moving_tokens(9, (4, 5), 512, dtype=dtype, device=device)
    scores = echo_scores(tokens, grid_hw=(4, 5), temperature=0.1, window=window)
    correspondence, echo = oracle.echo(
        tokens.cpu().double().numpy(), grid_hw=(4, 5), temperature=0.1, window=window
    )
    np.testing.assert_allclose(scores.correspondence.cpu().numpy(), correspondence, atol=1e-5)
    np.testing.assert_allclose(scores.echo.cpu().numpy(), echo, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_scores_stay_exact_where_the_program_allows_coarse_products(device):
    tokens = moving_tokens(9, (4, 4), 512, device=device)
    exact = echo_scores(tokens, grid_hw=(4, 4), temperature=0.5)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(echo_scores(tokens, grid_hw=(4, 4), temperature=0.5).echo, exact.echo)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("window", [7, 9, 101])
def test_a_window_over_the_whole_grid_is_the_whole_cell(window):
    tokens = moving_tokens(5, (4, 3), 20)
    whole = echo_scores(tokens, grid_hw=(4, 3), temperature=0.1)
    windowed = echo_scores(tokens, grid_hw=(4, 3), temperature=0.1, window=window)
    torch.testing.assert_close(windowed.echo, whole.echo, atol=1e-6, rtol=0)


def test_windows_by_offset_meet_the_whole_cell_where_they_nearly_cover_it():
    # On a 3 x 3 grid a 3 x 3 window lets the middle token, and no other, see everything.
    tokens = moving_tokens(5, (3, 3), 20)
    whole = echo_scores(tokens, grid_hw=(3, 3), temperature=0.1)
    windowed = echo_scores(tokens, grid_hw=(3, 3), temperature=0.1, window=3)
    torch.testing.assert_close(windowed.echo[:, 4], whole.echo[:, 4], atol=1e-6, rtol=0)
    torch.testing.assert_close(windowed.correspondence, whole.correspondence, atol=1e-6, rtol=0)
    assert not torch.allclose(windowed.echo[1:, 0], whole.echo[1:, 0], atol=1e-4)


def test_a_still_video_echoes_and_a_new_thing_does_not():
    tokens = torch.eye(4, 8).repeat(3, 1, 1)
    tokens[2, 1] = torch.eye(8)[7]
    scores = echo_scores(tokens, grid_hw=(2, 2), temperature=0.01)
    torch.testing.assert_close(scores.correspondence[1], torch.ones(4))
    torch.testing.assert_close(scores.echo[1], torch.ones(4))
    torch.testing.assert_close(scores.novelty[2], torch.tensor([-2.0, 0.0, -2.0, -2.0]))


def test_a_zero_vector_resembles_nothing():
    tokens = torch.ones(3, 4, 8)
    tokens[1, 2] = 0
    scores = echo_scores(tokens, grid_hw=(2, 2), temperature=0.5, window=1)
    assert scores.correspondence[:, 2].tolist() == [0, 0, 0]
    assert scores.echo[:, 2].tolist() == [0, 0, 0]


def test_scale_does_not_matter_from_tiny_to_huge():
    tokens = moving_tokens(4, (2, 3), 16)
    plain = echo_scores(tokens, grid_hw=(2, 3), temperature=0.5)
    for factor in (1e-12, 1e12):
        scaled = echo_scores(tokens * factor, grid_hw=(2, 3), temperature=0.5)
        torch.testing.assert_close(scaled.echo, plain.echo, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_tokens_that_are_not_finite_are_reported_with_their_place(value):
    scorer = EchoScorer(grid_hw=(2, 3), temperature=0.5)
    scorer.score(torch.ones(3, 6, 4))
    broken = torch.ones(2, 6, 4)
    broken[1, 4, 0] = value
    with pytest.raises(ModelError, match=r"1 of 12 .* cell 4 at row 1, column 1"):
        scorer.score(broken)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        EchoScorer(grid_hw=(2, 2), temperature=temperature)


@pytest.mark.parametrize("window", [0, 2, -1, -3])
def test_impossible_windows_are_refused(window):
    with pytest.raises(ConfigError, match="odd"):
        EchoScorer(grid_hw=(2, 2), temperature=0.5, window=window)


def test_tokens_of_another_shape_or_dtype_are_refused():
    scorer = EchoScorer(grid_hw=(2, 2), temperature=0.5)
    with pytest.raises(ValueError, match="2x2"):
        scorer.score(torch.ones(1, 5, 8))
    with pytest.raises(ValueError, match="float64"):
        scorer.score(torch.ones(1, 4, 8, dtype=torch.float64))
    scorer.score(torch.ones(1, 4, 8))
    with pytest.raises(ValueError, match="one scorer takes one video"):
        scorer.score(torch.ones(1, 4, 9))
    with pytest.raises(ValueError, match="one scorer takes one video"):
        scorer.score(torch.ones(1, 4, 8, dtype=torch.float16))


def test_the_scorer_holds_on_to_one_cell_alone():
    scorer = EchoScorer(grid_hw=(2, 2), temperature=0.5)
    tokens = torch.randn(9, 4, 8, requires_grad=True)
    scores = scorer.score(tokens)
    assert not scores.echo.requires_grad
    assert scorer._last is not None
    assert scorer._last.untyped_storage().nbytes() == 4 * 8 * 4
    assert not scorer._last.requires_grad


@given(places=st.integers(1, 5000), dim=st.integers(1, 8192))
@settings(deadline=None)
def test_a_product_takes_one_to_eight_cells_within_its_memory(places, dim):
    pairs = chunk_pairs(places, dim)
    assert 1 <= pairs <= 8
    assert pairs == 1 or pairs * 4 * places * (dim + places) <= 32 << 20
