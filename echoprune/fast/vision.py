"""A vision transformer's blocks with the library's weights, laid out so that a GPU spends its time in matrix products.

Against the library's own forward:

- patches enter by a matrix product, not by a convolution;
- queries, keys and values come from one product, gate and up of a gated MLP from another; the MLP's width is filled up
  with zeros to a multiple of 128 (3420 of Qwen2.5-VL is not even one of 8, for which kernels are slow);
- windows are attended to in one kernel which also turns queries and keys; whole cells, equally long, in one batch;
- a block's results are added to its input by the matrix product itself. Biases of these products would need a pass of
  their own: they are constants, so that the sum of all biases so far is added where the rows are read next (`shift`).

Every operation works row by row, window by window or cell by cell, on one number of rows per frame size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from echoprune.fast import operations

WIDTH_MULTIPLE = 128


@dataclass(frozen=True)
class Norm:
    """A normalisation before which `shift` (D,) float32, if any, is added; with a `bias` it is a LayerNorm, else RMS."""

    weight: torch.Tensor = field(repr=False)
    bias: torch.Tensor | None = field(repr=False)
    eps: float
    shift: torch.Tensor | None = field(repr=False, default=None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, D) of `x`, not changed."""
        return operations.norm(x, self.weight, self.bias, self.shift, self.eps)


@dataclass(frozen=True)
class Block:
    """One block: `qkv`, `inner` are (weight, bias); `out`, `outer` weights whose biases are in later shifts."""

    norm1: Norm
    qkv: tuple[torch.Tensor, torch.Tensor | None] = field(repr=False)
    out: torch.Tensor = field(repr=False)
    norm2: Norm
    inner: tuple[torch.Tensor, torch.Tensor | None] = field(repr=False)
    outer: torch.Tensor = field(repr=False)
    gated: bool
    windowed: bool


@dataclass(frozen=True)
class Place:
    """Where the rows of one cell are: angles of rows (P, half) float32 or None, windows' edges within all rows, or None.

    `cell_rows`: P. `longest`: rows of the longest window.
    """

    cell_rows: int
    cos: torch.Tensor | None = field(repr=False)
    sin: torch.Tensor | None = field(repr=False)
    edges: torch.Tensor | None = field(repr=False, default=None)
    longest: int = 0


@torch.no_grad()
def run_blocks(
    x: torch.Tensor,
    blocks: Sequence[Block],
    place: Place,
    *,
    heads: int,
    after: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """`x` (cells x P, D), changed in place, after all `blocks`; `after` is called with each block's index and result.

    What comes back lacks the biases of `out` and `outer`: `Packing.shift`.
    """
    for index, block in enumerate(blocks):
        qkv = F.linear(block.norm1(x), *block.qkv)
        x.addmm_(_attention(qkv, place, heads=heads, windowed=block.windowed), block.out.t())
        x.addmm_(_inner(block.norm2(x), block), block.outer.t())
        if after is not None:
            after(index, x)
    return x


def _inner(x: torch.Tensor, block: Block) -> torch.Tensor:
    if block.gated:
        return operations.silu_product(F.linear(x, *block.inner))
    weight, bias = block.inner
    if x.is_cuda and bias is not None:
        # GELU by its tanh form within the product, on the sums before they are rounded.
        found: torch.Tensor = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        return found
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _attention(qkv: torch.Tensor, place: Place, *, heads: int, windowed: bool) -> torch.Tensor:
    if windowed and place.edges is not None and place.cos is not None and place.sin is not None:
        return operations.window_attention(
            qkv, place.cos, place.sin, place.edges, longest=place.longest, heads=heads
        )
    if place.cos is not None and place.sin is not None:
        operations.rotate(qkv, place.cos, place.sin, heads)
    cells = qkv.view(-1, place.cell_rows, 3, heads, qkv.shape[1] // (3 * heads))
    query, key, value = cells.permute(2, 0, 3, 1, 4).unbind(0)
    found = F.scaled_dot_product_attention(query, key, value)
    return found.transpose(1, 2).reshape(len(qkv), -1)


class Packing:
    """Takes the weights of a tower's blocks one by one, adding up the biases that later norms make good."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.shift = torch.zeros(width, dtype=torch.float32, device=device)

    def norm(self, module: Any) -> Norm:
        """The norm `module` of rows that lack the biases met so far."""
        eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        shift = self.shift.clone() if bool(self.shift.any()) else None
        return Norm(module.weight, getattr(module, "bias", None), float(eps), shift)

    def added(self, linear: Any) -> torch.Tensor:
        """The weight of a product whose result is added to the rows; its bias is met."""
        if linear.bias is not None:
            self.shift += linear.bias.float()
        weight: torch.Tensor = linear.weight
        return weight

    def gated(self, gate: Any, up: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gate and up on top of one another, each filled up to a multiple of 128 rows."""
        weight = torch.cat([filled(each.weight, 0) for each in (gate, up)])
        if gate.bias is None or up.bias is None:
            return weight, None
        return weight, torch.cat([filled(each.bias, 0) for each in (gate, up)])

    def plain(self, linear: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        """The first product of a plain MLP, filled up; zeros stay zeros through GELU."""
        return filled(linear.weight, 0), filled(linear.bias, 0)

    def outer(self, linear: torch.nn.Linear) -> torch.Tensor:
        """The weight of an MLP's last product, filled up; its bias is met."""
        return filled(self.added(linear), 1)


def filled(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """`tensor` with zeros up to a multiple of 128 along `dim`."""
    lacking = -tensor.shape[dim] % WIDTH_MULTIPLE
    pad = [0, 0] * (tensor.ndim - 1 - dim) + [0, lacking]
    return F.pad(tensor, pad).contiguous()


def axial_angles(
    rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine (P, half) float32 of patches at `rows`, `columns` (P,): the first half of the angles by row."""
    angle = torch.cat([each[:, None].float() * inverse.float() for each in (rows, columns)], dim=1)
    return angle.cos().contiguous(), angle.sin().contiguous()


def merged_places(grid_hw: tuple[int, int], merge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column (P,) of the patches of a cell of (h, w) tokens, token by token, each of merge x merge patches."""
    h, w = grid_hw
    row, column, down, right = torch.meshgrid(
        torch.arange(h), torch.arange(w), torch.arange(merge), torch.arange(merge), indexing="ij"
    )
    return (row * merge + down).flatten(), (column * merge + right).flatten()
