from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.errors import StoreError
from echoprune.plan import Source, extend_plan, load_plan, make_shards, pending
from echoprune.storage import Storage

sources = st.lists(
    st.builds(Source, st.text("abc/", min_size=1, max_size=6), st.none() | st.integers(0, 5000)),
    unique_by=lambda source: source.uri,
    max_size=40,
)


@given(
    made=sources,
    order=st.randoms(use_true_random=False),
    shard_bytes=st.integers(1, 9000),
    videos=st.integers(1, 9),
)
def test_shards_partition_the_sources_in_any_order(
    made: list[Source], order: object, shard_bytes: int, videos: int
) -> None:
    shards = make_shards(made, shard_bytes=shard_bytes, shard_videos=videos)
    assert sorted(source for shard in shards for source in shard.sources) == sorted(made)
    assert all(1 <= len(shard.sources) <= videos for shard in shards)
    assert len({shard.shard_id for shard in shards}) == len(shards)
    shuffled = list(made)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert make_shards(shuffled, shard_bytes=shard_bytes, shard_videos=videos) == shards


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=200))
def test_shards_differ_by_less_than_one_video(sizes: list[int]) -> None:
    made = [Source(str(i), size) for i, size in enumerate(sizes)]
    shards = make_shards(made, shard_bytes=3000, shard_videos=1000)
    share = sum(sizes) / -(-sum(sizes) // 3000)
    for shard in shards:
        largest = max(source.size_bytes or 0 for source in shard.sources)
        assert shard.size_bytes <= share + largest / 2
    for shard in shards[:-1]:
        assert shard.size_bytes >= share - max(sizes)


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=200), wanted=st.integers(1, 40))
def test_a_small_archive_is_shared_out(sizes: list[int], wanted: int) -> None:
    made = [Source(str(i), size) for i, size in enumerate(sizes)]
    shards = make_shards(made, shard_bytes=10**9, shard_videos=1000, min_shards=wanted)
    share = sum(sizes) / wanted
    for shard in shards:
        assert (
            len(shard.sources) == 1
            or shard.size_bytes <= share + max(s.size_bytes or 0 for s in shard.sources) / 2
        )
    assert len(make_shards(made, shard_bytes=10**9, shard_videos=1000)) == 1
    alike = [Source(str(i), 100) for i in range(wanted * 3)]
    assert [
        len(shard.sources)
        for shard in make_shards(alike, shard_bytes=10**9, shard_videos=99, min_shards=wanted)
    ] == [3] * wanted


def test_min_shards_reach_the_plan(tmp_path: Path) -> None:
    made = [Source(f"/{i}.mp4", 100) for i in range(16)]
    shards = extend_plan(Storage(tmp_path), made, shard_bytes=10**9, shard_videos=256, min_shards=8)
    assert [len(shard.sources) for shard in shards] == [2] * 8
    assert load_plan(Storage(tmp_path)).shards() == shards


def test_long_videos_come_first_and_alone() -> None:
    made = [Source("a", 10), Source("b", 5000), Source("c", 20), Source("d", None), Source("e", 30)]
    shards = make_shards(made, shard_bytes=100, shard_videos=10)
    assert [[source.uri for source in shard.sources] for shard in shards] == [
        ["b"],
        ["d", "e", "c", "a"],
    ] or [source.uri for source in shards[0].sources] == ["b"]
    assert make_shards([], shard_bytes=1, shard_videos=1) == []
    with pytest.raises(ValueError, match=">= 1"):
        make_shards(made, shard_bytes=0, shard_videos=1)


def test_the_id_follows_uris_and_sizes() -> None:
    def shard_id(*made: Source) -> str:
        (shard,) = make_shards(made, shard_bytes=10**9, shard_videos=10)
        return shard.shard_id

    ids = [
        shard_id(Source("a", 1)),
        shard_id(Source("a", 2)),
        shard_id(Source("b", 1)),
        shard_id(Source("a", 1), Source("b", 1)),
    ]
    assert len(set(ids)) == 4 and all(len(one) == 16 for one in ids)


def test_the_plan_is_frozen_and_grows_by_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(tmp_path)
    assert (
        len(load_plan(storage)) == 0
        and load_plan(storage).shards() == []
        and load_plan(storage).shard_ids == []
    )
    made = [Source(f"/ü {i}.mp4", 100 + i) for i in range(10)] + [Source("/gone.mp4", None)]
    first = extend_plan(storage, made, shard_bytes=300, shard_videos=3)
    part = (tmp_path / "plan/part-0000.parquet").read_bytes()
    assert load_plan(storage).shards() == first and len(load_plan(storage)) == 11
    assert load_plan(storage).table["video_id"].to_pylist() == [i for shard in first for i in shard.video_ids]
    assert extend_plan(storage, made, shard_bytes=1, shard_videos=1) == []
    with caplog.at_level(logging.WARNING):
        changed = [made[0]._replace(size_bytes=7), Source("/new.mp4", 1)]
        second = extend_plan(storage, changed, shard_bytes=300, shard_videos=3)
    assert "1 files changed" in caplog.text
    assert [source.uri for shard in second for source in shard.sources] == ["/new.mp4"]
    plan = load_plan(storage)
    assert plan.shards() == first + second and plan.shard_ids == [shard.shard_id for shard in first + second]
    assert (tmp_path / "plan/part-0000.parquet").read_bytes() == part
    assert storage.names("plan") == ["plan/part-0000.parquet", "plan/part-0001.parquet"]
    done = {first[1].shard_id}
    assert pending(plan, done) == [first[0], *first[2:], *second]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("plan/part-0000.parquet", b"PAR1")
    with pytest.raises(StoreError, match=r"part-0000\.parquet is damaged"):
        load_plan(storage)


def test_two_hundred_thousand_videos_are_planned_in_seconds(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    made = [Source(f"/archive/{i:07d}.mp4", 1000 + i * 7919 % 100_003) for i in range(200_000)]
    begun = time.monotonic()
    shards = extend_plan(storage, made, shard_bytes=5_000_000, shard_videos=1000)
    plan = load_plan(storage)
    left = pending(plan, {shard.shard_id for shard in shards[:-1]})
    # 1.6 s on 2 cores; a quadratic step would take minutes.
    assert time.monotonic() - begun < 30
    assert left == shards[-1:] and len(plan) == 200_000
