"""What a smaller index would have lost: the choice from pruned stores against that from a lossless one.

For each ratio the index's own rule is applied to the scores that a lossless store holds, so that no second store is made.
The question's choice from what is left is compared with the exact one: how many of its tokens are the same, and how the
probability of the answer changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from echoprune.answer import require_fit
from echoprune.answer_settings import AnswerSettings
from echoprune.change import rank
from echoprune.choose import Chosen
from echoprune.errors import ConfigError, UnanswerableError
from echoprune.models.answerer import Answerer
from echoprune.policies import POLICIES, policy
from echoprune.prepare import Prepared, Scored, choose_for, open_video, score, with_tokens
from echoprune.prune import Keep, select
from echoprune.question import Question
from echoprune.schema import CHANGE
from echoprune.store import TokenStore
from echoprune.stored import Stored
from echoprune.stored_video import StoredVideo

Z_95 = 1.96


@dataclass(frozen=True)
class Overlap:
    """One question at one ratio. `error`: why it could not be asked, "" if it could; then the rest means nothing.

    `overlap`: the share of the exact choice that is still there, 0 to 1. `certified`: the pruned store would have said
    that nothing was lost. `logprob_change`: of the whole `text` after the prompt, pruned less exact; `text` is the
    question's answer, or what the model says to the exact choice.
    """

    question_id: str
    keep: str
    overlap: float = 0.0
    certified: bool = False
    logprob_change: float = 0.0
    text: str = ""
    error: str = ""


@dataclass(frozen=True)
class RatioLoss:
    """All questions at one ratio: means with half the width of their 95 % interval, and the share that is certified."""

    keep: str
    questions: int
    overlap: float
    overlap_within: float
    certified: float
    logprob_change: float
    logprob_within: float


def measure(
    questions: Iterable[Question],
    *,
    store: TokenStore,
    answerer: Answerer,
    settings: AnswerSettings,
    keeps: Sequence[str],
    rank_by: str = CHANGE,
) -> Iterator[Overlap]:
    """For each question one Overlap a ratio of `keeps`, in their order; `rank_by`: as of the index.

    Raises ConfigError as `require_comparable`, or where `keeps` are not ratios or numbers per cell.
    """
    require_fit(store, answerer)
    require_comparable(store, settings)
    parsed = [Keep.parse(keep) for keep in keeps]
    if not parsed or Keep() in parsed:
        raise ConfigError(f"--keeps is {', '.join(keeps) or 'empty'!r}; give ratios such as 0.5,0.25,0.1")
    video: StoredVideo | None = None
    for question in questions:
        try:
            video = open_video(question, store, video)
            scored = score(question, video=video, answerer=answerer, settings=settings)
            # Up to 1 GiB of a GPU's memory, which texts need more.
            scored = replace(scored, vectors=None)
            exact = choose_for(
                scored, scored.stored, scored.related, None, answerer=answerer, settings=settings
            )
        except UnanswerableError as error:
            yield from (Overlap(question.question_id, str(keep), error=str(error)) for keep in parsed)
            continue
        yield from _compared(scored, exact, parsed, rank_by=rank_by, answerer=answerer, settings=settings)


def require_comparable(store: TokenStore, settings: AnswerSettings) -> None:
    """Raises ConfigError for a store that is not lossless, or a policy that takes no other."""
    if policy(settings.policy).needs_all:
        others = ", ".join(name for name, each in POLICIES.items() if not each.needs_all)
        raise ConfigError(
            f"--policy {settings.policy} takes no pruned store, so that there is nothing to compare: give one of {others}"
        )
    if store.settings.keep != "all":
        raise ConfigError(
            f"the store was made with --keep {store.settings.keep}: what it dropped cannot be compared; index again with "
            "--keep all"
        )


def pruned(scored: Scored, keep: Keep, *, rank_by: str) -> tuple[torch.Tensor, Stored]:
    """Indices into `scored.stored`, and the Stored that an index with `keep` and `rank_by` would have left of them.

    The rule is the index's: over the whole video, first cell and anchors whole and not counted.
    """
    view, video = scored.view, scored.video
    correspondence, echo, pinned = video.lossless
    cells = len(correspondence)
    budget = keep.budget(cells, view.tokens_per_cell)
    flat = rank(correspondence, echo, by=rank_by).flatten()
    free = pinned[:, None].expand_as(correspondence).flatten()
    held = select(flat, ~free, budget=budget or 0, cells=cells, first="free")
    left = torch.ones(len(flat), dtype=torch.bool)
    left[held] = False
    dropped = float(flat[left].max()) if bool(left.any()) else None
    begin = view.first_cell * view.tokens_per_cell
    index = held[(held >= begin) & (held < view.stop_cell * view.tokens_per_cell)] - begin
    whole = scored.stored
    stored = replace(
        whole,
        t=whole.t[index],
        correspondence=whole.correspondence[index],
        echo=whole.echo[index],
        highest_dropped=dropped,
        rank_by=rank_by,
    )
    return index, stored


def _compared(
    scored: Scored,
    exact: Chosen,
    keeps: Sequence[Keep],
    *,
    rank_by: str,
    answerer: Answerer,
    settings: AnswerSettings,
) -> Iterator[Overlap]:
    question = scored.answer.question
    best = with_tokens(scored, exact, answerer=answerer)
    text = question.answer or answerer.generate([best.prompt], settings.decoding())[0].text
    reference = answerer.text_logprob(best.prompt, text)
    reach = None
    if scored.query is not None:
        reach = scored.video.reach(scored.view, scored.query, reduce=settings.relevance)
    for keep in keeps:
        index, stored = pruned(scored, keep, rank_by=rank_by)
        if len(index) == 0:
            yield Overlap(question.question_id, str(keep), error="nothing would be stored of this range")
            continue
        related = None if scored.related is None else scored.related[index]
        chosen = choose_for(scored, stored, related, reach, answerer=answerer, settings=settings)
        kept = index[chosen.indices]
        prepared: Prepared = with_tokens(scored, replace(chosen, indices=kept), answerer=answerer)
        same = int(torch.isin(exact.indices, kept).sum())
        yield Overlap(
            question.question_id,
            str(keep),
            overlap=same / max(1, len(exact.indices)),
            certified=chosen.certified,
            logprob_change=answerer.text_logprob(prepared.prompt, text) - reference,
            text=text,
        )


def summary(overlaps: Sequence[Overlap]) -> list[RatioLoss]:
    """One RatioLoss for each ratio, in the order of first appearance; questions that could not be asked are left out."""
    losses = []
    for keep in dict.fromkeys(each.keep for each in overlaps):
        rows = [each for each in overlaps if each.keep == keep and not each.error]
        same, change = (
            _mean_within([getattr(each, name) for each in rows]) for name in ("overlap", "logprob_change")
        )
        certified = sum(each.certified for each in rows) / len(rows) if rows else float("nan")
        losses.append(RatioLoss(keep, len(rows), *same, certified, *change))
    return losses


def _mean_within(values: list[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), Z_95 * spread / len(values) ** 0.5
