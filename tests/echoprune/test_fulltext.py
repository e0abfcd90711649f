from __future__ import annotations

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from echoprune.answer_store import open_answers
from echoprune.errors import ConfigError, StoreError
from echoprune.fulltext import INDEX_FILE, build_index, match_expression, search_text
from tests.answer_folders import answer, evidence, failed, write_answers

ROWS = [
    answer(
        "q1", "What crosses the street?", "A brown dog crosses.", evidence=evidence((3, 4, 0.2), (9, 11, 0.6))
    ),
    answer(
        "q2",
        "Which café is it?",
        "Das Café Müller, a Café with\nred chairs and a dog",
        start_s=5.0,
        end_s=8.0,
    ),
    answer(
        "q3",
        "",
        "A red bus stops.",
        kind="caption",
        start_s=30.0,
        end_s=60.0,
        evidence=evidence((31, 32, 1.0)),
    ),
    answer("q4", "Is there a dog?", "no"),
    failed("q5", "Which unicorn?"),
    answer("q6", "Odd text?", 'He said "AND" \x02near\x03 NOT (x) \x00 dogs*'),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    write_answers(folder, "a1", ROWS[:3])
    write_answers(folder, "b2", ROWS[3:])
    assert build_index([open_answers(folder)], folder / INDEX_FILE)
    return folder / INDEX_FILE


def ids(index: Path, query: str) -> list[str]:
    return [hit.question_id for hit in search_text(index, query, limit=10)]


def test_words_are_found_with_their_moments(index: Path) -> None:
    first, *others = search_text(index, "dog", limit=10)
    assert (first.question_id, first.start_s, first.end_s) == ("q1", 9.0, 11.0)
    assert first.matched == ("text",) and "brown [dog] crosses" in first.snippet
    assert (first.video_id, first.uri, first.source) == ("v" * 20, "/v/clip.mp4", str(index.parent))
    by_id = {hit.question_id: hit for hit in others}
    assert set(by_id) == {"q2", "q4"}
    assert by_id["q4"].matched == ("question",) and by_id["q4"].start_s is None
    assert (by_id["q2"].start_s, by_id["q2"].end_s) == (5.0, 8.0) and "\n" not in by_id["q2"].snippet
    scores = [first.score, *(hit.score for hit in others)]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0
    assert len(search_text(index, "dog", limit=2)) == 2


def test_a_caption_is_its_window(index: Path) -> None:
    (hit,) = search_text(index, "red bus", limit=5)
    assert (hit.question_id, hit.start_s, hit.end_s) == ("q3", 30.0, 60.0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("CAFE muller", ["q2"]),
        ('"red chairs"', ["q2"]),
        ('"chairs red"', []),
        ("chairs red", ["q2"]),
        ("cross", []),
        ("cross*", ["q1"]),
        ('"brown d"*', ["q1"]),
        ("street brown", ["q1"]),
        ("unicorn", []),
        ("AND", ["q2", "q6"]),
        ("near", ["q6"]),
        ("text:dog", []),
        ("dog NOT brown", []),
        ('"red chairs', ["q2"]),
        ("dog's", []),
        ("*dog", ["q1", "q4", "q2"]),
    ],
)
def test_what_a_query_means(index: Path, query: str, expected: list[str]) -> None:
    assert sorted(ids(index, query)) == sorted(expected)


@pytest.mark.parametrize("query", ["", "  ", '""', "*", "!!! ?", "\x00", "̈"])
def test_a_query_without_words_is_refused(index: Path, query: str) -> None:
    with pytest.raises(ConfigError, match="no words"):
        search_text(index, query, limit=5)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.one_of(st.characters(), st.sampled_from('"*^:+-(){}. ANDORTE\\\x00')), max_size=30)
)
@example('a" OR "b')
@example("a NEAR(b, 3)")
@example("{text question}: a")
@example("^a + b")
@example("\ud800a")
@example("²½ a")
def test_no_text_is_a_syntax_error(index: Path, query: str) -> None:
    try:
        expression = match_expression(query)
    except ConfigError:
        return
    assert expression.count('"') % 2 == 0
    search_text(index, query, limit=3)


@pytest.mark.parametrize("letter", ["²", "½", "ª", "Ⅷ", "犬", "́a", "_", "ß", "🐕x"])
def test_odd_letters_spoil_nothing(tmp_path: Path, letter: str) -> None:
    write_answers(tmp_path, "a1", [answer("q1", "?", f"see {letter} here")])
    build_index([open_answers(tmp_path)], tmp_path / INDEX_FILE)
    assert ids(tmp_path / INDEX_FILE, f"{letter} here") == ["q1"]


def test_the_index_follows_the_receipts(tmp_path: Path) -> None:
    index = tmp_path / INDEX_FILE
    with pytest.raises(StoreError, match="make the text index first"):
        search_text(index, "dog", limit=1)
    write_answers(tmp_path, "a1", ROWS[:1])
    assert build_index([open_answers(tmp_path)], index)
    made = index.stat().st_ino
    assert not build_index([open_answers(tmp_path)], index) and index.stat().st_ino == made
    write_answers(tmp_path, "b2", [answer("q7", "More?", "another dog")], covered=False)
    assert not build_index([open_answers(tmp_path)], index)
    write_answers(tmp_path, "b2", [answer("q7", "More?", "another dog")])
    assert ids(index, "dog") == ["q1"]
    with closing(sqlite3.connect(f"file:{index}?immutable=1", uri=True)) as before:
        assert build_index([open_answers(tmp_path)], index)
        assert before.execute("SELECT count(*) FROM moments").fetchone() == (1,)
    assert sorted(ids(index, "dog")) == ["q1", "q7"]
    index.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match=r"damaged .*remove it"):
        search_text(index, "dog", limit=1)
    assert build_index([open_answers(tmp_path)], index) and len(ids(index, "dog")) == 2
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] in ([], [".tmp"])


def test_several_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_answers(tmp_path / name, "s1", ROWS[:1])
    index = tmp_path / "all.sqlite"
    assert build_index([open_answers(tmp_path / "a"), open_answers(tmp_path / "b")], index)
    hits = search_text(index, "dog", limit=5)
    assert [hit.source for hit in hits] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert not build_index([open_answers(tmp_path / "b"), open_answers(tmp_path / "a")], index)
    assert build_index([open_answers(tmp_path / "b")], index) and len(search_text(index, "dog", limit=5)) == 1


def _build(folder: Path) -> int:
    for _ in range(5):
        (folder / INDEX_FILE).unlink(missing_ok=True)
        build_index([open_answers(folder)], folder / INDEX_FILE)
    return build_index([open_answers(folder)], folder / INDEX_FILE)


def test_two_processes_make_it_at_once(tmp_path: Path) -> None:
    write_answers(tmp_path, "a1", [answer(f"q{n}", "?", f"dog number {n}") for n in range(300)])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_build, [tmp_path, tmp_path]))
    assert len(search_text(tmp_path / INDEX_FILE, "dog", limit=1000)) == 300
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp") and path.is_file()]
