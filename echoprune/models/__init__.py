"""Models by name: which families are known, what a checkpoint says about itself, and loading its encoder.

`model` is a local folder or a hub id everywhere. The family is the `model_type` of its config.json. Adapters are
imported when asked for, so that a decode process that unpickles a `FrameLayout` loads no model code.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoprune.errors import ConfigError, UnknownModelError
from echoprune.models import checkpoint
from echoprune.models.encoder import TOWERS, Encoder, Family, FrameLayout, ModelSettings, Running
from echoprune.models.known_fingerprints import remembered

if TYPE_CHECKING:
    import torch

    from echoprune.models.answerer import Answerer

__all__ = [
    "Encoder",
    "FrameLayout",
    "ModelSettings",
    "families",
    "find_family",
    "fingerprint",
    "frame_layout",
    "load_answerer",
    "load_encoder",
    "model_settings",
    "word_rows",
]

# model_type in config.json -> the adapter module, whose FAMILY describes it.
_ADAPTERS = {name: f"echoprune.models.{name}" for name in ("llava_onevision", "qwen2_5_vl", "qwen3_vl")}


def families() -> tuple[str, ...]:
    """Names of the model families that can be loaded, sorted."""
    return tuple(sorted(_ADAPTERS))


def model_settings(model: str, *, max_pixels: int | None = None) -> ModelSettings:
    """What the configuration of `model` says: family, frame layout, token width, dtype and echo defaults.

    `max_pixels` (H x W of a frame) overrides the checkpoint's. Raises ModelError, or ConfigError for `max_pixels`.
    """
    folder, family = find_family(model)
    return family.settings(folder, max_pixels)


def frame_layout(model: str, *, max_pixels: int | None) -> FrameLayout:
    """How `model` resizes frames and cuts them into tokens; see `model_settings`."""
    return model_settings(model, max_pixels=max_pixels).layout


def fingerprint(model: str) -> str:
    """64 hex digits over everything in `model` that its tokens depend on; see `checkpoint.fingerprint`."""
    return _fingerprint(*find_family(model))


def _fingerprint(folder: Path, family: Family) -> str:
    return remembered(folder, lambda: checkpoint.fingerprint(folder, family))


def fast_tower_refused(model: str) -> str:
    """Why `model` is not for `load_encoder(tower="fast")`, in words; "" if it is. Reads its configuration alone."""
    folder, family = find_family(model)
    return family.fast_refused(folder)


def fast_engine_refused(model: str) -> str:
    """Why `model` is not for `load_answerer(engine="fast")`, in words; "" if it is. Reads its configuration alone."""
    from transformers import AutoConfig  # noqa: PLC0415 - a second that frame layouts need not pay

    from echoprune.fast.language import refused  # noqa: PLC0415

    folder, _ = find_family(model)
    return refused(AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config())


def load_encoder(
    model: str,
    *,
    segment_cells: int,
    device: str = "auto",
    compute_dtype: str = "auto",
    max_pixels: int | None = None,
    tower: str = "plain",
) -> Encoder:
    """The vision tower and projector of `model`, in memory on `device`; its language model is never read.

    `segment_cells` >= 1: on a GPU the encoder always runs on this many cells, filling up shorter segments, so that equal
    frames give equal bits; on a CPU it runs on one at a time. `device`: auto (the current GPU if there is one) | cpu | cuda. `compute_dtype`: auto
    (the checkpoint's own on a GPU, fp32 on a CPU: see `auto_dtype`) | fp32 | bf16 | fp16. `tower`: plain (the library's) | fast (its weights by other steps, see
    echoprune/fast). Raises ModelError when the model is missing, of an unknown family,
    or lacks vision weights; ConfigError when an option cannot be met.
    """
    if segment_cells < 1:
        raise ConfigError(f"segment_cells {segment_cells} is not accepted: give at least 1")
    if tower not in TOWERS:
        raise ConfigError(f"tower {tower!r} is not accepted: use {' or '.join(TOWERS)}")
    folder, family = find_family(model)
    settings = family.settings(folder, max_pixels)
    target, dtype = _place(device, compute_dtype, settings.dtype)
    return family.load(folder, settings, Running(segment_cells, target, dtype, tower))


def load_answerer(
    model: str,
    *,
    device: str = "auto",
    compute_dtype: str = "auto",
    positions: str = "auto",
    empty_cells: str = "drop",
    engine: str = "library",
) -> Answerer:
    """The whole of `model` on `device`, to answer with; its vision tower is loaded with it and not used.

    `positions`: auto | original | compact, of kept tokens in families without places in time and space (auto: compact).
    `empty_cells`: drop | keep, the time text of cells that keep nothing. `engine`: library | fast (echoprune/fast). For the rest and the errors see `load_encoder`.
    """
    from echoprune.models.answerer import Answerer, chat_template, load_model  # noqa: PLC0415

    folder, family = find_family(model)
    target, dtype = _place(device, compute_dtype, family.settings(folder, None).dtype)
    checkpoint.fetch_weights(folder)
    loaded, tokenizer = load_model(folder, family.weights_class, device=target, dtype=dtype)
    return Answerer(
        loaded,
        tokenizer,
        style=family.prompt(loaded.config),
        template=chat_template(folder),
        fingerprint=_fingerprint(folder, family),
        positions=positions,
        empty_cells=empty_cells,
        engine=engine,
    )


def _place(device: str, compute_dtype: str, own_dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that two options mean; ConfigError where they cannot be met."""
    import torch  # noqa: PLC0415 - a decode process imports this module for FrameLayout alone

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not accepted: use auto, cpu or cuda")
    if compute_dtype != "auto" and compute_dtype not in dtypes:
        raise ConfigError(f"compute dtype {compute_dtype!r} is not accepted: use auto, {', '.join(dtypes)}")
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("device 'cuda' is not there: torch sees no GPU; use --device cpu, or auto")
    target = (
        torch.device("cuda", torch.cuda.current_device())
        if has_gpu and device != "cpu"
        else torch.device("cpu")
    )
    own = auto_dtype(own_dtype, gpu=target.type == "cuda")
    return target, dtypes[own if compute_dtype == "auto" else compute_dtype]


def auto_dtype(own_dtype: str, *, gpu: bool) -> str:
    """What a checkpoint of `own_dtype` runs in where nobody says it: that on a GPU, fp32 on a CPU.

    A CPU without instructions for it multiplies bf16 matrices 28 times slower than fp32 ones (256 x 256, one core of an
    EPYC, torch 2.13).
    """
    return own_dtype if gpu else "fp32"


def word_rows(model: str) -> tuple[Path, Any]:
    """The folder of `model`, and the lazy slice of its input embeddings; see `checkpoint.embedding_slice`."""
    folder, family = find_family(model)
    return folder, checkpoint.embedding_slice(folder, family)


def find_family(model: str) -> tuple[Path, Family]:
    """The folder of `model`, and what is known of its family. Raises UnknownModelError."""
    folder = checkpoint.find_checkpoint(model)
    name = checkpoint.read_json(folder / "config.json").get("model_type")
    if name not in _ADAPTERS:
        raise UnknownModelError(
            f"{model} is of family {name!r}, which has no adapter; supported: {', '.join(families())}: choose such a model"
        )
    family: Family = importlib.import_module(_ADAPTERS[name]).FAMILY
    return folder, family
