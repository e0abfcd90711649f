"""Policies through the whole way of a question: what a store holds, ranges, text in the budget, captions, evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.errors import ConfigError
from echoprune.models import load_answerer
from echoprune.models.answerer import Answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.policies import POLICIES
from echoprune.question import Answer, Question
from echoprune.store import TokenStore
from tests import indexed, oracle, policy_cases, policy_oracle
from tests.indexed import Footage

FOOTAGE = (Footage("/a/street.mp4", 9, seed=1, event=(5, 7)), Footage("/a/park.mp4", 6, seed=2, event=(2, 3)))
ASKED = AnswerSettings(budget="60", max_new_tokens=2)
NEEDS_ALL = [name for name, each in POLICIES.items() if each.needs_all]
MakeStore = Callable[..., TokenStore]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: write_tiny_checkpoint(family, tmp_path_factory.mktemp("m") / family, seed=1))


@pytest.fixture(scope="module")
def answerer(model: Callable[[str], Path]) -> Callable[[str], Answerer]:
    return cache(lambda family: load_answerer(str(model(family)), device="cpu"))


@pytest.fixture(scope="module")
def store(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    @cache
    def make(family: str = "qwen2_5_vl", **changes: Any) -> TokenStore:
        return indexed.index(tmp_path_factory.mktemp("store") / "s", model(family), FOOTAGE, **changes)

    return make


def ask(question: str = "What is in the corner?", video: str = "street.mp4", **more: Any) -> Question:
    return Question(question_id=f"{video} {question}", video=video, question=question, **more)


def flat(answer: Answer, grid_thw: tuple[int, int, int], first_cell: int = 0) -> list[int]:
    _, height, width = grid_thw
    t, h, w = answer.kept.T
    return (((t - first_cell) * height + h) * width + w).tolist()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("first_cell", [0, 3])
def test_each_policy_sees_what_the_store_holds(
    family: str, first_cell: int, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    """From a lossless store, of the whole video and of a range, whose first cell has no past."""
    opened, machine = store(family), answerer(family)
    question = ask(start_s=float(first_cell) if first_cell else None)
    tokens = opened.tokens("street.mp4")
    cells, height, width = tokens.grid_thw
    dense = tokens.tokens.view(cells, height * width, -1)[first_cell:]
    vectors = dense.double().numpy()
    c, e = oracle.echo(
        vectors,
        grid_hw=(height, width),
        temperature=opened.settings.temperature,
        window=opened.settings.window,
    )
    words = machine.embed(question.question)
    r = oracle.relevance(vectors.reshape(-1, vectors.shape[-1]), words.double().numpy()).reshape(c.shape)
    expected = {
        "anchored": policy_oracle.anchored(c, e, r, budget=60),
        "echoprune": oracle.keep_with_question(c, e, r, budget=60, first="share"),
        "uniform": policy_oracle.uniform(len(vectors), (height, width), budget=60),
        "evs": policy_oracle.evs(c, budget=60),
    }
    # Of a still picture their scores are equal but for rounding, so that oracles in float64 are for their own tests.
    seen = policy_cases.candidates(
        len(dense), (height, width), budget=60, vectors=dense, query=words, relevance=None
    )
    expected |= {name: policy_cases.kept(name, seen) for name in ("vidcom2", "dycoke", "mmtok")}
    assert set(expected) == set(POLICIES) - {"random"}
    for name, kept in expected.items():
        settings = replace(ASKED, policy=name)
        [answer] = answer_questions([question], store=opened, answerer=machine, settings=settings)
        assert flat(answer, tokens.grid_thw, first_cell) == kept, name
        assert (answer.visual_tokens, answer.certified, answer.r_needed) == (60, True, None)
        assert answer.evidence and answer.stored_tokens == answer.original_tokens


@pytest.mark.parametrize("policy", NEEDS_ALL)
def test_a_pruned_store_is_refused(
    policy: str, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    with pytest.raises(
        ConfigError, match=f"--policy {policy} needs every token.*--keep 0.5.*--policy anchored"
    ):
        next(
            answer_questions(
                [ask()],
                store=store(keep="0.5"),
                answerer=answerer("qwen2_5_vl"),
                settings=replace(ASKED, policy=policy),
            )
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_text_in_the_budget(policy: str, store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    settings = replace(ASKED, policy=policy, budget="100", budget_includes_text=True)
    [answer] = answer_questions(
        [ask()], store=store("qwen3_vl"), answerer=answerer("qwen3_vl"), settings=settings
    )
    assert answer.timestamp_tokens > 0
    assert 100 - 20 <= answer.visual_tokens + answer.timestamp_tokens <= 100


@pytest.mark.parametrize("policy", POLICIES)
def test_captions_and_all_that_is_stored(
    policy: str, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    caption = ask("", prompt="brief", kind="caption", start_s=1.0)
    settings = replace(ASKED, policy=policy, relevance="off", budget="16")
    opened, machine = store(), answerer("qwen2_5_vl")
    [said] = answer_questions([caption], store=opened, answerer=machine, settings=settings)
    places = said.original_tokens // 8
    # The policies that go by score keep the first cell whole beside the budget.
    assert said.visual_tokens == 16 + (places if POLICIES[policy].first else 0)
    everything = replace(ASKED, policy=policy, budget="all")
    [answer] = answer_questions([ask()], store=opened, answerer=machine, settings=everything)
    assert answer.visual_tokens == answer.original_tokens and answer.certified


def test_random_tokens_do_not_depend_on_what_is_asked_or_when(
    store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    settings = replace(ASKED, policy="random", relevance="off")
    questions = [ask("What?"), ask("Who?"), ask("What?", "park.mp4"), ask("Where?", start_s=2.0)]
    machine = answerer("qwen2_5_vl")
    there, back = (
        {
            answer.question.question_id: answer.kept.tolist()
            for answer in answer_questions(order, store=store(), answerer=machine, settings=settings)
        }
        for order in (questions, questions[::-1])
    )
    assert there == back
    assert there["street.mp4 What?"] == there["street.mp4 Who?"] != there["park.mp4 What?"]
    other = replace(settings, seed=1)
    [answer] = answer_questions(questions[:1], store=store(), answerer=machine, settings=other)
    assert answer.kept.tolist() != there["street.mp4 What?"]


@pytest.mark.parametrize("policy", [name for name, each in POLICIES.items() if each.needs_vectors])
def test_a_video_whose_tokens_do_not_fit_is_a_failed_answer(
    policy: str,
    store: MakeStore,
    answerer: Callable[[str], Answerer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(ASKED, policy=policy)
    opened = store()
    # Room for four cells: the whole video is too long, a range of three is not.
    each = 28 * 4 * opened.settings.dim
    monkeypatch.setattr("echoprune.stored_video.VECTORS_BYTES", 4 * each)
    whole, part = answer_questions(
        [ask(), ask("When?", end_s=3.0)], store=opened, answerer=answerer("qwen2_5_vl"), settings=settings
    )
    assert (whole.status, whole.error_class) == ("failed", "too_long_for_policy")
    assert (
        "252 tokens of /a/street.mp4" in whole.error and "--policy anchored, echoprune or evs" in whole.error
    )
    assert (part.status, part.visual_tokens) == ("ok", 60)


@pytest.mark.parametrize("policy", [name for name, each in POLICIES.items() if each.needs_vectors])
def test_tokens_read_in_pieces_or_as_int8_or_bf16(
    policy: str, store: MakeStore, answerer: Callable[[str], Answerer], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, machine = replace(ASKED, policy=policy), answerer("qwen2_5_vl")
    for dtype in ("fp32", "bf16", "int8"):
        opened = store(dtype=dtype)
        [whole] = answer_questions([ask()], store=opened, answerer=machine, settings=settings)
        with monkeypatch.context() as patch:
            patch.setattr("echoprune.stored_video.CACHED_BYTES", 0)
            [pieces] = answer_questions([ask()], store=opened, answerer=machine, settings=settings)
        np.testing.assert_array_equal(whole.kept, pieces.kept)
        assert whole.visual_tokens == 60
