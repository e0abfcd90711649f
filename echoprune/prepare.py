"""One question made ready for the language model: its view, the tokens that its budget keeps, its prompt.

    question + stored video --relevance--> scores --choose(budget)--> kept tokens + evidence --> Prompt

What cannot be asked is told apart by the class of an UnanswerableError, which becomes a failed row in answer.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import torch

from echoprune.answer_settings import AnswerSettings
from echoprune.change import change
from echoprune.choose import Budget, Chosen, choose
from echoprune.errors import ConfigError, NoSuchVideoError, UnanswerableError
from echoprune.evidence import cell_mass, moments
from echoprune.models.answerer import Answerer
from echoprune.models.prompt import Prompt, Skeleton
from echoprune.policies import Candidates, policy
from echoprune.question import Answer, Question
from echoprune.store import TokenStore
from echoprune.stored import Stored
from echoprune.stored_video import StoredVideo
from echoprune.templates import Template, template_for
from echoprune.view import View


@dataclass(frozen=True)
class Prepared:
    """A question with its prompt, and the Answer as far as it is known before there is a text."""

    prompt: Prompt
    answer: Answer


@dataclass(frozen=True)
class Scored:
    """A question whose view of a video is scored, before a budget chooses.

    `query` (M, D): the words that relevance is measured against, None without. `related` (n,) float32: the relevance of
    the stored tokens, None without `query`. `reach` (T,) float32: what that of no token of a cell exceeds, None where no
    token was dropped, or without `query`. `vectors` (n, D): the tokens where they were scored, None of a long video.
    `frame`: its prompt without tokens.
    """

    answer: Answer
    video: StoredVideo
    view: View
    query: torch.Tensor | None
    stored: Stored
    related: torch.Tensor | None
    reach: torch.Tensor | None
    vectors: torch.Tensor | None
    frame: Skeleton


def open_video(question: Question, store: TokenStore, current: StoredVideo | None) -> StoredVideo:
    """The question's video; `current` again if it is that.

    Raises UnanswerableError for a row that is no question, and for a video that is not there, not the only one of its
    name, or failed.
    """
    if question.error_class:
        raise UnanswerableError("bad_row", f"{question.error_class}: {question.error}")
    try:
        row = store.video(question.video)
    except NoSuchVideoError as error:
        raise UnanswerableError(
            "ambiguous_video" if error.several else "unknown_video", str(error)
        ) from error
    if row["status"] == "failed":
        raise UnanswerableError("video_failed", f"video {row['uri']} was not indexed: {row['error']}")
    if current is not None and current.video_id == row["video_id"]:
        return current
    return StoredVideo(store, row["video_id"])


def prepare(
    question: Question,
    *,
    video: StoredVideo,
    answerer: Answerer,
    settings: AnswerSettings,
    template: Template | str = "auto",
    on_device: bool = False,
) -> Answer | Prepared:
    """The question with its prompt: its view of `video`, the tokens that its budget keeps, and their evidence.

    The prompt's features lie on the CPU, or where they were scored, if `on_device`: for one that is answered at once.
    An Answer of status "empty" for a caption of a view in which nothing is stored. Raises UnanswerableError.
    """
    try:
        scored = score(question, video=video, answerer=answerer, settings=settings, template=template)
        if len(scored.stored.t) == 0:
            raise UnanswerableError(
                "no_tokens_in_range", f"nothing is stored of {video.row['uri']} in {_range(question)}"
            )
    except UnanswerableError as error:
        if question.kind == "caption" and error.error_class in ("range_outside", "no_tokens_in_range"):
            chosen_template = template_for(question, template)
            return replace(_begun(question, video, chosen_template), status="empty", error=str(error))
        raise
    reach = None if scored.stored.complete else scored.reach
    chosen = choose_for(scored, scored.stored, scored.related, reach, answerer=answerer, settings=settings)
    return with_tokens(scored, chosen, answerer=answerer, on_device=on_device)


def score(
    question: Question,
    *,
    video: StoredVideo,
    answerer: Answerer,
    settings: AnswerSettings,
    template: Template | str = "auto",
) -> Scored:
    """The question's view of `video` with the relevance of its stored tokens, none or many. Raises UnanswerableError."""
    chosen_template = template_for(question, template)
    try:
        text = chosen_template.render(question)
    except ConfigError as error:
        raise UnanswerableError("bad_template", str(error)) from error
    view = video.view(question.start_s, question.end_s)
    if view is None:
        raise UnanswerableError(
            "range_outside",
            f"no cell begins in {_range(question)}: the store covers 0 to {video.end_s:.3f} s of {video.row['uri']}",
        )
    try:
        frame = answerer.skeleton(text, view)
    except ConfigError as error:
        raise UnanswerableError("reserved_token", str(error)) from error
    query = _query(question, text, answerer, settings)
    # Before its tokens are waited for, which another thread may be reading.
    reach = (
        video.reach(view, query, reduce=settings.relevance)
        if query is not None and video.row["highest_dropped_novelty"] is not None
        else None
    )
    found = video.scores(view, query, reduce=settings.relevance, device=answerer.device)
    answer = replace(
        _begun(question, video, chosen_template),
        original_tokens=view.tokens,
        stored_tokens=len(found.stored.t),
    )
    return Scored(answer, video, view, query, found.stored, found.related, reach, found.vectors, frame)


def _begun(question: Question, video: StoredVideo, template: Template) -> Answer:
    return Answer(
        question=question,
        status="ok",
        video_id=video.video_id,
        uri=video.row["uri"],
        template=template.name,
        template_hash=template.digest,
    )


def _query(
    question: Question, text: str, answerer: Answerer, settings: AnswerSettings
) -> torch.Tensor | None:
    """(M, D) embeddings of the words that relevance is measured against; None where there are none."""
    if settings.relevance == "off":
        return None
    words = question.question
    if settings.query == "question+options":
        words = "\n".join([words, *question.options])
    elif settings.query == "prompt":
        words = text
    query = answerer.embed(words.strip())
    return query if len(query) else None


def choose_for(
    scored: Scored,
    stored: Stored,
    related: torch.Tensor | None,
    reach: torch.Tensor | None,
    *,
    answerer: Answerer,
    settings: AnswerSettings,
) -> Chosen:
    """What the policy and the budget of `settings` keep of `stored`, which is `scored.stored` or a part of it.

    Raises UnanswerableError if that is nothing, or if the policy needs more than fits in memory.
    """
    chooser = policy(settings.policy)
    budget = Budget.parse(settings.budget).count(stored.cells * stored.tokens_per_cell)
    vectors = None
    if chooser.needs_vectors and budget is not None:
        vectors = scored.video.vectors(scored.view, device=answerer.device)
    given = Candidates(
        stored=stored,
        budget=budget,
        relevance=related,
        first=settings.first if settings.first != "auto" else chooser.first or "share",
        correspondence_weight=settings.correspondence_weight,
        echo_weight=settings.echo_weight,
        grid_hw=scored.view.grid_thw[1:],
        seed=_seed(settings.seed, scored.video.video_id),
        vectors=vectors,
        query=scored.query,
    )
    if budget is None or not settings.budget_includes_text:
        return choose(given, chooser, reach=reach)

    def under(count: int) -> Chosen:
        return choose(replace(given, budget=count), chooser, reach=reach)

    # Without relevance these policies keep the first cell whole and do not count it.
    free = int((stored.t == 0).sum()) if related is None and chooser.scoring is not None else 0

    def cost(chosen: Chosen) -> int:
        used = answerer.slots_used(scored.frame, stored.t[chosen.indices])
        return len(chosen.indices) - free + scored.frame.timestamp_tokens(used)

    whole = under(budget)
    if cost(whole) <= budget:
        return whole
    # More tokens rarely cost less text, where the choices of a policy do not nest or the odd cell changes hands: the last
    # that fits is close to the best. One token is tried before it is given up.
    best, low, high = None, 1, budget
    while low <= high:
        middle = (low + high) // 2
        chosen = under(middle)
        if cost(chosen) <= budget:
            best, low = chosen, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise UnanswerableError(
            "budget_too_small",
            f"--budget {settings.budget} leaves no room beside the text that comes with cells ({cost(under(1))} with one "
            "token): raise it, or leave out --budget-includes-text",
        )
    return best


def _seed(seed: int, video_id: str) -> int:
    """The seed of a policy that draws: of the run and the video, whatever is asked of it and when."""
    text = json.dumps([seed, video_id])
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def with_tokens(scored: Scored, chosen: Chosen, *, answerer: Answerer, on_device: bool = False) -> Prepared:
    """The prompt with the tokens of `chosen`, whose indices count in `scored.stored`; `on_device` as of `prepare`."""
    view = scored.view
    kept = scored.video.gather(view, chosen.indices, vectors=scored.vectors if on_device else None)
    prompt = answerer.place(scored.frame, kept, view)
    t = kept.positions[:, 0].numpy()
    above = (
        None if scored.related is None else (scored.related - scored.related.mean())[chosen.indices].numpy()
    )
    mass = cell_mass(t, _change(scored, chosen.indices).numpy(), above, cells=view.grid_thw[0])
    positions = kept.positions.numpy().astype(np.int32)
    positions[:, 0] += view.first_cell
    answer = replace(
        scored.answer,
        evidence=moments(mass, view),
        kept=positions,
        visual_tokens=len(positions),
        timestamp_tokens=prompt.timestamp_tokens,
        prompt_tokens=len(prompt),
        r_needed=chosen.r_needed,
        certified=chosen.certified,
    )
    return Prepared(prompt, answer)


def _change(scored: Scored, index: torch.Tensor) -> torch.Tensor:
    """(K,) float32 change of stored tokens.

    The first cell of a range has its own c and e: only that of the video has none, and is taken as an echo (c = 1).
    """
    stored = scored.stored
    known = (stored.t[index] > 0) | (scored.view.first_cell > 0)
    return torch.where(known, change(stored.correspondence[index], stored.echo[index]), 0.0)


def _range(question: Question) -> str:
    if question.start_s is None and question.end_s is None:
        return "the whole video"
    start_s = question.start_s or 0.0
    return f"{start_s:g} s to {'the end' if question.end_s is None else f'{question.end_s:g} s'}"
