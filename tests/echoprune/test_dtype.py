from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from echoprune.dtype import codec, encode_rows
from echoprune.errors import ModelError
from tests.stores import settings

finite = hnp.arrays(np.float32, (3, 5), elements=st.floats(-60000, 60000, width=32))


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@given(values=finite)
def test_rounded_tokens_come_back_bit_for_bit(name: str, dtype: torch.dtype, values: np.ndarray) -> None:
    store = codec(name)
    rounded = store.rounded(torch.from_numpy(values))
    rows, scale = store.encode(rounded)
    assert scale is None and rows.shape == (3, store.row_bytes(5)) and rows.dtype == np.uint8
    back = store.decode(rows.copy())
    assert back.dtype == dtype and torch.equal(back, rounded)
    assert torch.equal(rounded, torch.from_numpy(values).to(dtype))


@given(values=finite)
def test_int8_is_off_by_half_a_step_at_most(values: np.ndarray) -> None:
    tokens = torch.from_numpy(values)
    store = codec("int8")
    assert store.rounded(tokens) is tokens
    rows, scale = store.encode(tokens)
    assert scale is not None and scale.dtype == np.float32 and rows.shape == (3, 5)
    back = store.decode(rows.copy(), scale)
    assert back.dtype == torch.float32
    # Half a step; below the smallest normal float32 the scale itself has few bits.
    limit = torch.from_numpy(scale)[:, None] * 0.5001 + 1e-37
    assert bool(((back - tokens).abs() <= limit).all())
    assert torch.equal(
        back[tokens.abs().amax(dim=1) == 0], torch.zeros_like(back[tokens.abs().amax(dim=1) == 0])
    )


def test_int8_by_hand() -> None:
    rows, scale = codec("int8").encode(torch.tensor([[127.0, -63.4, 0.0], [0.0, 0.0, 0.0]]))
    assert rows.view(np.int8).tolist() == [[127, -63, 0], [0, 0, 0]]
    assert scale is not None and scale.tolist() == [1.0, 0.0]


def test_values_that_do_not_fit_name_the_cure() -> None:
    with pytest.raises(ModelError, match=r"1 of 2 token values .* fp16: use --dtype bf16"):
        codec("fp16").rounded(torch.tensor([[70000.0, 1.0]]))
    with pytest.raises(ModelError, match="--dtype fp32"):
        codec("bf16").rounded(torch.tensor([[torch.finfo(torch.float32).max]]))
    for name in ("fp32", "int8"):
        with pytest.raises(ModelError, match="not finite"):
            codec(name).encode(torch.tensor([[float("nan")]]))


def test_rows_hold_all_fields_of_a_token() -> None:
    made = settings(dim=4, dtype="int8", deepstack_layers=2)
    tokens, deep = torch.randn(3, 4), torch.randn(2, 3, 4)
    rows = encode_rows(
        tokens, made, correspondence=torch.arange(3.0), echo=-torch.arange(3.0), deepstack=deep
    )
    store = codec("int8")
    for name, scale, values in (("emb", "scale", tokens), ("deepstack_1", "deepstack_1_scale", deep[1])):
        stored = np.ascontiguousarray(rows[name]).view(np.uint8).reshape(3, 4)
        back = store.decode(stored, np.ascontiguousarray(rows[scale]))
        assert torch.allclose(back, values, atol=0.02)
    assert rows["correspondence"].tolist() == [0, 1, 2] and rows["echo"].tolist() == [0, -1, -2]
    with pytest.raises(ValueError, match="0 deepstack maps"):
        encode_rows(tokens, made, correspondence=torch.arange(3.0), echo=torch.arange(3.0))


def test_no_tokens_make_no_rows() -> None:
    for name in ("bf16", "int8"):
        rows, _ = codec(name).encode(torch.zeros(0, 8))
        assert rows.shape == (0, codec(name).row_bytes(8))
