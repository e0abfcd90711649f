"""What decord's FFmpeg says is heard, from its own threads too, and only while somebody listens."""

from __future__ import annotations

import threading
from pathlib import Path

import decord
import pytest
from decord._ffi.base import _LIB

from echoprune.decord_log import listening
from tests.clips import CLIPS, damage, write


def _decode(path: Path) -> None:
    reader = decord.VideoReader(str(path), num_threads=1)
    for index in range(len(reader)):
        assert reader.get_batch([index]).shape[0] == 1


@pytest.fixture(autouse=True)
def quiet() -> None:
    decord.logging.set_level(decord.logging.QUIET)


def test_a_whole_file_gives_no_reason_to_complain(tmp_path: Path) -> None:
    for name in ("bframes.mp4", "bframes.mkv", "vp9.webm", "av1.mp4"):
        path = write(CLIPS[name], tmp_path)
        with listening(_LIB) as heard:
            _decode(path)
        assert (heard.messages > 10, heard.complaint) == (True, "")


def test_errors_of_the_decoding_thread_are_heard(tmp_path: Path) -> None:
    path = write(CLIPS["bframes.mp4"], tmp_path)
    with listening(_LIB) as heard:
        _decode(damage(path, tmp_path / "smeared.mp4", at=0.6, length=1))
    assert heard.complaint
    with listening(_LIB) as fresh:
        _decode(path)
    assert fresh.complaint == ""


def test_nothing_is_heard_before_or_after(tmp_path: Path) -> None:
    path = write(CLIPS["cfr.mp4"], tmp_path)
    with listening(_LIB) as heard:
        pass
    _decode(path)
    assert heard.messages == 0


def test_nothing_is_heard_without_a_library(tmp_path: Path) -> None:
    with listening(None) as heard:
        _decode(write(CLIPS["cfr.mp4"], tmp_path))
    assert heard.messages == 0


def test_listeners_of_several_threads_hear_their_own_files_only(tmp_path: Path) -> None:
    whole = write(CLIPS["bframes.mp4"], tmp_path)
    paths = [whole, damage(whole, tmp_path / "smeared.mp4", at=0.6, length=1)] * 6
    complaints: list[str] = [""] * len(paths)

    def listen(index: int) -> None:
        with listening(_LIB) as heard:
            _decode(paths[index])
        complaints[index] = heard.complaint

    threads = [threading.Thread(target=listen, args=(index,)) for index in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [bool(complaint) for complaint in complaints] == [False, True] * 6
