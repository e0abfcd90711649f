"""Whether a store holds the videos that answers are about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from echoprune.answer_store import open_answers
from echoprune.answered_videos import require_same_videos, video_digest
from echoprune.errors import StoreMismatchError
from echoprune.store import TokenStore, create_store, open_store
from tests import stores
from tests.answer_folders import answer, failed, write_answers

URI = "/archive/street.mp4"


def store_of(root: Path, *clips: stores.Clip) -> TokenStore:
    made_with = stores.settings()
    stores.write_shard(create_store(root, made_with), made_with, clips, failed=["/archive/bad.mp4"])
    return open_store(root)


def clip(uri: str = URI, **changes: int) -> stores.Clip:
    return stores.clip(uri, stores.settings(), **changes)


def asked_of(store: TokenStore, folder: Path) -> Path:
    """Answers about the street, and one about a video that is in no store."""
    row = store.video(URI)
    about = answer("q1", "what?", "a car", video_id=row["video_id"], uri=URI)
    digest = video_digest(row, store.settings)
    write_answers(folder, "a1", [replace(about, video_digest=digest), failed("q2", "what?")])
    return folder


def test_the_digest_follows_the_video_and_the_settings_and_not_its_place(tmp_path: Path) -> None:
    store = store_of(tmp_path, clip())
    row = store.video(URI)
    digest = video_digest(row, store.settings)
    assert len(digest) == 16 and int(digest, 16) >= 0
    assert video_digest(row | {"uri": "elsewhere", "token_row": 7}, store.settings) == digest
    for change in ({"kept": 1}, {"etag": "x"}, {"content_id": "x"}, {"size_bytes": 1}, {"status": "partial"}):
        assert video_digest(row | change, store.settings) != digest
    assert video_digest(row, stores.settings(keep="0.5")) != digest


def test_the_same_store_and_one_that_grew_are_accepted(tmp_path: Path) -> None:
    answers = open_answers(asked_of(store_of(tmp_path / "one", clip()), tmp_path / "out"))
    require_same_videos(answers, open_store(tmp_path / "one"))
    require_same_videos(answers, store_of(tmp_path / "two", clip("/archive/new.mp4", seed=4), clip()))


def test_another_video_of_that_id_and_none_are_refused(tmp_path: Path) -> None:
    answers = open_answers(asked_of(store_of(tmp_path / "one", clip()), tmp_path / "out"))
    other = store_of(tmp_path / "other", clip(cells=5))
    with pytest.raises(StoreMismatchError, match=r"holds another video of that id.*--out") as caught:
        require_same_videos(answers, other)
    assert other.video(URI)["video_id"] in str(caught.value)
    with pytest.raises(StoreMismatchError, match=r"holds no video of that id.*--out"):
        require_same_videos(answers, store_of(tmp_path / "none", clip("/archive/else.mp4")))


def test_answers_from_before_there_was_a_digest_are_accepted(tmp_path: Path) -> None:
    out = asked_of(store_of(tmp_path / "one", clip()), tmp_path / "out")
    file = out / "answers" / "a1.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["video_digest"]), file, write_page_checksum=True)
    require_same_videos(open_answers(out), store_of(tmp_path / "other", clip(cells=5)))
