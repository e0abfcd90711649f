"""The configurations of an answer run and of a caption run; their options are those of AnswerSettings and of the cluster.

Defaults are written out, since AnswerSettings comes with torch; a test holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from echoprune.errors import ConfigError
from pipelines.config import COMPUTE_DTYPES, DEVICES, RANKS, S3Config
from pipelines.job_config import option, require_store_place
from pipelines.max_failed import MaxFailed

RELEVANCE = ("max", "mean", "softmax", "off")
ENGINES = ("auto", "library", "fast")
POLICIES = ("anchored", "echoprune", "uniform", "random", "evs", "vidcom2", "dycoke", "mmtok")
SETTINGS = (
    "budget",
    "budget_includes_text",
    "relevance",
    "query",
    "policy",
    "first",
    "correspondence_weight",
    "echo_weight",
    "template",
    "letters",
    "positions",
    "empty_cells",
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "batch",
    "batch_tokens",
    "engine",
)
_RELEVANCE_HELP = (
    "How a token's relevance is taken over the words of the query: its greatest similarity to one, their mean, or a "
    "softmax between; off: what is new in the video decides alone."
)
_TEMPLATE_HELP = "What the model is told: brief, dense, summary, multiple_choice, open, yes_no, grounding, or a Jinja file of yours"


@dataclass(frozen=True)
class AskingConfig(S3Config):
    """How the model is asked about a store; checks itself, raises ConfigError with the cure."""

    store: str = ""
    model: str = option(
        "",
        "Checkpoint that the store was made with: a local directory or a hub id. It is compared by content.",
        required=True,
    )

    budget: str = option(
        "4096",
        "Visual tokens of one question: a number, a ratio of the video's or range's original tokens such as 0.05, or "
        "all that is stored.",
        metavar="N|RATIO|all",
    )
    budget_includes_text: bool = option(
        False, "Count the text that comes with cells (Qwen3-VL's time stamps) in --budget."
    )
    relevance: str = option("max", _RELEVANCE_HELP, choices=RELEVANCE)
    query: str = option(
        "question",
        "Whose words relevance is measured against.",
        choices=("question", "question+options", "prompt"),
    )
    policy: str = option(
        "anchored",
        "What chooses the tokens of the budget: anchored ((1 - c)(2 - e + r), first cell whole), echoprune (the paper's "
        "r - c - e), or a baseline, which needs a store made with --keep all.",
        choices=POLICIES,
    )
    first: str = option(
        "auto",
        "The first cell, which has no past to echo, takes its share of the budget, or is whole as far as half of that goes; auto: "
        "whole with anchored, share with echoprune. Other policies do not take this.",
        choices=("auto", "share", "whole"),
    )
    correspondence_weight: float = option(
        1.0, "Weight of the correspondence score c in S = r - c - e; of --policy echoprune alone.", at_least=0
    )
    echo_weight: float = option(
        1.0, "Weight of the echo score e in S = r - c - e; of --policy echoprune alone.", at_least=0
    )
    template: str = option(
        "auto", f"{_TEMPLATE_HELP}; auto: multiple_choice where there are options, else open."
    )
    letters: bool = option(
        False, "Choose among options by the log-probability of their letters, not by the text."
    )
    positions: str = option(
        "auto",
        "Positions of kept tokens for LLaVA-OneVision: those of the unpruned prompt, or compact; auto: compact.",
        choices=("auto", "original", "compact"),
    )
    empty_cells: str = option(
        "drop", "Time stamps of cells that keep no token (Qwen3-VL).", choices=("drop", "keep")
    )
    max_new_tokens: int = option(64, "Length of an answer at most, in tokens.", at_least=1)
    temperature: float = option(
        0.0, "Sampling temperature of the text; 0: greedily, the likeliest token each time.", at_least=0
    )
    top_p: float = option(1.0, "Sample from the likeliest tokens that have this share together.", above=0)
    top_k: int = option(0, "Sample from this many tokens at most; 0: from all.", at_least=0)
    seed: int = option(0, "Seed of sampling, and of --policy random.")
    batch: int = option(8, "Questions answered together at most.", at_least=1)
    batch_tokens: int = option(
        65536, "Tokens of such a batch at most, filled up to its longest prompt.", at_least=1
    )
    engine: str = option(
        "auto",
        "What generates text: the library's own code, or fast, the same weights by steps that suit a GPU, with others joining "
        "a batch as texts end. Texts may differ where two words are equally likely but for rounding. auto: that of the "
        "answers in the folder, and in a new one fast on GPUs.",
        choices=ENGINES,
    )

    compute_dtype: str = option(
        "auto",
        "Number format the model runs in; auto: that of the answers in the folder; in a new one "
        "the checkpoint's own on GPUs, fp32 on CPUs, most of which are slow with any other.",
        choices=COMPUTE_DTYPES,
    )
    device: str = option("auto", "auto takes CUDA where Ray finds a GPU.", choices=DEVICES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.store:
            raise ConfigError(
                "STORE is missing: name the folder of a store on the command line or in --config"
            )
        require_store_place(self.store, name="STORE")

    def settings_values(self) -> dict[str, Any]:
        """The values of AnswerSettings among these options; an engine that is still to be chosen is the library's."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return values | {"engine": "library"} if self.engine == "auto" else values


@dataclass(frozen=True)
class AnsweringConfig(AskingConfig):
    """What answer and caption runs have in common: where answers go, and on what they run."""

    out: str = option(
        "",
        "Folder of the answers, or s3:// URL; made if missing. The same command again does what is missing there.",
        required=True,
        metavar="DIR",
    )
    workers: int | None = option(
        None,
        "Answering actors, one GPU each. Default: one per GPU, or one on a machine without.",
        at_least=1,
    )
    shard_questions: int | None = option(
        None,
        "Questions committed together; an interrupted shard is done again. Default: a 32nd of them in whole "
        "batches, at most 512.",
        at_least=1,
    )
    max_failed: str | None = option(
        None,
        "Stop when more questions of this run have failed than this: a number, or a share of all that it is to do, such as "
        "0.05. Default: never.",
        metavar="N|SHARE",
    )
    retry_failed: bool = option(
        False, "Answer shards again that hold failed answers, for example after their videos were indexed."
    )
    failed_ok: bool = option(
        False,
        "Exit code 0, not 3, although failed answers stand: for what would run the command again for it.",
    )
    address: str | None = option(
        None,
        "Ray cluster to join (auto, HOST:PORT, ray://...). Default: RAY_ADDRESS, else a private local Ray.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_store_place(self.out, name="--out")
        MaxFailed.parse(self.max_failed, of=1)


@dataclass(frozen=True)
class AnswerConfig(AnsweringConfig):
    """Everything that an answer run depends on. `by`: columns to give the accuracy by."""

    questions: str = option(
        "",
        "Questions as JSON lines, CSV or Parquet: question_id, video, question, and optionally options, answer, kind, "
        "start_s, end_s, prompt; further columns are passed through.",
        required=True,
        metavar="FILE",
    )
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionConfig(AnsweringConfig):
    """Everything that a caption run depends on. `videos`: ids, uris, paths or file names; none: all."""

    relevance: str = option(
        "off",
        f"{_RELEVANCE_HELP} A caption has no words of its own but with --query prompt.",
        choices=RELEVANCE,
    )
    template: str = option("brief", f"{_TEMPLATE_HELP}.")
    window: str = option(
        "30s", "Length of the stretch that one caption is about: 30s, 2m, 1h, or seconds.", metavar="LENGTH"
    )
    videos: tuple[str, ...] = ()


@dataclass(frozen=True)
class OverlapConfig(AskingConfig):
    """Everything that a measure of overlap depends on."""

    questions: str = option("", "Questions as for `echoprune answer`.", required=True, metavar="FILE")
    keeps: str = option(
        "0.5,0.25,0.1,0.05",
        "Values of index --keep to compare with the lossless store, separated by commas.",
        metavar="LIST",
    )
    rank_by: str = option("change", "What those take most of; the same option of index.", choices=RANKS)
    out: str = option(
        "", "Write overlap.parquet and overlap.png to this folder, made if missing.", metavar="DIR"
    )
