"""The fast engine against the library's generate: the same texts in float32, whatever runs beside them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from echoprune.data import Frames
from echoprune.errors import ConfigError
from echoprune.models import families, load_answerer
from echoprune.models.answerer import Answerer, Decoding
from echoprune.models.prompt import Prompt
from tests.echoprune.fast.test_vision import DEVICE, odd_weights
from tests.plain import QUESTION, Case, keep_mask, make_case

GREEDY = Decoding(max_new_tokens=8)


@pytest.fixture(scope="module")
def case_of(
    tmp_path_factory: pytest.TempPathFactory, make_frames: Callable[..., Frames]
) -> Callable[[str], tuple[Case, Answerer, Answerer]]:
    """Of a family: its case, and one checkpoint with random biases and norms behind each engine."""

    def make(family: str) -> tuple[Case, Answerer, Answerer]:
        folder = tmp_path_factory.mktemp(family) / "model"
        case = make_case(family, folder, make_frames)
        odd_weights(folder)
        library, fast = (
            load_answerer(str(folder), device=DEVICE, engine=engine) for engine in ("library", "fast")
        )
        return case, library, fast

    return cache(make)


def mixed(case: Case, count: int) -> list[Prompt]:
    """Prompts of different lengths, prunings and questions."""
    texts = (QUESTION + " Say more." * (seed % 3) for seed in range(count))
    return [case.prompt(text=text, keep=keep_mask(case, seed=seed)) for seed, text in enumerate(texts)]


def suppressing(case: Case) -> Decoding:
    """Random models write placeholders, which ends the library's texts in an error."""
    placeholder = case.answerer.tokenizer.convert_tokens_to_ids(case.answerer._placeholder)
    return dataclasses.replace(GREEDY, suppress=(placeholder,))


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("slots", [2, None])
def test_texts_are_the_librarys(
    family: str, slots: int | None, case_of: Callable[[str], tuple[Case, Answerer, Answerer]]
) -> None:
    case, library, fast = case_of(family)
    prompts = mixed(case, 5)
    decoding = suppressing(case)
    expected = [library.generate([prompt], decoding)[0] for prompt in prompts]
    assert len({each.ids for each in expected}) > 1 and len(set(expected[0].ids)) > 1
    assert fast.generate(prompts, decoding, slots=slots) == expected


@pytest.mark.parametrize("family", families())
def test_logits_are_the_librarys(
    family: str, case_of: Callable[[str], tuple[Case, Answerer, Answerer]]
) -> None:
    case, library, fast = case_of(family)
    prompts = mixed(case, 3)
    expected = library.next_logprobs(prompts)
    torch.testing.assert_close(fast.next_logprobs(prompts), expected, atol=2e-5, rtol=0)
    # The library's own way still works with the weights that the engine laid on top of one another.
    assert fast.text_logprob(prompts[0], "ab") == library.text_logprob(prompts[0], "ab") < 0


def test_texts_of_any_length_and_end(case_of: Callable[[str], tuple[Case, Answerer, Answerer]]) -> None:
    """A text that ends in the midst gives its slot to another; ends are the library's."""
    case, library, fast = case_of("qwen2_5_vl")
    prompts = mixed(case, 5)
    decoding = suppressing(case)
    first = [library.generate([prompt], decoding)[0].ids for prompt in prompts]
    # An id that some texts have in their midst is made to end texts.
    ends = frozenset({next(token for token in first[0][1:-1] if any(token not in ids for ids in first))})
    for each in (library, fast):
        each._eos = each._eos | ends
    try:
        for most in (1, 8):
            limited = dataclasses.replace(decoding, max_new_tokens=most)
            expected = [library.generate([prompt], limited)[0] for prompt in prompts]
            assert fast.generate(prompts, limited, slots=2) == expected
        assert {each.finish for each in expected} == {"eos", "length"}
    finally:
        for each in (library, fast):
            each._eos = each._eos - ends


def test_a_repetition_penalty_is_followed(
    case_of: Callable[[str], tuple[Case, Answerer, Answerer]],
) -> None:
    """Published checkpoints of Qwen2.5-VL have one."""
    case, library, fast = case_of("qwen2_5_vl")
    prompts = mixed(case, 4)
    decoding = suppressing(case)
    without = fast.generate(prompts, decoding, slots=2)
    for each in (library, fast):
        each.model.generation_config.repetition_penalty = 1.3
    try:
        expected = [library.generate([prompt], decoding)[0] for prompt in prompts]
        found = fast.generate(prompts, decoding, slots=2)
    finally:
        for each in (library, fast):
            each.model.generation_config.repetition_penalty = None
    assert found == expected != without
    assert fast.generate(prompts, decoding, slots=2) == without


def test_what_it_cannot_do_is_left_to_the_library(
    case_of: Callable[[str], tuple[Case, Answerer, Answerer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, library, fast = case_of("qwen2_5_vl")
    prompts, decoding = mixed(case, 2), suppressing(case)
    hot = dataclasses.replace(decoding, temperature=1.0, seed=5)
    assert fast.generate(prompts, hot) == library.generate(prompts, hot)
    for each in (library, fast):
        monkeypatch.setattr(each.model.generation_config, "no_repeat_ngram_size", 2)
    assert fast.generate(prompts, decoding) == library.generate(prompts, decoding)


def test_no_prompts_give_no_texts(case_of: Callable[[str], tuple[Case, Answerer, Answerer]]) -> None:
    assert case_of("qwen2_5_vl")[2].generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "activation silu, this checkpoint has gelu"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_attention"),
    ],
)
def test_a_checkpoint_that_it_would_run_wrongly_is_refused(
    change: dict[str, Any],
    words: str,
    case_of: Callable[[str], tuple[Case, Answerer, Answerer]],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(case_of("qwen2_5_vl")[0].folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {
        name: value for name, value in config["text_config"].items() if name != "layer_types"
    } | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{words}.*use --engine library"):
        load_answerer(str(folder), device="cpu", engine="fast")


def test_an_unknown_engine_is_refused(case_of: Callable[[str], tuple[Case, Answerer, Answerer]]) -> None:
    with pytest.raises(ConfigError, match="engine is 'quick'; give one of library, fast"):
        load_answerer(str(case_of("qwen2_5_vl")[0].folder), device="cpu", engine="quick")
