"""The frozen list of questions: what a shard is, what is planned once, and what comes back from disk."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.answer_plan import AnswerShard, PlannedShard, extend_plan, load_plan, make_shards, shard_size
from echoprune.errors import ConfigError, StoreError
from echoprune.question import Question
from echoprune.receipt import Receipt
from echoprune.storage import Storage
from tests.question_files import from_lines


def ask(number: int, video: str = "v", **more: object) -> Question:
    return Question(question_id=f"q{number}", video=video, question=f"what {number}?", **more)  # type: ignore[arg-type]


def loaded(shards: Sequence[PlannedShard | AnswerShard]) -> list[AnswerShard]:
    return [shard.load() if isinstance(shard, PlannedShard) else shard for shard in shards]


def done(shard: AnswerShard, *, failed: int = 0, generation: int = 0) -> Receipt:
    return Receipt(
        shard_id=shard.shard_id,
        generation=generation,
        files=(),
        ok=len(shard.questions) - failed,
        partial=0,
        failed=failed,
        lease_epoch=1,
        run_id="run",
        host="here",
        started_at="",
        finished_at="",
    )


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 20))
def test_every_question_is_in_one_shard_and_a_videos_are_together_where_they_fit(
    videos: list[int], size: int
) -> None:
    asked = [ask(number, f"v{video}") for number, video in enumerate(videos)]
    shards = make_shards(asked, size=size)
    assert Counter(q.question_id for s in shards for q in s.questions) == Counter(
        q.question_id for q in asked
    )
    assert all(0 < len(shard.questions) <= 1.5 * size for shard in shards)
    assert len({shard.shard_id for shard in shards}) == len(shards)
    for shard in shards:
        # One run of questions a video, in the file's order.
        order = [(q.video, int(q.question_id[1:])) for q in shard.questions]
        assert order == sorted(order)
    for video, count in Counter(q.video for q in asked).items():
        if count <= size:
            assert sum(any(q.video == video for q in shard.questions) for shard in shards) == 1


def test_shards_depend_on_the_questions_alone() -> None:
    asked = [ask(number, f"v{number % 3}") for number in range(20)]
    ids = [shard.shard_id for shard in make_shards(asked, size=4)]
    assert ids == [shard.shard_id for shard in make_shards(asked, size=4)]
    other = [replace(asked[0], answer="A"), *asked[1:]]
    assert Counter(s.shard_id for s in make_shards(other, size=4)) - Counter(ids)
    with pytest.raises(ValueError, match="size"):
        make_shards(asked, size=0)


def test_the_size_of_shards() -> None:
    assert shard_size(1, batch=8) == shard_size(100, batch=8) == 8
    assert shard_size(1000, batch=8) == 32
    assert shard_size(10**6, batch=8) == 512
    assert shard_size(10**6, batch=1024) == 1024  # a batch is never cut


EXTRA = {"day": pa.date32(), "tags": pa.list_(pa.string()), "a b": pa.int64()}


def test_a_plan_gives_the_questions_back(tmp_path: Path) -> None:
    asked = [
        ask(0, "ä b.mp4", options=("red", "blue"), answer="A", kind="mc", start_s=0.1, end_s=2.0),
        ask(1, extra={"day": date(2026, 5, 1), "tags": ["x", "y"], "a b": 3}),
        ask(2, prompt="{{ not a template }}", extra={"day": date(2026, 5, 2)}),
        ask(3, "", error_class="no_video", error="row 4: video is missing"),
    ]
    storage = Storage(tmp_path / "out")
    planned = extend_plan(storage, asked, extra=EXTRA, shard_questions=2)
    read = load_plan(storage)
    assert len(read) == 4 and loaded(read.pending({})) == planned
    assert {q.question_id: q for s in planned for q in s.questions} == {q.question_id: q for q in asked}
    assert read.table["row"].to_pylist() == [3, 1, 2, 0]  # by video, then as they came
    first = planned[0].shard_id
    left = read.pending({first: done(planned[0])})
    assert [shard.shard_id for shard in left] == [s.shard_id for s in planned[1:]]
    assert loaded(pickle.loads(pickle.dumps(left))) == planned[1:]


def test_only_new_questions_are_planned(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "out")
    asked = [ask(0), ask(1)]
    before = extend_plan(storage, asked, extra={})
    assert extend_plan(storage, asked, extra={}) == [] and extend_plan(storage, asked[:1], extra={}) == []
    [new] = extend_plan(storage, [ask(2), *asked], extra={})
    assert new.questions == (ask(2),)
    assert loaded(load_plan(storage).pending({})) == [*before, new]
    assert storage.names("plan") == ["plan/part-0000.parquet", "plan/part-0001.parquet"]
    with pytest.raises(ConfigError, match=r"question 'q1' was planned with other content.*--out"):
        extend_plan(storage, [ask(3), replace(ask(1), answer="x")], extra={})
    assert len(load_plan(storage)) == 3


def test_rows_that_share_an_id_are_all_planned(tmp_path: Path) -> None:
    double = replace(ask(0), error_class="duplicate_id", error="row 2: given to a row above")
    shards = extend_plan(Storage(tmp_path), [ask(0), double], extra={}, shard_questions=8)
    assert shards[0].questions == (ask(0), double)


def test_a_damaged_part_and_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    extend_plan(storage, [ask(0)], extra={})
    (tmp_path / "plan" / "part-0001.parquet").write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=r"part-0001.parquet is damaged.*--out"):
        load_plan(storage)
    (tmp_path / "plan" / "part-0001.parquet").unlink()
    # Another process writes the next part between reading the plan and writing it.
    create = Storage.create_exclusive

    def late(self: Storage, name: str, data: bytes) -> bool:
        (tmp_path / name).write_bytes(b"theirs")
        return create(self, name, data)

    monkeypatch.setattr(Storage, "create_exclusive", late)
    with pytest.raises(StoreError, match="written by another run"):
        extend_plan(storage, [ask(1)], extra={})


def test_shards_with_failed_answers_are_pending_again_if_asked_for(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    one, two, three = extend_plan(storage, [ask(n) for n in range(3)], extra={}, shard_questions=1)
    plan = load_plan(storage)
    receipts = {one.shard_id: done(one), two.shard_id: done(two, failed=1, generation=2)}
    assert loaded(plan.pending(receipts)) == [three]
    again = loaded(plan.pending(receipts, retry_failed=True))
    assert again == [replace(two, generation=3), three]


def test_bad_rows_are_known_wherever_they_stand(tmp_path: Path) -> None:
    good = {"question_id": "q1", "video": "v", "question": "what?"}
    bad = [{"question_id": "q2", "video": "v"}, "no json", "no json", {"video": "v", "question": "no id?"}]
    storage = Storage(tmp_path / "out")
    extend_plan(storage, from_lines(tmp_path, good, *bad).questions, extra={})
    assert len(load_plan(storage)) == 5  # bad rows that are alike count each
    above = from_lines(tmp_path, good | {"question_id": "q0"}, *bad, good).questions
    [new] = extend_plan(storage, above, extra={})
    assert [q.question_id for q in new.questions] == ["q0"] and len(load_plan(storage)) == 6


def test_a_repeated_id_that_is_appended_refuses_nothing(tmp_path: Path) -> None:
    good = {"question_id": "q1", "video": "v", "question": "what?"}
    storage = Storage(tmp_path / "out")
    extend_plan(storage, from_lines(tmp_path, good).questions, extra={})
    more = from_lines(tmp_path, good, good | {"question": "else?"}).questions
    [new] = extend_plan(storage, more, extra={})
    assert [q.error_class for q in new.questions] == ["duplicate_id"] and len(load_plan(storage)) == 2
    assert extend_plan(storage, more, extra={}) == []


def test_a_mended_row_supersedes_the_bad_one(tmp_path: Path) -> None:
    good = {"question_id": "q1", "video": "v", "question": "what?"}
    bad = {"question_id": "q2", "video": "v"}
    storage = Storage(tmp_path / "out")
    [first] = extend_plan(storage, from_lines(tmp_path, good, bad).questions, extra={}, shard_questions=8)
    receipts = {first.shard_id: done(first, failed=1)}
    mended = from_lines(tmp_path, good, bad | {"question": "where?"}).questions
    [new] = extend_plan(storage, mended, extra={})
    plan = load_plan(storage)
    assert len(plan) == 2 and [q.question_id for q in new.questions] == ["q2"]
    # The bad row's shard runs again without it; after that its receipt fits.
    again, planned = loaded(plan.pending(receipts))
    assert again == AnswerShard(first.shard_id, first.questions[:1], 1) and planned == new
    receipts = {again.shard_id: done(again, generation=1), new.shard_id: done(new)}
    assert plan.pending(receipts) == [] and extend_plan(storage, mended, extra={}) == []


def test_a_shard_of_nothing_but_superseded_rows(tmp_path: Path) -> None:
    bad = {"question_id": "q2", "video": "v"}
    storage = Storage(tmp_path / "out")
    [first] = extend_plan(storage, from_lines(tmp_path, bad).questions, extra={})
    [new] = extend_plan(storage, from_lines(tmp_path, bad | {"question": "where?"}).questions, extra={})
    plan = load_plan(storage)
    assert loaded(plan.pending({})) == [new] and len(plan) == 1
    [left, _] = loaded(plan.pending({first.shard_id: done(first, failed=1)}))
    assert left == AnswerShard(first.shard_id, (), 1)


def test_a_plan_from_before_rows_could_be_superseded(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    planned = extend_plan(storage, [ask(0), ask(1)], extra={"level": pa.int64()}, shard_questions=1)
    part = tmp_path / "plan" / "part-0000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["supersedes"]), part)
    more = extend_plan(storage, [ask(2)], extra={"level": pa.int64()})
    assert loaded(load_plan(storage).pending({})) == [*planned, *more]
