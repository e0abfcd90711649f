"""The configuration of an index run: one frozen dataclass, from which the command line takes its options.

A field's default is the option's default, its metadata is the option's help. A file given by `--config` has the
same names; flags win over the file. Nothing here imports torch or ray, so that `--help` is instant.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
    group: str,
    flag: str = "",
    choices: tuple[str, ...] = (),
    metavar: str = "",
) -> Any:
    """A dataclass field that also describes its command-line option."""
    metadata = {"help": text, "group": group, "flag": flag, "choices": choices, "metavar": metavar}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class IndexConfig:
    """Everything that an index run depends on; checks itself, raises ConfigError with the cure."""

    store: str = option("", "Folder of the store; made if missing.", group="store", metavar="DIR")
    model: str = option(
        "",
        "Checkpoint: a local directory or a hub id of a supported family (qwen2_5_vl, qwen3_vl, llava_onevision). "
        "`echoprune models tiny` writes a small random one to try things with.",
        group="model",
    )
    paths: tuple[str, ...] = field(default=())

    fps: str = option(
        "2",
        "Sampled frames per second of presentation time; a fraction such as 1/2 or 0.5 is fine.",
        group="sampling",
    )
    max_frames: int | None = option(
        None, "At most this many frames a video: lowers the rate, never truncates.", group="sampling"
    )
    frames: int | None = option(
        None, "Exactly this many frames a video, spread evenly, instead of --fps.", group="sampling"
    )
    max_pixels: int = option(
        200_704,
        "Frame size limit in pixels for the whole archive; the default is 448x448, which Qwen2.5-VL turns into 256 "
        "tokens a cell and Qwen3-VL into 196. 0: the checkpoint's own limit. LLaVA-OneVision's frames are always "
        "384x384.",
        group="sampling",
    )
    decoder: str = option(
        "auto", "auto takes decord where it is exact and PyAV elsewhere.", group="sampling", choices=DECODERS
    )

    keep: str = option(
        "0.25",
        "What to store: a ratio of all tokens, N/cell, or all. A 7B model (3584-wide bf16 tokens, 256 a cell, one "
        "cell a second) takes about 1.7 GB per hour of video at 0.25, plus 0.2 GB of anchors, and 6.6 GB at all.",
        group="pruning",
        metavar="RATIO|N/cell|all",
    )
    anchor_every: float = option(
        30.0,
        "Also store one whole cell every so many seconds, not counted in --keep, so that calm stretches have "
        "tokens. 0: the first cell only (the paper's rule).",
        group="pruning",
        metavar="SECONDS",
    )
    dtype: str = option(
        "auto", "How tokens are stored; auto is the model's own dtype.", group="pruning", choices=DTYPES
    )
    temperature: float | None = option(
        None, "Softmax temperature of the echo score. Default: the model family's.", group="pruning"
    )
    window: str = option(
        "family",
        "Side of the square neighbourhood searched in the previous cell (odd), full for the whole cell, or family "
        "for the model family's own.",
        group="pruning",
        metavar="N|full|family",
    )

    compute_dtype: str = option(
        "auto",
        "Number format the model runs in; auto is the checkpoint's own.",
        group="model",
        choices=COMPUTE_DTYPES,
    )
    device: str = option("auto", "auto takes CUDA where Ray finds a GPU.", group="model", choices=DEVICES)
    segment_cells: int = option(
        8, "Cells decoded and encoded together; part of the store's settings.", group="model", metavar="CELLS"
    )

    encoders: int | None = option(
        None,
        "Encoder actors, one GPU each. Default: one per GPU, or one on a machine without.",
        group="cluster",
    )
    decoders_per_encoder: int | None = option(
        None,
        "Decode actors of each encoder; 0 decodes inside the encoder. Default: with GPUs the CPU cores that are left, "
        "at most 15 each; without, one for every four cores (one on 2 cores, none on 1).",
        group="cluster",
    )
    in_flight_mb: int = option(
        256,
        "Decoded frames held at most between the decoders and one encoder.",
        group="cluster",
        metavar="MB",
    )
    decode_timeout: float = option(
        120.0,
        "A decoder that delivers nothing for so long is killed, and the video tried again with PyAV.",
        group="cluster",
        metavar="SECONDS",
    )
    shard_mb: int = option(
        1024,
        "Source bytes committed together; an interrupted shard is done again.",
        group="cluster",
        metavar="MB",
    )
    shard_videos: int = option(256, "Videos committed together at most.", group="cluster")
    address: str | None = option(
        None,
        "Ray cluster to join (auto, HOST:PORT, ray://...). Default: RAY_ADDRESS, else a private local Ray.",
        group="cluster",
    )

    def __post_init__(self) -> None:
        for name in ("store", "model"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing: give it on the command line or in the --config file")
        for name in (
            "max_frames",
            "frames",
            "segment_cells",
            "in_flight_mb",
            "shard_mb",
            "shard_videos",
            "encoders",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
        for name in ("max_pixels", "anchor_every", "decoders_per_encoder"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}: it must be 0 or more")
        if self.max_frames is not None and self.frames is not None:
            raise ConfigError("--frames and --max-frames exclude each other: give one of the two")
        if not self.decode_timeout > 0:
            raise ConfigError(f"--decode-timeout is {self.decode_timeout}: it must be more than 0 seconds")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"--temperature is {self.temperature}: it must be more than 0")
        self.window_side(family=None)
        for name, choices in (
            ("decoder", DECODERS),
            ("dtype", DTYPES),
            ("compute_dtype", COMPUTE_DTYPES),
            ("device", DEVICES),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {value!r}: choose one of {', '.join(choices)}"
                )

    def window_side(self, *, family: int | None) -> int | None:
        """The side of the echo window, None for the whole cell; `family` is the model family's own default."""
        if self.window == "family":
            return family
        if self.window == "full":
            return None
        if self.window.isdecimal() and int(self.window) % 2 == 1:
            return int(self.window)
        raise ConfigError(f"--window is {self.window!r}: give an odd number such as 3, full, or family")

    def as_dict(self) -> dict[str, Any]:
        """The effective configuration, fit for JSON."""
        return {**asdict(self), "paths": list(self.paths)}
