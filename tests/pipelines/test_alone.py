"""A video that has ended its encoder is encoded with no other one decoded ahead beside it; the store is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from echoprune.data import Frames, TokenGrid
from echoprune.plan import Shard, extend_plan
from echoprune.sources import list_sources
from echoprune.staging import StagedVideos
from echoprune.storage import Storage
from pipelines import inline_video
from pipelines.events import VideoDone
from pipelines.index_worker import IndexWorker
from pipelines.inline_video import InlineVideo
from pipelines.shard_videos import apart
from tests.clips import Clip, even, write
from tests.pipelines.conftest import tables
from tests.pipelines.test_retry import worker


@pytest.mark.parametrize(
    ("alone", "parts"),
    [
        ("", ["abcd"]),
        ("b", ["a", "b", "cd"]),
        ("a", ["a", "bcd"]),
        ("cd", ["ab", "c", "d"]),
        ("abcd", ["a", "b", "c", "d"]),
    ],
)
def test_cut_around_what_is_to_be_alone(alone: str, parts: list[str]) -> None:
    assert ["".join(part) for part in apart([(each, each in alone) for each in "abcd"])] == parts
    assert list(apart([])) == []


class Ahead:
    """Stands where the decode actors do: decodes in this process, and notes what it might have decoded ahead together."""

    def __init__(self, made: IndexWorker) -> None:
        self._opener, self.asked, self.decoders = made._job.opener, [], 0

    def videos(self, uris: Sequence[str], *, decoder: str, staged: StagedVideos) -> Iterator[InlineVideo]:
        self.asked.append([Path(uri).name for uri in uris])
        for uri in uris:
            yield InlineVideo(self._opener, uri, decoder=decoder, staged=staged)


def test_a_shard_with_a_suspect(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        write(Clip(name, even(30)), folder)

    def shard_of(store: Path) -> tuple[IndexWorker, Ahead, Shard]:
        made = worker(store, tiny, run_id="run")
        made._pool = ahead = Ahead(made)  # type: ignore[assignment]
        sources = list_sources([str(folder)])
        (shard,) = extend_plan(Storage(store), sources, shard_bytes=1 << 40, shard_videos=99)
        return made, ahead, shard

    made, ahead, shard = shard_of(tmp_path / "together")
    list(made.run_shard(shard, {}))
    (names,) = ahead.asked
    made, ahead, shard = shard_of(tmp_path / "apart")
    suspect, bad = shard.sources[1].video_id, shard.sources[3].video_id
    list(made.run_shard(shard, {}, frozenset({suspect})))
    assert ahead.asked == [names[:1], [names[1]], names[2:]]
    assert tables(tmp_path / "apart") == tables(tmp_path / "together")
    # One that is left out takes nobody along.
    made, ahead, shard = shard_of(tmp_path / "without")
    events = list(made.run_shard(shard, {bad: "RuntimeError"}, frozenset({suspect, bad})))
    assert ahead.asked == [names[:1], [names[1]], names[2:3]]
    assert [event.error for event in events if isinstance(event, VideoDone) and event.status == "failed"] == [
        f"{shard.sources[3].uri}: encoding it ended the worker twice, the second time alone (RuntimeError); "
        "the file is left out"
    ]


def test_an_error_that_nobody_foresaw_is_a_row_of_the_decoders_and_the_end_of_the_encoder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(write(Clip("a.mp4", even(30)), tmp_path))
    made = worker(tmp_path / "store", tiny, run_id="run")
    (shard,) = extend_plan(
        Storage(tmp_path / "store"), list_sources([uri]), shard_bytes=1 << 40, shard_videos=9
    )

    def encode(frames: Frames, *, check: bool) -> TokenGrid:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")  # as plain as cuBLAS's is

    with monkeypatch.context() as patch:
        patch.setattr(made._encoder, "encode", encode)
        with pytest.raises(RuntimeError, match="CUBLAS"):
            list(made.run_shard(shard, {}))

    def decode(*_: object, **__: object) -> Iterator[Frames]:
        raise ValueError("a defect\nin two lines")
        yield

    monkeypatch.setattr(inline_video, "decode", decode)
    (done,) = [event for event in made.run_shard(shard, {}) if isinstance(event, VideoDone)]
    assert (done.status, done.error_class, done.error) == (
        "failed", "ValueError", f"{uri}: ValueError: a defect in two lines",
    )  # fmt: skip
