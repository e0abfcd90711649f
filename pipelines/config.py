"""How S3 is reached, and everything that an index run depends on: frozen dataclasses, which are also the options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from echoprune.errors import ConfigError
from echoprune.s3_options import PATIENCE_S, S3Options
from pipelines.job_config import JobConfig, option, require_store_place
from pipelines.max_failed import MaxFailed

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")
COMPUTE_DTYPES = ("auto", "fp32", "bf16", "fp16")
DECODERS = ("auto", "decord", "pyav")
DEVICES = ("auto", "cpu", "cuda")
TOWERS = ("auto", "plain", "fast")
COMPRESSIONS = ("zstd", "none")
RANKS = ("change", "novelty")


def decoders_of(text: str) -> int | None:
    """The number that --decoders-per-gpu means, None for auto; ConfigError for anything else."""
    if text == "auto":
        return None
    if text.isdecimal() and text.isascii():
        return int(text)
    raise ConfigError(f"--decoders-per-gpu is {text!r}: give a whole number, 0 or more, or auto")


def require_decoders(text: str, *, grow_to: int | None) -> None:
    """Raises ConfigError unless --decoders-per-gpu is a number or auto, and --grow-to no smaller than it."""
    decoders = decoders_of(text)
    if decoders is not None and grow_to is not None and grow_to < max(1, decoders):
        raise ConfigError(f"--grow-to is {grow_to}, --decoders-per-gpu {decoders}: give at least that many")


@dataclass(frozen=True)
class S3Config(JobConfig):
    """How s3:// URLs are reached; options of every command that takes one. Credentials are none of them."""

    s3_endpoint: str | None = option(
        None,
        "S3 service other than AWS's. Default: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else AWS.",
        metavar="URL",
    )
    s3_profile: str | None = option(
        None,
        "Profile of ~/.aws whose credentials are used. Default: AWS_PROFILE, else as AWS tools look for them.",
        metavar="NAME",
    )
    s3_anon: bool = option(False, "Read public buckets without credentials.")
    s3_requester_pays: bool = option(False, "Read buckets whose requests are billed to you.")
    s3_patience: float = option(
        PATIENCE_S,
        "How long a request to S3 is tried again before it has failed.",
        metavar="SECONDS",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._options(anonymous=self.s3_anon)

    @property
    def s3(self) -> S3Options:
        """The options as the core takes them."""
        return self._options(anonymous=self.s3_anon)

    def _options(self, *, anonymous: bool) -> S3Options:
        return S3Options(
            endpoint=self.s3_endpoint,
            profile=self.s3_profile,
            anonymous=anonymous,
            requester_pays=self.s3_requester_pays,
            patience_s=self.s3_patience,
        )


@dataclass(frozen=True)
class S3InputsConfig(S3Config):
    """How videos in S3 are reached, and staged; stores are written with credentials whatever --s3-anon says."""

    s3_cache_gb: float = option(
        20.0,
        "Disk that videos from S3 take at most while they are decoded, for each encoder (GiB); a larger video fails.",
        metavar="GB",
        above=0,
    )
    s3_cache_dir: str = option(
        "", "Where they are put. Default: the system's folder for temporary files.", metavar="DIR"
    )

    @property
    def s3(self) -> S3Options:
        """The options for stores."""
        return self._options(anonymous=False)

    @property
    def s3_inputs(self) -> S3Options:
        """The options for videos."""
        return self._options(anonymous=self.s3_anon)


S3_OPTIONS = tuple(field.name for field in dataclasses.fields(S3InputsConfig))


@dataclass(frozen=True)
class IndexConfig(S3InputsConfig):
    """Everything that an index run depends on; checks itself, raises ConfigError with the cure."""

    store: str = option(
        "", "Folder of the store, or s3:// URL; made if missing.", required=True, metavar="DIR"
    )
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
    rank_by: str = option(
        "change",
        "What --keep takes most of: change, (1 - c)(2 - e), as the default policy of answers, or novelty, -c - e (the "
        "paper's rule, for --policy echoprune).",
        choices=RANKS,
    )
    dtype: str = option("auto", "How tokens are stored; auto is the model's own dtype.", choices=DTYPES)
    compression: str = option(
        "zstd",
        "Of stored vectors: zstd takes a fifth less space, none a third of the time to read with few cores.",
        choices=COMPRESSIONS,
    )
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
        "Number format the model runs in; auto: what the store was made with; in a new one "
        "the checkpoint's own on GPUs, fp32 on CPUs, most of which are slow with any other.",
        choices=COMPUTE_DTYPES,
    )
    tower: str = option(
        "auto",
        "The vision tower's code: plain, the library's own, or fast, the same weights by steps that suit a GPU; their tokens "
        "differ by rounding, so that it is one of the store's settings. auto: the store's, and of a new store fast on GPUs.",
        choices=TOWERS,
    )
    device: str = option("auto", "auto takes CUDA where Ray finds a GPU.", choices=DEVICES)
    segment_cells: int = option(
        8, "Cells decoded and encoded together; part of the store's settings.", metavar="CELLS", at_least=1
    )

    encoders: int | None = option(
        None,
        "Encoder actors, one GPU each. Default: one per GPU, of nodes that join later too, or one on a cluster without. On a "
        "cluster that is joined more than it has GPUs for is a demand that its autoscaler sees.",
        at_least=1,
    )
    decoders_per_gpu: str = option(
        "auto",
        "Decode actors of each encoder; 0 decodes inside the encoder. auto: with GPUs the CPU cores of its node that are left, "
        "at most 15 at first, then as many as its waiting for frames asks for, on nodes without a GPU too; without GPUs one "
        "for every four cores (one on 2 cores, none on 1).",
        metavar="N|auto",
    )
    grow_to: int | None = option(
        None,
        "Decode actors of each encoder at most, those included that the cluster has no room for yet: its autoscaler brings "
        "nodes with the resource `decode` for them. Default: no more than there is room for.",
        at_least=1,
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
    failed_ok: bool = option(
        False,
        "Exit code 0, not 3, although failed videos stand: for what would run the command again for it.",
    )
    max_failed: str | None = option(
        None,
        "Stop when more videos of this run have failed than this: a number, or a share of all that it is to do, such as "
        "0.05. Default: never.",
        metavar="N|SHARE",
    )
    bring_back: bool = option(False, "Index videos among PATHS again that were removed with `forget`.")
    address: str | None = option(
        None,
        "Ray cluster to join (auto, HOST:PORT, ray://...). Default: RAY_ADDRESS, else a private local Ray.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames is not None and self.frames is not None:
            raise ConfigError("--frames and --max-frames exclude each other: give one of the two")
        require_store_place(self.store)
        if "" in self.paths:
            raise ConfigError(
                "one of the PATHS is empty: name a file, folder, glob or manifest, or . for this folder"
            )
        self.window_side(family=None)
        require_decoders(self.decoders_per_gpu, grow_to=self.grow_to)
        MaxFailed.parse(self.max_failed, of=1)

    def window_side(self, *, family: int | None) -> int | None:
        """The side of the echo window, None for the whole cell; `family` is the model family's own default."""
        if self.window == "family":
            return family
        if self.window == "full":
            return None
        if self.window.isdecimal() and int(self.window) % 2 == 1:
            return int(self.window)
        raise ConfigError(f"--window is {self.window!r}: give an odd number such as 3, full, or family")
