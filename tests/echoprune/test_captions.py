from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from echoprune.captions import caption_questions, parse_window
from echoprune.errors import ConfigError, StoreError
from echoprune.question import Question
from echoprune.receipt import Receipt
from echoprune.schema import StoreSettings
from echoprune.shard import ShardWriter, commit
from echoprune.sources import video_id
from echoprune.storage import Storage
from echoprune.store import TokenStore, create_store, open_store
from tests.stores import add_failed, receipt, settings

COVERED_S = {
    "/a/long.mp4": 70.5,
    "/a/even.mp4": 60.0,
    "/a/rounded.mp4": 30.0 + 1e-9,
    "/a/short.mp4": 0.5,
    "/a/none.mp4": 0.0,
}


def made_store(root: Path) -> TokenStore:
    made_with = settings()
    storage = create_store(root, made_with)
    write(storage, made_with)
    return open_store(root)


def write(storage: Storage, made_with: StoreSettings) -> Receipt:
    with storage.tmp_dir() as folder:
        writer = ShardWriter(folder, made_with, "a1", generation=0)
        for uri, covered_s in COVERED_S.items():
            row = {"uri": uri, "video_id": video_id(uri), "status": "partial" if covered_s < 1 else "ok"}
            grid = {"cells": 0, "grid_h": 1, "grid_w": 1, "covered_s": covered_s, "duration_s": 100.0}
            names = ("time_s", "end_s", "pts_s", "anchor", "mean_novelty", "pooled", "radius")
            empty = {name: np.empty(0, bool if name == "anchor" else np.float32) for name in names}
            empty["pooled"] = np.empty((0, 2 * made_with.dim), np.uint8)
            writer.add_video(row | grid, empty, iter(()))
        add_failed(writer, "/a/bad.mp4")
        files = writer.close()
        written = receipt(writer, files, "a1")
        commit(storage, files, written, check_epoch=lambda: None)
    return written


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return made_store(tmp_path_factory.mktemp("store"))


def test_windows_cover_each_video_up_to_its_end(store: TokenStore) -> None:
    asked = list(caption_questions(store, window_s=30.0, template="brief", videos=None))
    by_id = {video_id(uri): uri for uri in COVERED_S}
    spans: dict[str, list[tuple[float | None, float | None]]] = {}
    for question in asked:
        spans.setdefault(by_id[question.video], []).append((question.start_s, question.end_s))
    assert spans == {
        "/a/even.mp4": [(0.0, 30.0), (30.0, 60.0)],
        "/a/long.mp4": [(0.0, 30.0), (30.0, 60.0), (60.0, 70.5)],
        "/a/rounded.mp4": [(0.0, 30.0)],
        "/a/short.mp4": [(0.0, 0.5)],
    }
    assert list(spans) == sorted(spans)


def test_a_caption_is_a_question_with_a_template(store: TokenStore) -> None:
    first, second, *_ = caption_questions(store, window_s=1.5, template="dense", videos=["long.mp4"])
    whole = video_id("/a/long.mp4")
    assert first.question_id == f"{whole}-000000000" and second.question_id == f"{whole}-000001500"
    assert second == Question(
        question_id=second.question_id,
        video=whole,
        question="",
        prompt="dense",
        kind="caption",
        start_s=1.5,
        end_s=3.0,
    )


@pytest.mark.parametrize("window_s", [0.01, 0.0999, 1 / 3, 7.0, 1000.0])
def test_windows_touch_and_ids_are_unique_and_in_order(store: TokenStore, window_s: float) -> None:
    asked = list(caption_questions(store, window_s=window_s, template="brief", videos=["/a/long.mp4"]))
    ids = [question.question_id for question in asked]
    assert ids == sorted(set(ids))
    ends = [question.end_s for question in asked]
    assert [question.start_s for question in asked] == [0.0, *ends[:-1]] and ends[-1] == 70.5


def test_chosen_videos_are_taken_once(store: TokenStore) -> None:
    twice = ["short.mp4", "/a/short.mp4", video_id("/a/even.mp4")]
    found = [
        question.video for question in caption_questions(store, window_s=60.0, template="b", videos=twice)
    ]
    assert found == [video_id("/a/even.mp4"), video_id("/a/short.mp4")]
    assert list(caption_questions(store, window_s=60.0, template="b", videos=[])) == []


def test_what_cannot_be_captioned_is_said_at_once(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match=r"/a/bad.mp4 failed \(missing\)"):
        caption_questions(store, window_s=60.0, template="b", videos=["bad.mp4"])
    with pytest.raises(StoreError, match="no video 'nowhere"):
        caption_questions(store, window_s=60.0, template="b", videos=["nowhere.mp4"])
    for window_s in (0.0, -1.0, float("nan"), float("inf"), 0.001):
        with pytest.raises(ConfigError, match="give seconds"):
            caption_questions(store, window_s=window_s, template="b", videos=None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1.5", 1.5),
        ("1h", 3600.0),
        (" 0.5 H ", 1800.0),
        (".5", 0.5),
    ],
)
def test_windows_are_read(text: str, seconds: float) -> None:
    assert parse_window(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "0", "0s", "-3", "1e3", "nan", "inf", "3 days", "1m30s", "0.001", "9" * 400]
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ConfigError, match="give 30s, 2m, 1h, or seconds"):
        parse_window(text)
