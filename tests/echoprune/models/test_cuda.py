"""The same answers on a GPU; run where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.data import Frames
from echoprune.models import families, load_answerer
from echoprune.models.answerer import Decoding
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Question
from tests import indexed
from tests.indexed import Footage
from tests.plain import first_logits, keep_mask, make_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("family", families())
def test_logits_and_text_are_those_of_the_cpu(
    family: str, tmp_path: Path, make_frames: Callable[..., Frames]
) -> None:
    case = make_case(family, tmp_path / "model", make_frames)
    other = dataclasses.replace(case, answerer=load_answerer(str(tmp_path / "model"), device="cuda"))
    assert other.answerer.device.type == "cuda"
    prompts = [case.prompt(keep=keep_mask(case, seed=seed)) for seed in range(4)]
    for prompt in prompts:
        torch.testing.assert_close(
            first_logits(other, prompt).cpu(), first_logits(case, prompt), atol=2e-3, rtol=0
        )
    greedy = Decoding(max_new_tokens=6)
    ours, theirs = (each.answerer.generate(prompts, greedy) for each in (case, other))
    assert [each.ids for each in ours] == [each.ids for each in theirs]


@pytest.mark.parametrize("family", families())
def test_the_kept_tokens_are_those_of_the_cpu(family: str, tmp_path: Path) -> None:
    model = write_tiny_checkpoint(family, tmp_path / "model")
    store = indexed.index(tmp_path / "store", model, [Footage("/v/street.mp4", 6, seed=1, event=(3, 4))])
    questions = [
        Question(question_id=str(i), video="street.mp4", question=text, start_s=start_s)
        for i, (text, start_s) in enumerate([("What moves?", None), ("Where is it, and when?", 1.0)])
    ]
    settings = AnswerSettings(budget="40", max_new_tokens=4)
    answers = {
        device: list(
            answer_questions(
                questions, store=store, answerer=load_answerer(str(model), device=device), settings=settings
            )
        )
        for device in ("cpu", "cuda")
    }
    for ours, theirs in zip(answers["cpu"], answers["cuda"], strict=True):
        assert ours.status == theirs.status == "ok"
        np.testing.assert_array_equal(ours.kept, theirs.kept)
        assert ours.raw_text == theirs.raw_text
