"""The switch goes on, and back to what it was, whichever way it had been set."""

import pytest
import torch

from echoprune.precision import full_float32


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_switch_is_put_back(before):
    torch.set_float32_matmul_precision(before)
    try:
        setting = torch.backends.cuda.matmul.fp32_precision
        with pytest.raises(KeyError), full_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            raise KeyError
        assert torch.backends.cuda.matmul.fp32_precision == setting
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
