"""From questions and a store to answers: view, relevance, choice under the budget, prompt, text, evidence.

    question + store --view, relevance--> scores --choose(budget)--> kept tokens --prompt, generate--> Answer

A plain function over an iterable of questions: a unit test, a laptop and a Ray actor run the same code. No video is
opened. A question that cannot be answered is an Answer that says why; only what is nobody's question's fault (a model that
computes nonsense, a full disk) is raised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from echoprune.answer_settings import LIBRARY, AnswerSettings
from echoprune.errors import ConfigError, StoreError, StoreUnavailableError, UnanswerableError
from echoprune.letters import is_correct, letter, parse_choice
from echoprune.models.answerer import Answerer, Decoding, Generated
from echoprune.policies import POLICIES, policy
from echoprune.prepare import Prepared, prepare
from echoprune.question import Answer, Question
from echoprune.store import TokenStore
from echoprune.stored_video import StoredVideo
from echoprune.templates import Template, load_template
from echoprune.videos_ahead import videos_ahead

# The fast engine is handed this many times as many prompts as run together: a slot that is empty at the end of one of
# these batches costs a quarter of what it would if each began with empty slots. They wait in the CPU's memory, 29 MB each.
WAITING = 4


def answer_questions(
    questions: Iterable[Question],
    *,
    store: TokenStore,
    answerer: Answerer,
    settings: AnswerSettings,
    on_batch: Callable[[tuple[str, ...]], None] | None = None,
    on_question: Callable[[Question], None] | None = None,
) -> Iterator[Answer]:
    """The answers to `questions`, one each, in their order.

    Questions about one video should follow one another: a video's tokens are read for each run of them, while questions
    before it are answered (videos_ahead.py). `on_question` is called with each question when its turn comes, `on_batch`
    with the ids of those about to be answered together.

    Raises StoreMismatchError for a store whose tokens are not those of the model, ConfigError for a policy that needs
    tokens which the index dropped.
    """
    require_fit(store, answerer)
    require_tokens(store, settings)
    # Failed answers wait for those before them, so that the order is that of the questions.
    waiting: list[Answer | Prepared] = []
    for outcome in _prepared(
        questions,
        store=store,
        answerer=answerer,
        settings=settings,
        on_question=on_question,
        # The first prompt of a batch is the only one that takes the GPU's memory before its turn.
        on_device=lambda: not waiting,
    ):
        prompts = [each for each in waiting if isinstance(each, Prepared)]
        if isinstance(outcome, Prepared) and not _fits([*prompts, outcome], settings):
            yield from _answered(waiting, answerer=answerer, settings=settings, on_batch=on_batch)
            waiting.clear()
        waiting.append(outcome)
        if not any(isinstance(each, Prepared) for each in waiting):
            yield from _answered(waiting, answerer=answerer, settings=settings, on_batch=on_batch)
            waiting.clear()
    yield from _answered(waiting, answerer=answerer, settings=settings, on_batch=on_batch)


def _fits(prepared: list[Prepared], settings: AnswerSettings) -> bool:
    """Whether these may be handed to the model at once: all that run together, with the fast engine also some that wait."""
    waiting = 1 if settings.engine == LIBRARY else WAITING
    return len(prepared) <= waiting * _together(prepared, settings)


def _together(prepared: list[Prepared], settings: AnswerSettings) -> int:
    """How many of these prompts run together at most: by number, and by tokens filled up to the longest."""
    longest = max(len(each.prompt) for each in prepared) + settings.max_new_tokens
    return min(settings.batch, max(1, settings.batch_tokens // longest))


def _prepared(
    questions: Iterable[Question],
    *,
    store: TokenStore,
    answerer: Answerer,
    settings: AnswerSettings,
    on_question: Callable[[Question], None] | None,
    on_device: Callable[[], bool],
) -> Iterator[Answer | Prepared]:
    template: Template | str = settings.template
    if settings.template != "auto":
        template = load_template(settings.template)
    opened = videos_ahead(questions, store, device=answerer.device, on_question=on_question)
    for question, its_video in opened:
        video: StoredVideo | None = None
        try:
            video = its_video()
            outcome = prepare(
                question,
                video=video,
                answerer=answerer,
                settings=settings,
                template=template,
                on_device=on_device(),
            )
        except UnanswerableError as error:
            outcome = failed(question, error.error_class, str(error), video=video)
        except StoreUnavailableError:
            # No question's fault: the shard runs again, or the run ends.
            raise
        except StoreError as error:
            # One damaged file must not stop the questions about all other videos.
            outcome = failed(question, "store_damaged", str(error), video=video)
        yield outcome


def failed(question: Question, error_class: str, error: str, *, video: StoredVideo | None = None) -> Answer:
    """The answer of status "failed"; `video`: what was open, named in the answer if it is the question's."""
    row = {} if video is None else video.row
    return Answer(
        question=question,
        status="failed",
        error_class=error_class,
        error=" ".join(error.split()),
        video_id=row.get("video_id"),
        uri=row.get("uri"),
    )


def _answered(
    waiting: list[Answer | Prepared],
    *,
    answerer: Answerer,
    settings: AnswerSettings,
    on_batch: Callable[[tuple[str, ...]], None] | None,
) -> Iterator[Answer]:
    prepared = [each for each in waiting if isinstance(each, Prepared)]
    if prepared and on_batch is not None:
        on_batch(tuple(each.answer.question.question_id for each in prepared))
    answers = iter(_texts(prepared, answerer, settings) if prepared else [])
    for each in waiting:
        yield next(answers) if isinstance(each, Prepared) else each


def _texts(prepared: list[Prepared], answerer: Answerer, settings: AnswerSettings) -> list[Answer]:
    """The answers with their texts. A batch that does not fit in the GPU's memory is halved; a single one has failed."""
    prompts = [each.prompt for each in prepared]
    try:
        together = min(len(prepared), _together(prepared, settings))
        texts = answerer.generate(prompts, _seeded(settings.decoding(), prepared), slots=together)
        scores = _letter_scores(prepared, answerer) if settings.letters else [None] * len(prepared)
    except torch.OutOfMemoryError as error:
        if len(prepared) == 1:
            question = prepared[0].answer.question
            message = f"a prompt of {len(prompts[0])} tokens does not fit in memory ({error}): lower --budget"
            return [replace(failed(question, "out_of_memory", message), video_id=prepared[0].answer.video_id)]
        half = len(prepared) // 2
        return _texts(prepared[:half], answerer, settings) + _texts(prepared[half:], answerer, settings)
    return [_finished(*each) for each in zip(prepared, texts, scores, strict=True)]


def _seeded(decoding: Decoding, prepared: list[Prepared]) -> Decoding:
    """The seed of a batch depends on its questions, so that a run that is resumed draws as one that was not."""
    ids = json.dumps([decoding.seed, *(each.answer.question.question_id for each in prepared)])
    return replace(decoding, seed=int(hashlib.sha256(ids.encode()).hexdigest()[:12], 16))


def _letter_scores(prepared: list[Prepared], answerer: Answerer) -> list[tuple[float, ...] | None]:
    asked = [each for each in prepared if each.answer.question.options]
    if not asked:
        return [None] * len(prepared)
    counts = [len(each.answer.question.options) for each in asked]
    found = iter(answerer.choice_logprobs([each.prompt for each in asked], counts))
    return [next(found) if each.answer.question.options else None for each in prepared]


def _finished(prepared: Prepared, text: Generated, scores: tuple[float, ...] | None) -> Answer:
    question = prepared.answer.question
    choice = None
    if scores is not None:
        choice = letter(int(np.argmax(scores)))
    elif question.options:
        choice = parse_choice(text.text, question.options)
    return replace(
        prepared.answer,
        raw_text=text.text,
        finish=text.finish,
        new_tokens=text.new_tokens,
        parsed_choice=choice,
        choice_logprobs=scores,
        correct=is_correct(question, choice, text.text),
    )


def require_fit(store: TokenStore, answerer: Answerer) -> None:
    """Raises StoreMismatchError unless the store's tokens are those that the model's own vision part would give."""
    store.settings.require_model(answerer.fingerprint, f"this {answerer.family} model")


def require_tokens(store: TokenStore, settings: AnswerSettings) -> None:
    """Raises ConfigError if the policy needs every token of a video and the store was made with less."""
    if policy(settings.policy).needs_all and store.settings.keep != "all":
        others = " or ".join(name for name, each in POLICIES.items() if not each.needs_all)
        raise ConfigError(
            f"--policy {settings.policy} needs every token, and the store was made with --keep {store.settings.keep}: give "
            f"--policy {others}, or index with --keep all"
        )


def provenance(store: TokenStore, settings: AnswerSettings) -> dict[str, str]:
    """The columns that say what an answer was made with."""
    return {
        "model_fingerprint": store.settings.model_fingerprint,
        "store_digest": store.settings.digest,
        "settings_digest": settings.digest,
    }
