"""Questions on small real stores: what is chosen, what is said of it, and what becomes of odd questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echoprune.answer import answer_questions, provenance
from echoprune.answer_schema import answers_table
from echoprune.answer_settings import AnswerSettings
from echoprune.models import families, load_answerer
from echoprune.models.answerer import Answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.query import relevance
from echoprune.question import Answer, Question
from echoprune.store import TokenStore
from echoprune.stored_video import StoredVideo
from tests import indexed, oracle
from tests.indexed import Footage

FOOTAGE = (
    Footage("/a/street.mp4", 12, seed=1, event=(7, 9)),
    Footage("/a/park.mp4", 5, seed=2),
    Footage("/b/park.mp4", 4, seed=3, event=(2, 3)),
)
# The paper's rule: with 28 places a cell, the default policy would keep nothing beside the first.
ASKED = AnswerSettings(policy="echoprune", budget="16", max_new_tokens=4)
MakeStore = Callable[..., TokenStore]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(family: str) -> Path:
        return write_tiny_checkpoint(family, tmp_path_factory.mktemp("model") / family, seed=1)

    return make


@pytest.fixture(scope="module")
def answerer(model: Callable[[str], Path]) -> Callable[[str], Answerer]:
    return cache(lambda family: load_answerer(str(model(family)), device="cpu"))


@pytest.fixture(scope="module")
def store(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    @cache
    def make(family: str = "qwen2_5_vl", **changes: Any) -> TokenStore:
        footage = FOOTAGE[1:] if family == "llava_onevision" else FOOTAGE
        folder = tmp_path_factory.mktemp("store") / "store"
        return indexed.index(folder, model(family), footage, failed=["/a/broken.mp4"], **changes)

    return make


def ask(question: str = "What is in the corner?", video: str = "street.mp4", **more: Any) -> Question:
    return Question(question_id="q", video=video, question=question, **more)


def answered(
    store: TokenStore, answerer: Answerer, *questions: Question, settings: AnswerSettings = ASKED
) -> list[Answer]:
    return list(answer_questions(questions, store=store, answerer=answerer, settings=settings))


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
def test_the_kept_tokens_are_the_oracles(
    family: str, reduce: str, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    opened = store(family)
    question = ask(video="/b/park.mp4")
    [answer] = answered(opened, answerer(family), question, settings=replace(ASKED, relevance=reduce))
    tokens = opened.tokens("/b/park.mp4")
    cells, height, width = tokens.grid_thw
    dense = tokens.tokens.double().numpy().reshape(cells, height * width, -1)
    c, e = oracle.echo(
        dense,
        grid_hw=(height, width),
        temperature=opened.settings.temperature,
        window=opened.settings.window,
    )
    words = answerer(family).embed(question.question).double().numpy()
    r = oracle.relevance(dense.reshape(-1, dense.shape[-1]), words, reduce=reduce)
    kept = oracle.keep_with_question(c, e, r.reshape(c.shape), budget=16)
    flat = (answer.kept[:, 0] * height + answer.kept[:, 1]) * width + answer.kept[:, 2]
    assert flat.tolist() == kept
    assert (answer.status, answer.visual_tokens, answer.certified, answer.r_needed) == ("ok", 16, True, None)
    assert answer.original_tokens == answer.stored_tokens == cells * height * width


@pytest.mark.parametrize(("policy", "rank_by"), [("echoprune", "novelty"), ("anchored", "change")])
def test_a_pruned_store_says_whether_it_could_have_mattered(
    policy: str, rank_by: str, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    """Exact where it is certified: the same tokens as from the lossless store."""
    questions = [
        replace(ask(f"What {word} there?"), question_id=word) for word in ("is", "was", "moves", "stands")
    ]
    settings = replace(ASKED, policy=policy)
    exact = answered(store(), answerer("qwen2_5_vl"), *questions, settings=settings)
    thinner = store(keep="0.9", rank_by=rank_by)
    pruned = answered(thinner, answerer("qwen2_5_vl"), *questions, settings=settings)
    for lossless, lossy in zip(exact, pruned, strict=True):
        assert lossy.stored_tokens < lossy.original_tokens == lossless.original_tokens
        assert lossy.r_needed is not None and lossy.visual_tokens == 16
        if lossy.certified:
            np.testing.assert_array_equal(lossy.kept, lossless.kept)
    assert any(answer.certified for answer in pruned)


def test_evidence_is_where_something_happened(store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    [answer] = answered(store(), answerer("qwen2_5_vl"), ask())
    # Noise from 7 to 9 s; at 9 s the picture is still again, which is a change too.
    assert answer.evidence[0].start_s >= 6.0 and answer.evidence[0].end_s <= 10.0
    assert set(answer.kept[1:, 0].tolist()) <= {7, 8, 9}


def test_a_range_has_its_own_first_cell_budget_and_positions(
    store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    opened, asked = store(), replace(ASKED, budget="0.25")
    [answer] = answered(opened, answerer("qwen2_5_vl"), ask(start_s=3.0, end_s=8.0), settings=asked)
    view = StoredVideo(opened, opened.resolve("street.mp4")).view(3.0, 8.0)
    assert view is not None and view.grid_thw[0] == 5
    assert answer.original_tokens == view.tokens
    assert answer.visual_tokens == view.tokens // 4
    cells = answer.kept[:, 0].tolist()
    assert min(cells) == 3 and max(cells) == 7
    # The first cell of the range has the share of a first cell, though its tokens have a past in the store.
    assert cells.count(3) == max(1, answer.visual_tokens // 5)
    assert all(3.0 <= moment.start_s < moment.end_s <= 8.0 for moment in answer.evidence)


def test_without_words_the_first_cell_is_whole(store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    asked = [ask("", prompt="brief", kind="caption"), ask()]
    for question, relevance_kind in zip(asked, ("max", "off"), strict=True):
        [answer] = answered(
            store(), answerer("qwen2_5_vl"), question, settings=replace(ASKED, relevance=relevance_kind)
        )
        places = answer.original_tokens // 12
        assert answer.visual_tokens == places + 16
        assert answer.kept[:, 0].tolist().count(0) == places
    assert answer.template == "open"


def test_order_batches_and_engine_do_not_matter(
    store: MakeStore, answerer: Callable[[str], Answerer], model: Callable[[str], Path]
) -> None:
    """Different videos, ranges and lengths; failed ones between them."""
    questions = [
        ask("What?", "street.mp4"),
        ask("Where is the thing that moves most?", "/a/park.mp4"),
        ask("", "street.mp4"),
        ask("When?", "nowhere.mp4"),
        ask("Who is it?", "/b/park.mp4", start_s=1.0),
        ask("Which?", "/b/park.mp4", options=("red", "green", "blue")),
        ask("What else?", "street.mp4", end_s=6.0),
    ]
    questions = [replace(each, question_id=f"q{index}") for index, each in enumerate(questions)]
    settings = replace(ASKED, letters=True)
    together = answered(store(), answerer("qwen2_5_vl"), *questions, settings=settings)
    assert [answer.question for answer in together] == questions
    order = [3, 6, 0, 5, 1, 4, 2]
    fast = load_answerer(str(model("qwen2_5_vl")), device="cpu", engine="fast")
    for batch, way in ((1, answerer("qwen2_5_vl")), (3, answerer("qwen2_5_vl")), (2, fast)):
        again = answered(
            store(),
            way,
            *(questions[i] for i in order),
            settings=replace(settings, batch=batch, engine=way.engine),
        )
        by_id = {answer.question.question_id: answer for answer in again}
        for answer in together:
            other = by_id[answer.question.question_id]
            assert replace(other, choice_logprobs=None) == replace(answer, choice_logprobs=None)
            np.testing.assert_array_equal(other.kept, answer.kept)
            if answer.choice_logprobs:
                np.testing.assert_allclose(other.choice_logprobs, answer.choice_logprobs, atol=1e-5)


def test_batches_are_announced_and_bounded(store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    def batches(count: int, settings: AnswerSettings) -> list[tuple[str, ...]]:
        seen: list[tuple[str, ...]] = []
        asked = (replace(ask(), question_id=f"q{index}") for index in range(count))
        way = answerer("qwen2_5_vl")
        list(answer_questions(asked, store=store(), answerer=way, settings=settings, on_batch=seen.append))
        return seen

    assert batches(5, replace(ASKED, batch=2)) == [("q0", "q1"), ("q2", "q3"), ("q4",)]
    assert batches(2, replace(ASKED, batch_tokens=1)) == [("q0",), ("q1",)]
    # The fast engine is handed some that wait for those before them to end.
    assert batches(5, replace(ASKED, batch=1, engine="fast")) == [("q0", "q1", "q2", "q3"), ("q4",)]


@pytest.mark.parametrize(
    ("question", "error_class", "words"),
    [
        (ask(video="nowhere.mp4"), "unknown_video", "nowhere.mp4"),
        (ask(video="park.mp4"), "ambiguous_video", "2 videos are named park.mp4"),
        (ask(video="broken.mp4"), "video_failed", "no such file"),
        (ask(start_s=50.0), "range_outside", "50 s to the end"),
        (ask(error_class="empty_question", error="row 3 asks nothing"), "bad_row", "row 3 asks nothing"),
        (ask("What is <|video_pad|>?"), "reserved_token", r"<\|video_pad\|>"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(
    question: Question, error_class: str, words: str, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    import re

    [answer] = answered(store(), answerer("qwen2_5_vl"), question)
    assert (answer.status, answer.error_class) == ("failed", error_class)
    assert re.search(words, answer.error)
    assert "\n" not in answer.error


def test_a_range_in_which_nothing_is_stored(store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    opened = store(keep="1/cell")
    cells = opened.cells("street.mp4")["kept"].to_pylist()
    empty = next(t for t, kept in enumerate(cells) if kept == 0)
    asked = ask(start_s=float(empty), end_s=empty + 1.0)
    caption = replace(asked, question="", prompt="brief", kind="caption")
    between = replace(caption, start_s=1.2, end_s=1.9)
    failed, said, short = answered(opened, answerer("qwen2_5_vl"), asked, caption, between)
    assert short.template == said.template == "brief"
    assert (short.status, short.video_id) == ("empty", said.video_id) and "no cell begins" in short.error
    assert (failed.status, failed.error_class) == ("failed", "no_tokens_in_range")
    assert (said.status, said.error_class) == ("empty", "") and "nothing is stored" in said.error


def test_a_damaged_file_fails_its_questions_alone(
    model: Callable[[str], Path], answerer: Callable[[str], Answerer], tmp_path: Path
) -> None:
    opened = indexed.index(tmp_path / "store", model("qwen2_5_vl"), FOOTAGE[:1])
    file = next((tmp_path / "store" / "tokens").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)
    bad, other = answered(opened, answerer("qwen2_5_vl"), ask(), ask(video="nowhere.mp4"))
    assert (bad.error_class, bad.uri) == ("store_damaged", "/a/street.mp4")
    assert "damaged" in bad.error and other.error_class == "unknown_video"
    assert other.uri is None


def test_without_words_the_first_cell_is_outside_the_budget_that_includes_text(
    store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    settings = replace(ASKED, budget="60", budget_includes_text=True, relevance="off")
    [answer] = answered(store("qwen3_vl"), answerer("qwen3_vl"), ask(end_s=2.0), settings=settings)
    places = answer.original_tokens // 2
    assert answer.visual_tokens - places + answer.timestamp_tokens <= 60 < answer.visual_tokens + 30


def test_text_in_the_budget(store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    settings = replace(ASKED, budget="60", budget_includes_text=True)
    [answer] = answered(store("qwen3_vl"), answerer("qwen3_vl"), ask(), settings=settings)
    assert answer.timestamp_tokens > 0
    assert 60 - 16 <= answer.visual_tokens + answer.timestamp_tokens <= 60
    [plain] = answered(store("qwen3_vl"), answerer("qwen3_vl"), ask(), settings=replace(ASKED, budget="60"))
    assert plain.visual_tokens == 60
    [none] = answered(store("qwen3_vl"), answerer("qwen3_vl"), ask(), settings=replace(settings, budget="10"))
    assert (none.status, none.error_class) == ("failed", "budget_too_small")


def test_choices_are_parsed_scored_and_compared(
    store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    question = ask("Which colour?", options=("red", "green", "blue"), answer="B")
    [by_text] = answered(store(), answerer("qwen2_5_vl"), question)
    assert by_text.choice_logprobs is None and by_text.template == "multiple_choice"
    [scored] = answered(store(), answerer("qwen2_5_vl"), question, settings=replace(ASKED, letters=True))
    assert scored.choice_logprobs is not None and len(scored.choice_logprobs) == 3
    best = "ABC"[int(np.argmax(scored.choice_logprobs))]
    assert scored.parsed_choice == best
    assert scored.correct == (best == "B")


def test_answers_make_a_table(store: MakeStore, answerer: Callable[[str], Answerer]) -> None:
    import pyarrow as pa

    questions = [ask(extra={"event_start_s": 7.0}), ask(video="nowhere.mp4")]
    answers = answered(store(), answerer("qwen2_5_vl"), *questions)
    table = answers_table(
        answers, extra={"event_start_s": pa.float64()}, provenance=provenance(store(), ASKED)
    )
    good, bad = table.to_pylist()
    assert good["event_start_s"] == 7.0 and bad["event_start_s"] is None
    assert good["kept"][0].keys() == {"t", "h", "w"} and len(good["kept"]) == 16
    assert bad["raw_text"] is None and bad["error_class"] == "unknown_video"
    assert good["settings_digest"] == ASKED.digest != replace(ASKED, budget="17").digest


def test_a_long_video_read_twice_gives_the_same(
    store: MakeStore, answerer: Callable[[str], Answerer], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answered(store(keep="0.5"), answerer("qwen2_5_vl"), ask(), ask(start_s=5.0))
    monkeypatch.setattr("echoprune.stored_video.CACHED_BYTES", 0)
    pieces = answered(store(keep="0.5"), answerer("qwen2_5_vl"), ask(), ask(start_s=5.0))
    assert pieces == whole
    for ours, theirs in zip(pieces, whole, strict=True):
        np.testing.assert_array_equal(ours.kept, theirs.kept)


@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
def test_reach_bounds_every_token_of_a_cell(
    reduce: str, store: MakeStore, answerer: Callable[[str], Answerer]
) -> None:
    opened = store()
    video = StoredVideo(opened, opened.resolve("street.mp4"))
    view = video.view(2.0, 10.0)
    assert view is not None
    query = answerer("qwen2_5_vl").embed("a red ball")
    related = video.scores(view, query, reduce=reduce, device=torch.device("cpu")).related
    assert related is not None
    per_cell = related.view(view.grid_thw[0], -1).amax(dim=1)
    bound = video.reach(view, query, reduce=reduce)
    assert bool((per_cell <= bound + 1e-6).all())
    radius = torch.from_numpy(opened.cells("street.mp4")["radius"].to_numpy()[2:10].copy())
    assert bool((per_cell > bound - radius).any())
    tokens = opened.tokens("street.mp4")
    begin = 2 * view.tokens_per_cell
    torch.testing.assert_close(
        related, relevance(tokens.tokens[begin : begin + len(related)], query, reduce=reduce)
    )
