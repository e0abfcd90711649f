"""`echoprune search` as a user meets it: real stores made by a tiny model, real answers, no video file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from echoprune.embedding import load_word_embeddings
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.query import relevance
from echoprune.sources import video_id
from echoprune.store import create_store, open_store
from jobs.cli import main
from jobs.search_table import moment_text
from tests import stores
from tests.answer_folders import answer, write_answers
from tests.indexed import Footage, index, settings_of

URIS = ("/v/[red]street.mp4", "/v/harbour.mp4")
QUERY = "red bus"


def call(*arguments: str | Path | int) -> tuple[int, str, list[str]]:
    result = CliRunner().invoke(main, [str(each) for each in arguments], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()


def rows(*arguments: str | Path | int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The moments and the statistics of a search with --json."""
    code, out, err = call("search", *arguments, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()], [json.loads(line) for line in err]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    footage = [Footage(URIS[0], 7, seed=1, event=(3, 5)), Footage(URIS[1], 5, seed=2, event=(1, 2))]
    index(folder, tiny, footage, failed=["/v/broken.mp4"])
    return folder


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Captions of both videos, and a better match about a video that is not in the store."""
    where = [{"video_id": video_id(uri), "uri": uri} for uri in URIS]
    window = {"kind": "caption", "start_s": 30.0, "end_s": 60.5}
    write_answers(
        tmp_path / "captions",
        "a1",
        [
            answer("c1", "", "A red [bold] bus stops.", **window, **where[0]),
            answer("c2", "", "Boats; far away a bus that is red and slow.", **window, **where[1]),
            *(answer(f"c{n}", "", "Red bus.", **window) for n in range(3, 30)),
        ],
    )
    return tmp_path / "captions"


def test_tokens_are_the_best_of_all_that_are_stored(store: Path, tiny: Path) -> None:
    found, (stats,) = rows(store, QUERY, "--model", tiny, "--limit", 3)
    query = load_word_embeddings(str(tiny)).embed(QUERY)
    best: list[tuple[float, str, list[int]]] = []
    for uri in URIS:
        tokens = open_store(store).tokens(uri)
        scores = relevance(tokens.tokens, query)
        best.append((float(scores.max()), uri, tokens.positions[int(scores.argmax())].tolist()))
    score, uri, place = max(best)
    assert found[0]["score"] == pytest.approx(score, abs=1e-6) and found[0]["uri"] == uri
    assert [found[0][name] for name in "thw"] == place
    assert found[0]["start_s"] <= place[0] < found[0]["end_s"] and found[0]["video_id"] == video_id(uri)
    assert [row["rank"] for row in found] == list(range(1, len(found) + 1)) and len(found) <= 3
    assert {row["kind"] for row in found} == {"tokens"}
    assert stats["exact"] and stats["cells"] == 12 and stats["event"] == "searched"


def test_text_of_the_videos_in_the_store_alone(store: Path, answers: Path) -> None:
    found, (stats,) = rows(store, QUERY, "--answers", answers, "--limit", 2)
    assert [(row["question_id"], row["uri"], row["rank"]) for row in found] == [
        ("c1", URIS[0], 1),
        ("c2", URIS[1], 2),
    ]
    first = found[0]
    assert (first["start_s"], first["end_s"], first["matched"]) == (30.0, 60.5, ["text"])
    assert first["snippet"] == "A [red] [bold] [bus] stops." and first["answers"] == str(answers)
    assert stats["of_other_stores"] == 27 and stats["rows"] == 29 and stats["index_made"]
    _, (stats,) = rows(store, QUERY, "--answers", answers)
    assert not stats["index_made"] and stats["index"] == str(answers / "search.sqlite")


def test_both_kinds_are_ranked_apart(store: Path, tiny: Path, answers: Path) -> None:
    given = (store, QUERY, "--answers", answers, "--model", tiny)
    found, stats = rows(*given)
    assert [each["kind"] for each in stats] == ["text", "tokens"]
    assert [row["rank"] for row in found if row["kind"] == "text"] == [1, 2]
    assert [row["rank"] for row in found if row["kind"] == "tokens"][:1] == [1]
    for kind in ("text", "tokens"):
        alone, _ = rows(*given, "--kind", kind)
        assert alone == [row for row in found if row["kind"] == kind]
    assert rows(*given, "--kind", "both")[0] == found


def test_one_video_alone(store: Path, tiny: Path, answers: Path) -> None:
    given = (store, QUERY, "--answers", answers, "--model", tiny, "--limit", 20)
    found, (_, tokens) = rows(*given, "--videos", "harbour.mp4")
    assert {row["uri"] for row in found} == {URIS[1]} and {row["kind"] for row in found} == {"text", "tokens"}
    assert tokens["cells"] == 5
    more, _ = rows(*given, "--videos", "harbour.mp4", "--videos", URIS[0])
    assert {row["uri"] for row in more} == set(URIS)


def test_several_folders_have_an_index_of_their_own(store: Path, answers: Path, tmp_path: Path) -> None:
    more = tmp_path / "answers"
    write_answers(
        more, "b1", [answer("q1", "Is it a red bus?", "yes", video_id=video_id(URIS[0]), uri=URIS[0])]
    )
    given = (store, QUERY, "--answers", answers, "--answers", more)
    found, (stats,) = rows(*given)
    assert {row["question_id"] for row in found} == {"c1", "c2", "q1"} and stats["folders"] == 2
    assert Path(stats["index"]).parent == answers and Path(stats["index"]).name != "search.sqlite"
    assert rows(*given)[1][0]["index_made"] is False
    # Named twice, a folder is read once.
    assert rows(store, QUERY, "--answers", answers, "--answers", answers)[1][0]["rows"] == 29
    _, (elsewhere,) = rows(*given, "--text-index", tmp_path / "kept" / "index.db")
    assert elsewhere["index_made"] and (tmp_path / "kept" / "index.db").is_file()


def test_people_see_a_table(store: Path, tiny: Path, answers: Path) -> None:
    code, out, err = call("search", store, QUERY, "--answers", answers, "--model", tiny, "--limit", 2)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["score", "video", "moment", "matched"]
    assert "[red]street.mp4" in lines[1] and "0:30-1:01" in lines[1]
    assert "A [red] [bold] [bus] stops." in lines[1] and "/v/" not in out
    assert any("tokens at " in line for line in lines)
    assert err[0].startswith("text: 2 found in 29 rows") and "27 matches left out" in err[0]
    assert err[1].startswith("tokens: ") and "12 cells opened" in err[1] and err[1].endswith("; exact")


def test_nothing_found_is_no_error(store: Path, answers: Path) -> None:
    code, out, err = call("search", store, "unicorn", "--answers", answers)
    assert code == 0 and out == "" and err[0].startswith("text: 0 found in 29 rows")


def test_a_search_that_is_cut_short_says_so(tiny: Path, tmp_path: Path) -> None:
    made_with = settings_of(tiny)
    storage = create_store(tmp_path / "s", made_with)
    clips = [stores.clip(f"/v/{n}.mp4", made_with, cells=20, seed=n) for n in range(3)]
    stores.write_shard(storage, made_with, clips, row_group_bytes=20_000)
    whole, (stats,) = rows(tmp_path / "s", QUERY, "--model", tiny)
    assert stats["exact"] and stats["row_groups_opened"] > 1
    cut, (stats,) = rows(tmp_path / "s", QUERY, "--model", tiny, "--max-row-groups", 1)
    assert not stats["exact"] and stats["row_groups_opened"] == 1 and stats["cells_opened"] < stats["cells"]
    # What was not opened has no higher score than that.
    assert stats["unopened_bound"] >= whole[0]["score"] or cut[0] == whole[0]
    _, _, err = call("search", tmp_path / "s", QUERY, "--model", tiny, "--max-row-groups", 1)
    assert f"may score up to {stats['unopened_bound']:.3f}; raise --max-row-groups" in err[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give --answers DIR (the text of an answer or caption run), --model M (tokens), or both"),
        (("--answers", "ANSWERS", "--kind", "tokens"), "--kind tokens searches tokens: give --model M"),
        (("--model", "TINY", "--kind", "both"), "--kind both searches text: give --answers DIR"),
        (("--answers", "ANSWERS", "--kind", "sound"), "sound"),
        (("--answers", "nosuch"), "holds no answers"),
        (("--answers", "ftp://host/a"), "--answers ftp://host/a cannot be used"),
        (("--model", "nosuch"), "nosuch"),
        (("--model", "OTHER"), "give the --model that the store was made with"),
        (("--answers", "ANSWERS", "--limit", "0"), "--limit"),
        (("--model", "TINY", "--max-row-groups", "0"), "--max-row-groups"),
        (("--model", "TINY", "--videos", "nosuch.mp4"), "no video 'nosuch.mp4' among the 3"),
        (("--model", "TINY", "--videos", "broken.mp4"), "/v/broken.mp4 failed (missing: no such file)"),
    ],
)
def test_wrong_usage_is_one_line(
    store: Path, tiny: Path, answers: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    named = {"TINY": tiny, "ANSWERS": answers, "OTHER": tmp_path / "other"}
    if "OTHER" in options:
        write_tiny_checkpoint("qwen2_5_vl", tmp_path / "other", seed=9)
    code, out, err = call("search", store, QUERY, *(named.get(each, each) for each in options))
    assert code == 2 and out == "" and len(err) == 1 and says in err[0], err


@pytest.mark.parametrize("text", ["", "  "])
def test_no_words(store: Path, tiny: Path, text: str) -> None:
    code, _, err = call("search", store, text, "--model", tiny)
    assert code == 2 and err == ["echoprune: TEXT is empty: give the words to search for"]


@pytest.mark.parametrize("text", ["!?", '""'])
def test_marks_are_no_words_of_a_text(store: Path, answers: Path, text: str) -> None:
    code, _, err = call("search", store, text, "--answers", answers)
    assert code == 2 and len(err) == 1 and "no words to search for" in err[0]


def test_text_that_is_no_unicode(store: Path, tiny: Path, answers: Path) -> None:
    code, _, err = call("search", store, "bus \udcff", "--model", tiny, "--answers", answers)
    assert code == 0, err


def test_what_is_no_store(tmp_path: Path, tiny: Path) -> None:
    code, _, err = call("search", tmp_path, QUERY, "--model", tiny)
    assert code == 2 and len(err) == 1 and "is no store" in err[0]


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (5.0, 7.5, "0:05-0:08"),
        (59.9, 61.0000001, "0:59-1:01"),
        (7.9999999, 9.0, "0:08-0:09"),
        (3599.0, 3661.0, "59:59-1:01:01"),
        (None, 8.0, "-0:08"),
        (8.0, None, "0:08-"),
        (None, None, "all"),
    ],
)
def test_moments_hold_the_whole_stretch(start_s: float | None, end_s: float | None, expected: str) -> None:
    assert moment_text(start_s, end_s) == expected
