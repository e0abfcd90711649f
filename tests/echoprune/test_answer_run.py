"""The folder of an answer run: what it is pinned to, and the bytes of its tables."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.answer_run import AnswerRun, answer_run, build_answers, create_answers
from echoprune.answer_settings import AnswerSettings
from echoprune.errors import ConfigError, NotAStoreError, StoreError, StoreMismatchError
from tests.answer_folders import PROVENANCE, answer

GIVEN: dict[str, Any] = {
    "job": "answer",
    "model_fingerprint": "ab" * 32,
    "model_digest": "12" * 8,
    "compute_dtype": "fp32",
    "store_digest": "cd" * 8,
    "extra": {"level": pa.int64(), "source": pa.string()},
}


def run(settings: AnswerSettings | None = None, **changes: Any) -> AnswerRun:
    return answer_run(settings or AnswerSettings(), **(GIVEN | changes))


def test_a_folder_is_made_once_and_read_back(tmp_path: Path) -> None:
    storage = create_answers(tmp_path / "out", run())
    text = storage.read_bytes("answers.json")
    assert AnswerRun.from_json(text) == run()
    create_answers(tmp_path / "out", run())
    assert storage.read_bytes("answers.json") == text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": AnswerSettings(budget="64")}, "budget = '4096', this run has '64': give the --budget"),
        ({"settings": AnswerSettings(max_new_tokens=5)}, "max_new_tokens = 64.*--max-new-tokens"),
        ({"settings": AnswerSettings(letters=True)}, "letters = False, this run has True"),
        ({"settings": AnswerSettings(template="brief")}, "template"),
        ({"model_fingerprint": "00" * 32}, "model_fingerprint.*--model"),
        ({"model_digest": "00" * 8}, "model_digest.*--model"),
        ({"compute_dtype": "bf16"}, "compute_dtype = 'fp32', this run has 'bf16'"),
        ({"store_digest": "00" * 8}, "store_digest.*STORE"),
        ({"job": "caption"}, "job = 'answer'"),
        ({"window_s": 30.0}, "window_s.*--window"),
        ({"extra": {"level": pa.float64(), "source": pa.string()}}, "column level = 'int64'.*'double'"),
        ({"extra": {"level": pa.int64()}}, "column source = 'string', this run has None"),
        ({"extra": GIVEN["extra"] | {"more": pa.bool_()}}, "column more = None, this run has 'bool'"),
    ],
)
def test_another_run_is_refused_by_the_name_of_what_differs(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    create_answers(tmp_path / "out", run())
    with pytest.raises(StoreMismatchError, match=says) as caught:
        create_answers(tmp_path / "out", run(**changes))
    assert "another --out" in str(caught.value) and "\n" not in str(caught.value)


def test_answers_by_the_default_policys_old_rule_do_not_go_on_by_the_new_one(tmp_path: Path) -> None:
    before = {name: value for name, value in run().settings.items() if name != "score"}
    create_answers(tmp_path / "out", replace(run(), settings=before))
    says = (
        "score = None, this run has 'change': use the version of echoprune that they were made with, or write"
    )
    with pytest.raises(StoreMismatchError, match=says):
        create_answers(tmp_path / "out", run())
    # The paper's rule and the baselines are what they were.
    for name in ("echoprune", "evs"):
        assert "score" not in run(AnswerSettings(policy=name)).settings


def test_a_template_file_counts_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for place in ("mine.jinja", "a/mine.jinja"):
        (tmp_path / place).write_text("Say {{ question }}")
    made = run(AnswerSettings(template=str(tmp_path / "mine.jinja")))
    made.require_same(run(AnswerSettings(template=str(tmp_path / "a/mine.jinja"))))
    (tmp_path / "mine.jinja").write_text("Tell {{ question }}")
    with pytest.raises(StoreMismatchError, match="template_hash"):
        made.require_same(run(AnswerSettings(template=str(tmp_path / "mine.jinja"))))


def test_columns_of_our_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="status are the answers table's own"):
        run(extra={"status": pa.string()})


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(NotAStoreError, match=r"mine.txt but no answers.json"):
        create_answers(tmp_path, run())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"schema_version": 1}', "it has the fields schema_version"),
        ('{"schema_version": 9}', "schema_version 9, this program reads 1"),
    ],
)
def test_a_damaged_marker(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(StoreError, match=says):
        create_answers(tmp_path, run())


def test_the_bytes_of_answers_depend_on_the_rows_alone(tmp_path: Path) -> None:
    extra = {"level": pa.int64()}
    answers = [answer(f"q{i}", "what?", f"text {i}", extra={"level": i}) for i in range(70)]
    built = [
        build_answers(tmp_path / place, "a1", answers, extra=extra, provenance=PROVENANCE)
        for place in ("one", "two")
    ]
    assert built[0].entry == built[1].entry
    entry = built[0].entry
    assert (entry.name, entry.rows) == (f"answers/a1-{entry.sha256[:8]}.parquet", 70)
    assert entry.table == "answers"
    assert entry.sha256 == hashlib.sha256(built[0].path.read_bytes()).hexdigest()
    table = pq.read_table(built[0].path)
    assert table["question_id"].to_pylist() == [f"q{i}" for i in range(70)]
    assert table["level"].to_pylist() == list(range(70))
    other = [*answers[:-1], replace(answers[-1], raw_text="other")]
    assert build_answers(tmp_path, "a1", other, extra=extra, provenance=PROVENANCE).entry != entry


def test_a_value_that_does_not_fit_its_column(tmp_path: Path) -> None:
    answers = [answer("q", "what?", "x", extra={"level": "high"})]
    with pytest.raises(StoreError, match="shard a1 do not fit their columns"):
        build_answers(tmp_path, "a1", answers, extra={"level": pa.int64()}, provenance=PROVENANCE)


def test_a_shard_that_ran_again_has_a_file_of_its_own(tmp_path: Path) -> None:
    answers = [answer("q", "what?", "x")]
    built = [
        build_answers(tmp_path, "a1", answers, extra={}, provenance=PROVENANCE, generation=number)
        for number in (0, 2)
    ]
    names = [file.entry.name.rpartition("-")[0] for file in built]
    assert names == ["answers/a1", "answers/a1.g2"]
