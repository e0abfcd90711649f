"""One switch: float32 products in full float32 while a score is computed.

A program may allow TF32 or bfloat16 inside float32 products to speed up its own model; a score computed that way
is off by 1e-3, which is enough to change what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which float32 matrix products on CPU and CUDA keep all 24 bits, whatever the program allowed.

    The switch is the process's own (PyTorch has no narrower one) and is put back at the end; two threads that
    score at the same time would put back each other's.
    """
    # torch.backends.mkldnn.matmul exists, but only at run time: its type stub says nothing of it.
    switches = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul"))  # noqa: B009
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
