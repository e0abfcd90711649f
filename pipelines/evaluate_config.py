"""The configuration of an evaluation; its options."""

from __future__ import annotations

from dataclasses import dataclass, field

from echoprune.errors import ConfigError
from pipelines.config import COMPUTE_DTYPES, DEVICES, S3InputsConfig
from pipelines.job_config import option, require_store_place


@dataclass(frozen=True)
class EvalConfig(S3InputsConfig):
    """Everything that an evaluation depends on; checks itself, raises ConfigError with the cure."""

    questions: str = option(
        "",
        "Questions as for `echoprune answer`, with `answer` and `kind`; columns event_start_s and event_end_s say when "
        "what they ask about happened.",
        required=True,
        metavar="FILE",
    )
    model: str = option("", "Checkpoint that indexes and answers.", required=True)
    out: str = option(
        "",
        "Folder of stores, answers and result; made if missing. The same command again does what is missing there.",
        required=True,
        metavar="DIR",
    )
    paths: tuple[str, ...] = field(default=())

    policies: str = option(
        "anchored,echoprune,uniform,random,evs,vidcom2,dycoke,mmtok",
        "Pruning policies to compare.",
        metavar="LIST",
    )
    frames: str = option(
        "16,32,96,160,320", "Numbers of frames of each video, spread evenly.", metavar="LIST"
    )
    budgets: str = option(
        "512,all",
        "Budgets of one question, visual tokens and text of cells together: numbers, ratios, or all.",
        metavar="LIST",
    )
    keeps: str = option("all,0.25", "Values of index --keep of the stores.", metavar="LIST")
    reference: str = option("anchored", "The policy that the others are compared with, question by question.")
    by: str = option("kind", "Column of the questions to group the accuracy by.", metavar="COLUMN")

    letters: bool = option(
        False, "Choose among options by the log-probability of their letters, not by the text."
    )
    max_new_tokens: int = option(32, "Length of an answer at most, in tokens.", at_least=1)
    seed: int = option(0, "Seed of the policies that draw.")
    batch: int = option(32, "Questions answered together at most.", at_least=1)
    batch_tokens: int = option(
        65536, "Tokens of such a batch at most, filled up to its longest prompt.", at_least=1
    )
    max_pixels: int = option(
        200_704, "Frame size limit in pixels; 0: the checkpoint's own limit.", at_least=0
    )
    anchor_every: float = option(
        30.0,
        "Pruned stores also hold one whole cell every so many seconds; 0: the first cell only.",
        metavar="SECONDS",
        at_least=0,
    )
    compute_dtype: str = option(
        "auto",
        "Number format the model runs in; auto: that of the evaluation in the folder; in a new one "
        "the checkpoint's own on GPUs, fp32 on CPUs, most of which are slow with any other.",
        choices=COMPUTE_DTYPES,
    )
    device: str = option("auto", "auto takes CUDA where Ray finds a GPU.", choices=DEVICES)
    workers: int = option(
        1,
        "Answering actors on each GPU, or in all on a machine without; several help small models.",
        at_least=1,
    )
    address: str | None = option(
        None,
        "Ray cluster to join (auto, HOST:PORT, ray://...). Default: RAY_ADDRESS, else a private local Ray.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths or "" in self.paths:
            raise ConfigError("no VIDEOS: give video files, globs, folders or a manifest")
        require_store_place(self.out, name="--out")
        self.frame_counts()

    def frame_counts(self) -> list[int]:
        """The numbers of frames, ascending, each once."""
        texts = [text.strip() for text in self.frames.split(",") if text.strip()]
        if not texts or not all(text.isdecimal() and 1 <= int(text) <= 10_000_000 for text in texts):
            raise ConfigError(
                f"--frames is {self.frames!r}: give whole numbers from 1 on, separated by commas"
            )
        return sorted(set(map(int, texts)))
