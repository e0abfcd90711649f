from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from echoprune.data import TokenSet
from echoprune.dtype import codec
from echoprune.errors import ConfigError, ModelError, StoreError
from echoprune.query import relevance
from echoprune.search import Moment, search_tokens
from echoprune.store import TokenStore, create_store, open_store
from tests.stores import Clip, clip, settings, write_shard

Content = list[tuple[dict[str, Any], TokenSet, pa.Table]]


def content(store: TokenStore) -> Content:
    """Every video that did not fail, with all its stored tokens and its cells."""
    rows = [row for row in store.videos().to_pylist() if row["status"] != "failed"]
    return [(row, store.tokens(row["video_id"]), store.cells(row["video_id"])) for row in rows]


def brute_force(everything: Content, query: torch.Tensor, *, reduce: str = "max") -> list[Moment]:
    """Every cell that has a stored token, best first, from every stored token."""
    moments = []
    for row, tokens, cells in everything:
        scores = relevance(tokens.tokens, query, reduce=reduce).numpy()
        t = tokens.positions[:, 0].numpy()
        for cell in np.unique(t).tolist():
            inside = np.flatnonzero(t == cell)
            best = inside[scores[inside].argmax()]
            place = [int(value) for value in tokens.positions[best]]
            start_s, end_s = cells["time_s"][cell].as_py(), cells["end_s"][cell].as_py()
            moments.append(Moment(row["video_id"], row["uri"], start_s, end_s, float(scores[best]), *place))
    return sorted(moments, key=lambda moment: (-moment.score, moment.uri, moment.t))


def scenes(uri: str, dim: int, dtype: str, *, cells: int, seed: int, spread: float, layers: int = 0) -> Clip:
    """A clip whose cells each show one thing, a direction of its own; tokens stray from it by `spread`."""
    made_with = settings(dim=dim, dtype=dtype, deepstack_layers=layers)
    made = clip(uri, made_with, cells=cells, seed=seed, keep=0.4)
    random = torch.Generator().manual_seed(1000 + seed)
    things = torch.nn.functional.normalize(torch.randn(cells, 1, dim, generator=random), dim=-1)
    noise = torch.randn(cells, 15, dim, generator=random) * spread / dim**0.5
    lengths = torch.rand(cells, 15, 1, generator=random) * 30 + 0.1
    tokens = ((things + noise) * lengths).reshape(-1, dim)
    tokens[torch.rand(len(tokens), generator=random) < 0.05] = 0
    return replace(made, tokens=codec(dtype).rounded(tokens))


def scene_store(folder: Path, dtype: str = "fp32", *, layers: int = 0, spread: float = 0.3) -> TokenStore:
    """Three shards; row groups of about 17 tokens, so that they cut cells, and of a few cells."""
    made_with = settings(dim=24, dtype=dtype, deepstack_layers=layers)
    storage = create_store(folder, made_with)
    for shard in range(3):
        clips = [
            scenes(
                f"/v/{shard}-{n}.mp4",
                24,
                dtype,
                cells=9 + n,
                seed=10 * shard + n,
                spread=spread,
                layers=layers,
            )
            for n in range(3)
        ]
        # In one video, nothing is stored.
        clips[1] = replace(clips[1], kept=clips[1].kept[:0]) if shard == 1 else clips[1]
        limits = {"row_group_bytes": 1900 + 400 * shard, "file_bytes": 80_000}
        write_shard(storage, made_with, clips, shard_id=f"s{shard}", failed=[f"/v/{shard}-bad.mp4"], **limits)
    return open_store(folder)


@pytest.mark.parametrize(("dtype", "layers"), [("fp32", 0), ("bf16", 2), ("fp16", 0), ("int8", 2)])
def test_the_same_as_scoring_every_token(tmp_path: Path, dtype: str, layers: int) -> None:
    store = scene_store(tmp_path, dtype, layers=layers)
    everything = content(store)
    query = torch.randn(4, 24, generator=torch.Generator().manual_seed(5))
    for reduce in ("max", "mean", "softmax"):
        expected = brute_force(everything, query, reduce=reduce)
        assert len(expected) > 50
        for limit in (1, 7, len(expected) + 9):
            found = search_tokens(store, query, limit=limit, reduce=reduce, merge=False)
            assert list(found.moments) == expected[:limit]
            assert found.stats.exact and found.stats.cells == len(expected)
            left = found.stats.unopened_bound
            assert left is None or left < found.moments[-1].score


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[float, tuple[TokenStore, Content]]:
    """By how much tokens stray from their cell's direction."""
    made = {
        spread: scene_store(tmp_path_factory.mktemp("s"), "bf16", spread=spread) for spread in (0, 0.1, 1, 4)
    }
    return {spread: (store, content(store)) for spread, store in made.items()}


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    words=st.integers(1, 5),
    limit=st.integers(1, 20),
    spread=st.sampled_from([0, 0.1, 1, 4]),
    toward=st.booleans(),
)
def test_any_query(
    stores: dict[float, tuple[TokenStore, Content]],
    seed: int,
    words: int,
    limit: int,
    spread: float,
    toward: bool,
) -> None:
    store, everything = stores[spread]
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(words, 24, generator=random) * 10.0 ** (seed % 7 - 3)
    if toward:
        # A query that lies exactly on a token: the bound is as tight as it gets.
        tokens = everything[seed % 8][1].tokens
        query[0] = tokens[seed % max(1, len(tokens))].float() if len(tokens) else query[0]
    if words > 1:
        query[-1] = 0
    found = search_tokens(store, query, limit=limit, merge=False)
    assert list(found.moments) == brute_force(everything, query)[:limit]


def test_cells_that_cannot_win_are_not_opened(tmp_path: Path) -> None:
    store = scene_store(tmp_path, spread=0.1)
    query = store.tokens("2-1.mp4").tokens[40:41]
    found = search_tokens(store, query, limit=1)
    assert found.moments[0].uri == "/v/2-1.mp4" and found.moments[0].score > 0.99
    groups = sum(len(store.tables.row_groups("tokens", shard)) for shard in store.receipts)
    assert groups > 15
    assert found.stats.row_groups_opened <= 3 and found.stats.cells_opened <= 9 < found.stats.cells


def test_equal_scores_are_ordered_by_uri_and_time(tmp_path: Path) -> None:
    made_with = settings()
    storage = create_store(tmp_path, made_with)
    same = clip("/v/b.mp4", made_with, cells=5, keep=1.0)
    same = replace(same, tokens=same.tokens[:15].repeat(5, 1))
    write_shard(storage, made_with, [same], shard_id="a", row_group_bytes=1900, file_bytes=80_000)
    write_shard(storage, made_with, [replace(same, uri="/v/a.mp4")], shard_id="b")
    store = open_store(tmp_path)
    query = torch.randn(2, 24)
    found = search_tokens(store, query, limit=7, merge=False).moments
    assert [(m.uri, m.t) for m in found] == [("/v/a.mp4", t) for t in range(5)] + [
        ("/v/b.mp4", 0),
        ("/v/b.mp4", 1),
    ]
    merged = search_tokens(store, query, limit=7).moments
    assert [(m.uri, m.start_s, m.end_s, m.t) for m in merged] == [
        ("/v/a.mp4", 0.0, 5.0, 0),
        ("/v/b.mp4", 0.0, 2.0, 0),
    ]
    assert merged[0] == replace(found[0], end_s=5.0)


def test_a_moment_has_the_best_token_of_its_cells(tmp_path: Path) -> None:
    store = scene_store(tmp_path)
    query = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    cells = search_tokens(store, query, limit=25, merge=False).moments
    moments = search_tokens(store, query, limit=25).moments
    assert len(moments) < len(cells)
    assert sum(round(m.end_s - m.start_s) for m in moments) == 25
    for moment in moments:
        inside = [
            m
            for m in cells
            if m.uri == moment.uri and moment.start_s <= m.start_s and m.end_s <= moment.end_s
        ]
        assert [m.t for m in sorted(inside, key=lambda m: m.t)] == list(
            range(int(moment.start_s), int(moment.end_s))
        )
        assert replace(inside[0], start_s=moment.start_s, end_s=moment.end_s) == moment
    assert [m.score for m in moments] == sorted((m.score for m in moments), reverse=True)


def test_search_in_some_videos(tmp_path: Path) -> None:
    store = scene_store(tmp_path)
    query = torch.randn(3, 24)
    some = ["0-2.mp4", "/v/2-0.mp4", "1-1.mp4"]
    found = search_tokens(store, query, limit=500, videos=some, merge=False)
    expected = [m for m in brute_force(content(store), query) if m.uri in ("/v/0-2.mp4", "/v/2-0.mp4")]
    assert list(found.moments) == expected and found.stats.cells == len(expected)
    assert search_tokens(store, query, limit=5, videos=["1-1.mp4", "1-bad.mp4"]).moments == ()
    with pytest.raises(StoreError, match="no video 'x'"):
        search_tokens(store, query, limit=5, videos=["x"])


def test_a_limited_search_says_that_it_is_not_exact(tmp_path: Path) -> None:
    store = scene_store(tmp_path, spread=4.0)
    query = torch.randn(3, 24)
    expected = brute_force(content(store), query)
    found = search_tokens(store, query, limit=10, max_row_groups=1, merge=False)
    assert not found.stats.exact and found.stats.row_groups_opened == 1
    assert 0 < len(found.moments) <= 10
    left = found.stats.unopened_bound
    assert left is not None and all(m.score <= left for m in set(expected) - set(found.moments))


def test_an_empty_store_has_no_moments(tmp_path: Path) -> None:
    create_store(tmp_path, settings())
    found = search_tokens(open_store(tmp_path), torch.randn(2, 24), limit=3)
    assert found.moments == () and found.stats.cells == 0 and found.stats.exact


def test_what_cannot_be_searched_for(tmp_path: Path) -> None:
    store = scene_store(tmp_path)
    with pytest.raises(ConfigError, match="no words"):
        search_tokens(store, torch.empty(0, 24), limit=3)
    with pytest.raises(ConfigError, match="limit 0"):
        search_tokens(store, torch.ones(1, 24), limit=0)
    with pytest.raises(ConfigError, match="'min'"):
        search_tokens(store, torch.ones(1, 24), limit=1, reduce="min")
    with pytest.raises(ModelError, match="not finite"):
        search_tokens(store, torch.full((1, 24), np.inf), limit=1)
    with pytest.raises(ValueError, match=r"\(M, 24\)"):
        search_tokens(store, torch.ones(1, 23), limit=1)


def test_damage_is_found(tmp_path: Path) -> None:
    store = scene_store(tmp_path)
    name = store.files("tokens")[0]
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    vectors = pq.ParquetFile(path).metadata.row_group(1).column(6)
    assert vectors.path_in_schema == "emb"
    data[vectors.data_page_offset + vectors.total_compressed_size // 2] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"damaged.*index again"):
        search_tokens(store, torch.randn(3, 24), limit=500)
    other = scene_store(tmp_path / "other", spread=2.0)
    cells = other.files("cells")
    (tmp_path / "other" / cells[0]).write_bytes((tmp_path / "other" / cells[1]).read_bytes())
    with pytest.raises(StoreError, match=r"shard s0 .*damaged"):
        search_tokens(other, torch.randn(3, 24), limit=5)
