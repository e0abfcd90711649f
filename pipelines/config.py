"""How a job is configured: one frozen dataclass, from which the command line takes its options; that of an index run.

A field's default is the option's default, its metadata is the option's help and limits. A file given by `--config`
has the same names; flags win over the file. Nothing here imports torch or ray, so that `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoprune.errors import ConfigError

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")
COMPUTE_DTYPES = ("auto", "fp32", "bf16", "fp16")
DECODERS = ("auto", "decord", "pyav")
DEVICES = ("auto", "cpu", "cuda")


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    at_least: float | None = None,
    above: float | None = None,
    required: bool = False,
) -> Any:
    """A dataclass field that also describes its command-line option: its help, and what JobConfig checks."""
    metadata = {"help": text, "choices": choices, "metavar": metavar, "required": required}
    return field(default=default, metadata=metadata | {"at_least": at_least, "above": above})


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The option's name, such as --anchor-every."""
    return "--" + field.name.replace("_", "-")


def option_fields(config: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a configuration dataclass that are options, in order."""
    return [field for field in dataclasses.fields(config) if "help" in field.metadata]


def scalar_kind(annotation: Any) -> type[int] | type[float] | type[str] | type[bool]:
    """`int` of `int | None`, and so on: the one type that an option's text is turned into; `bool` is a flag."""
    kinds = [each for each in typing.get_args(annotation) if each is not types.NoneType]
    found = kinds[0] if kinds else annotation
    if found not in (int, float, str, bool):
        raise TypeError(f"an option cannot be made of {annotation}")
    return typing.cast("type[int] | type[float] | type[str] | type[bool]", found)


@dataclass(frozen=True)
class JobConfig:
    """Base of a job's configuration: checks the declared limits of every `option` when made, with ConfigError.

    A subclass adds checks of its own in `__post_init__`, after calling this one. Fields that are no options (a
    text, or a tuple of texts such as `paths`) are the command's arguments.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in option_fields(type(self)):
            _check_value(each, getattr(self, each.name), scalar_kind(hints[each.name]))

    def as_dict(self) -> dict[str, Any]:
        """The effective configuration, fit for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def _check_value(field: dataclasses.Field[Any], value: Any, kind: type[Any]) -> None:
    name, limits = flag_name(field), field.metadata
    if limits["required"] and not value:
        raise ConfigError(f"{name} is missing: give it on the command line or in the --config file")
    if value is None and field.default is None:
        return
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        raise ConfigError(f"{name} is {value!r}: it must be {expected}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}: it must be a finite number")
    if limits["at_least"] is not None and value < limits["at_least"]:
        words = "0 or more" if limits["at_least"] == 0 else f"at least {limits['at_least']}"
        raise ConfigError(f"{name} is {value}: it must be {words}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError(f"{name} is {value}: it must be more than {limits['above']}")
    if limits["choices"] and value not in limits["choices"]:
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(limits['choices'])}")


def require_local_store(path: str, *, name: str = "--store") -> None:
    """Raises ConfigError unless `path` is, or can become, a folder of this machine."""
    if "://" in path and not path.startswith("file://"):
        raise ConfigError(f"{name} {path} is not local: stores lie in local folders as yet, so name a folder")
    local = Path(path.removeprefix("file://")).expanduser()
    if path and local.exists() and not local.is_dir():
        raise ConfigError(f"{name} {path} is a file: name the folder of a store, or a new one")


@dataclass(frozen=True)
class IndexConfig(JobConfig):
    """Everything that an index run depends on; checks itself, raises ConfigError with the cure."""

    store: str = option("", "Folder of the store; made if missing.", required=True, metavar="DIR")
    model: str = option(
        "",
        "Checkpoint: a local directory or a hub id of a supported family (qwen2_5_vl, qwen3_vl, llava_onevision). "
        "`echoprune models tiny` writes a small random one to try things with.",
        required=True,
    )
    paths: tuple[str, ...] = field(default=())

    fps: str = option(
        "2",
        "Sampled frames per second of presentation time; a fraction such as 1/2 or 0.5 is fine.",
    )
    max_frames: int | None = option(
        None, "At most this many frames a video: lowers the rate, never truncates.", at_least=1
    )
    frames: int | None = option(
        None,
        "This many frames of each video, spread evenly, instead of --fps; a video that has fewer gives those it has.",
        at_least=1,
    )
    max_pixels: int = option(
        200_704,
        "Frame size limit in pixels for the whole archive; the default is 448x448, which Qwen2.5-VL turns into 256 "
        "tokens a cell and Qwen3-VL into 196. 0: the checkpoint's own limit. LLaVA-OneVision's frames are always "
        "384x384.",
        at_least=0,
    )
    decoder: str = option("auto", "auto takes decord where it is exact and PyAV elsewhere.", choices=DECODERS)

    keep: str = option(
        "0.25",
        "What to store: a ratio of all tokens, N/cell, or all. A 7B model (3584-wide bf16 tokens, 256 a cell, one "
        "cell a second) takes about 1.7 GB per hour of video at 0.25, plus 0.2 GB of anchors, and 6.6 GB at all.",
        metavar="RATIO|N/cell|all",
    )
    anchor_every: float = option(
        30.0,
        "Also store one whole cell every so many seconds, not counted in --keep, so that calm stretches have "
        "tokens. 0: the first cell only (the paper's rule).",
        metavar="SECONDS",
        at_least=0,
    )
    dtype: str = option("auto", "How tokens are stored; auto is the model's own dtype.", choices=DTYPES)
    temperature: float | None = option(
        None, "Softmax temperature of the echo score. Default: the model family's.", above=0
    )
    window: str = option(
        "family",
        "Side of the square neighbourhood searched in the previous cell (odd), full for the whole cell, or family "
        "for the model family's own.",
        metavar="N|full|family",
    )

    compute_dtype: str = option(
        "auto",
        "Number format the model runs in; auto is the checkpoint's own.",
        choices=COMPUTE_DTYPES,
    )
    device: str = option("auto", "auto takes CUDA where Ray finds a GPU.", choices=DEVICES)
    segment_cells: int = option(
        8, "Cells decoded and encoded together; part of the store's settings.", metavar="CELLS", at_least=1
    )

    encoders: int | None = option(
        None,
        "Encoder actors, one GPU each. Default: one per GPU, or one on a machine without.",
        at_least=1,
    )
    decoders_per_encoder: int | None = option(
        None,
        "Decode actors of each encoder; 0 decodes inside the encoder. Default: with GPUs the CPU cores that are left, "
        "at most 15 each; without, one for every four cores (one on 2 cores, none on 1).",
        at_least=0,
    )
    in_flight_mb: int = option(
        256,
        "Decoded frames held at most between the decoders and one encoder.",
        metavar="MB",
        at_least=1,
    )
    decode_timeout: float = option(
        120.0,
        "A decoder that delivers nothing for so long is killed, and the video tried again with PyAV.",
        metavar="SECONDS",
        above=0,
    )
    shard_mb: int = option(
        1024,
        "Source bytes committed together; an interrupted shard is done again.",
        metavar="MB",
        at_least=1,
    )
    shard_videos: int = option(256, "Videos committed together at most.", at_least=1)
    address: str | None = option(
        None,
        "Ray cluster to join (auto, HOST:PORT, ray://...). Default: RAY_ADDRESS, else a private local Ray.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames is not None and self.frames is not None:
            raise ConfigError("--frames and --max-frames exclude each other: give one of the two")
        require_local_store(self.store)
        if "" in self.paths:
            raise ConfigError(
                "one of the PATHS is empty: name a file, folder, glob or manifest, or . for this folder"
            )
        self.window_side(family=None)

    def window_side(self, *, family: int | None) -> int | None:
        """The side of the echo window, None for the whole cell; `family` is the model family's own default."""
        if self.window == "family":
            return family
        if self.window == "full":
            return None
        if self.window.isdecimal() and int(self.window) % 2 == 1:
            return int(self.window)
        raise ConfigError(f"--window is {self.window!r}: give an odd number such as 3, full, or family")
