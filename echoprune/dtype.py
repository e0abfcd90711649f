"""How token vectors become bytes and come back.

A store has one dtype. Tokens are rounded to it first and scored then, so that what is stored explains its own
scores; only int8 is quantised after scoring. All bytes are little-endian. Which columns there are: schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from echoprune.errors import ConfigError, ModelError
from echoprune.host_copies import to_host
from echoprune.schema import VALUE_BYTES, StoreSettings, token_rows_dtype

Bytes = npt.NDArray[np.uint8]
Scale = npt.NDArray[np.float32]

_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
_WIDER = {
    "fp16": "--dtype bf16",
    "bf16": "--dtype fp32",
    "fp32": "another checkpoint",
    "int8": "another checkpoint",
}


@dataclass(frozen=True)
class Codec:
    """One store dtype: "fp32", "bf16", "fp16" or "int8" (symmetric, one float32 scale per vector)."""

    name: str

    @property
    def scaled(self) -> bool:
        """Whether a scale goes with each vector."""
        return self.name == "int8"

    def row_bytes(self, dim: int) -> int:
        """Bytes of one vector of `dim` values."""
        return dim * VALUE_BYTES[self.name]

    def rounded(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens as they will be read back, in the store's dtype; for int8 unchanged.

        Scores are computed on these. int8 keeps the model's dtype, since scoring precedes quantisation.
        Raises ModelError when a value does not fit (fp16 ends at 65504).
        """
        result = self.cast(tokens)
        if not self.scaled:
            self.require_finite(result)
        return result

    def cast(self, tokens: torch.Tensor) -> torch.Tensor:
        """As `rounded`, for those who look later whether all values are finite: `require_finite`."""
        return tokens if self.scaled else tokens.to(_TORCH[self.name])

    def encode(self, tokens: torch.Tensor) -> tuple[Bytes, Scale | None]:
        """Rows of bytes (n, row_bytes) uint8, and for int8 the scales (n,) float32.

        `tokens` (n, D), any float dtype and device. int8: scale = absmax / 127, value = round(token / scale);
        a vector of zeros has scale 0. Raises ModelError for values that are not finite or do not fit.
        """
        if not self.scaled:
            return _as_bytes(to_host(self.rounded(tokens).contiguous())), None
        self.require_finite(tokens)
        values, scale = _quantised(tokens)
        return _as_bytes(to_host(values)), to_host(scale).numpy()

    def read_back(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., D) tokens as a reader of the store will see them, on their device; for int8 float32, value x scale.

        Nothing is looked at: values that are not finite stay so.
        """
        if not self.scaled:
            return self.cast(tokens)
        values, scale = _quantised(tokens)
        return values.float() * scale[..., None]

    def decode(self, rows: Bytes, scale: Scale | None = None) -> torch.Tensor:
        """(n, D) tokens in the store's dtype; int8 comes back as float32, value x scale.

        `rows` (n, row_bytes) uint8, contiguous and writable; the result shares its memory where it can.
        """
        dtype, dim = _TORCH[self.name], rows.shape[1] // VALUE_BYTES[self.name]
        # numpy gives empty arrays strides of 0, which torch does not view.
        values = torch.from_numpy(rows).view(dtype) if rows.size else torch.empty(len(rows), dim, dtype=dtype)
        if not self.scaled:
            return values
        if scale is None:
            raise ValueError("int8 rows need their scales")
        return values.float() * torch.from_numpy(scale)[:, None]

    def require_finite(self, values: torch.Tensor) -> None:
        """Raises ModelError for values that are not finite."""
        # aminmax hands NaN on and takes 14 ms for 20,000 x 3,584 bf16 values on 2 cores, where isfinite takes 770.
        if values.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise ModelError(
                f"{bad} of {values.numel()} token values are not finite in {self.name}: use {_WIDER[self.name]}"
            )


def codec(name: str) -> Codec:
    """The codec of that name; ConfigError for any other than fp32, bf16, fp16, int8."""
    if name not in VALUE_BYTES:
        raise ConfigError(f"unknown --dtype {name!r}: use auto, {', '.join(VALUE_BYTES)}")
    return Codec(name)


def encode_rows(
    tokens: torch.Tensor,
    settings: StoreSettings,
    *,
    correspondence: torch.Tensor,
    echo: torch.Tensor,
    deepstack: torch.Tensor | None = None,
) -> npt.NDArray[np.void]:
    """(n,) structured rows of `token_rows_dtype(settings)`, ready to be spilled or stored.

    `tokens` (n, D); `correspondence`, `echo` (n,) float32; `deepstack` (L, n, D) where the settings say L > 0.
    Raises ModelError for values that are not finite or do not fit the store's dtype.
    """
    layers = 0 if deepstack is None else int(deepstack.shape[0])
    if tokens.ndim != 2 or tokens.shape[1] != settings.dim or layers != settings.deepstack_layers:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} with {layers} deepstack maps do not fit a store of "
            f"width {settings.dim} with {settings.deepstack_layers}"
        )
    store = codec(settings.dtype)
    rows = np.empty(tokens.shape[0], dtype=token_rows_dtype(settings))
    rows["correspondence"] = to_host(correspondence).numpy()
    rows["echo"] = to_host(echo).numpy()
    vectors = {"emb": tokens}
    if deepstack is not None:
        vectors |= {f"deepstack_{layer}": values for layer, values in enumerate(deepstack)}
    for name, values in vectors.items():
        encoded, scale = store.encode(values)
        rows[name] = encoded.view(rows.dtype[name])[:, 0]
        if scale is not None:
            rows["scale" if name == "emb" else f"{name}_scale"] = scale
    return rows


def _quantised(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values (..., D) and float32 scales (...) of `tokens` (..., D)."""
    wide = tokens.float()
    scale = wide.abs().amax(dim=-1) / 127
    steps = wide / torch.where(scale > 0, scale, 1.0)[..., None]
    return steps.round().clamp(-127, 127).to(torch.int8).contiguous(), scale


def _as_bytes(values: torch.Tensor) -> Bytes:
    row_bytes = values.shape[1] * values.element_size()
    return values.view(torch.uint8).numpy().reshape(values.shape[0], row_bytes)
