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
from echoprune.errors import ConfigError, StoreMismatchError
from echoprune.models import load_answerer
from echoprune.models.answerer import Answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.overlap import Overlap, measure, summary
from echoprune.overlap_picture import draw_overlap
from echoprune.question import Question
from echoprune.store import TokenStore
from tests import indexed
from tests.indexed import Footage

FOOTAGE = (
    Footage("/a/street.mp4", 12, seed=1, event=(7, 9)),
    Footage("/a/park.mp4", 6, seed=2, event=(2, 3)),
)
ASKED = AnswerSettings(policy="echoprune", budget="24", max_new_tokens=3)
KEEPS = ("0.9", "0.5", "0.25", "2/cell")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny", seed=1)


@pytest.fixture(scope="module")
def answerer(model: Path) -> Answerer:
    return load_answerer(str(model), device="cpu")


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TokenStore]:
    @cache
    def make(**changes: Any) -> TokenStore:
        return indexed.index(
            tmp_path_factory.mktemp("store") / "s", model, FOOTAGE, anchor_every_s=5.0, **changes
        )

    return make


def asked(video: str = "street.mp4", **more: Any) -> Question:
    return Question(question_id=video, video=video, question="What is in the corner?", **more)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("start_s", "end_s"), [(None, None), (3.0, 11.0)])
@pytest.mark.parametrize(
    ("policy", "budget", "rank_by"),
    [("echoprune", "24", "novelty"), ("anchored", "52", "change"), ("anchored", "52", "novelty")],
)
def test_what_is_predicted_is_what_a_pruned_store_gives(
    keep: str,
    start_s: float | None,
    end_s: float | None,
    policy: str,
    budget: str,
    rank_by: str,
    store: Callable[..., TokenStore],
    answerer: Answerer,
) -> None:
    """Against stores that were really made with that ratio: the same choice and the same certificate."""
    settings = replace(ASKED, policy=policy, budget=budget)
    question = asked(start_s=start_s, end_s=end_s)
    [predicted] = measure(
        [question], store=store(), answerer=answerer, settings=settings, keeps=[keep], rank_by=rank_by
    )
    kept = []
    for opened in (store(), store(keep=keep, rank_by=rank_by)):
        [answer] = answer_questions([question], store=opened, answerer=answerer, settings=settings)
        kept.append({tuple(row) for row in answer.kept.tolist()})
    assert predicted.overlap == pytest.approx(len(kept[0] & kept[1]) / len(kept[0]))
    assert predicted.certified == answer.certified


def test_the_change_of_log_probability_is_that_of_the_two_prompts(
    store: Callable[..., TokenStore], answerer: Answerer
) -> None:
    question = asked(answer="a red ball")
    wide = replace(ASKED, budget="150")
    found = list(measure([question], store=store(), answerer=answerer, settings=wide, keeps=KEEPS))
    assert [each.keep for each in found] == list(KEEPS)
    assert {each.text for each in found} == {"a red ball"}
    assert len({each.logprob_change for each in found}) > 1
    # Where everything that is chosen is still there, nothing changes.
    same = next(each for each in found if each.overlap == 1.0)
    assert same.logprob_change == pytest.approx(0.0, abs=1e-5)
    assert found[-1].overlap < 1.0 and found[-1].logprob_change != 0.0


def test_questions_that_cannot_be_asked_are_rows_too(
    store: Callable[..., TokenStore], answerer: Answerer
) -> None:
    questions = [asked(start_s=50.0), asked(error_class="bad", error="row 2"), asked("park.mp4")]
    questions.append(replace(asked("nowhere.mp4"), question_id="no"))
    found = list(measure(questions, store=store(), answerer=answerer, settings=ASKED, keeps=["0.5", "0.25"]))
    assert [bool(each.error) for each in found] == [True] * 4 + [False] * 2 + [True] * 2
    [half, quarter] = summary(found)
    assert (half.keep, half.questions, quarter.keep, quarter.questions) == ("0.5", 1, "0.25", 1)


def test_summary_has_means_and_their_intervals() -> None:
    rows = [
        Overlap(str(i), "0.5", overlap=value, certified=value == 1.0, logprob_change=-value)
        for i, value in enumerate((1.0, 0.5, 0.75, 0.75))
    ]
    [loss] = summary([*rows, Overlap("x", "0.5", error="no")])
    assert (loss.questions, loss.overlap, loss.certified, loss.logprob_change) == (4, 0.75, 0.25, -0.75)
    assert loss.overlap_within == pytest.approx(1.96 * np.std([1, 0.5, 0.75, 0.75], ddof=1) / 2)


def test_only_lossless_stores_can_tell(store: Callable[..., TokenStore], answerer: Answerer) -> None:
    with pytest.raises(ConfigError, match=r"--keep 0.5.*--keep all"):
        list(measure([asked()], store=store(keep="0.5"), answerer=answerer, settings=ASKED, keeps=["0.1"]))
    for keeps in ([], ["all"], ["many"]):
        with pytest.raises(ConfigError, match="keep"):
            list(measure([asked()], store=store(), answerer=answerer, settings=ASKED, keeps=keeps))


def test_policies_that_take_no_pruned_store_cannot_be_compared(
    store: Callable[..., TokenStore], answerer: Answerer
) -> None:
    settings = replace(ASKED, policy="uniform")
    with pytest.raises(ConfigError, match=r"--policy uniform takes no pruned store.*anchored, echoprune"):
        list(measure([asked()], store=store(), answerer=answerer, settings=settings, keeps=["0.5"]))


def test_another_model_is_refused(
    store: Callable[..., TokenStore], tmp_path: Path, answerer: Answerer
) -> None:
    other = load_answerer(str(write_tiny_checkpoint("qwen2_5_vl", tmp_path / "m", seed=9)), device="cpu")
    with pytest.raises(StoreMismatchError, match="--model"):
        list(measure([asked()], store=store(), answerer=other, settings=ASKED, keeps=["0.5"]))
    with pytest.raises(StoreMismatchError, match="--model"):
        list(answer_questions([asked()], store=store(), answerer=other, settings=ASKED))


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    rows = [Overlap("a", keep, overlap=0.5, logprob_change=-0.1) for keep in KEEPS]
    draw_overlap(summary(rows), tmp_path / "o.png", title="street.mp4")
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")
