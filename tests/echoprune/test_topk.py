"""Running selection against a stable sort of everything, its bounds on memory and disk, and its edges."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoprune.data import EchoScores
from echoprune.errors import ModelError, StoreError
from echoprune.prune import select_tokens
from echoprune.topk import TopK
from tests import oracle

ROW = np.dtype([("t", "<i4"), ("score", "<f4"), ("emb", "<u2", (5,))])
TIED = np.array([-np.inf, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, np.inf], dtype=np.float32)


def numbered_rows(start, count):
    rows = np.zeros(count, dtype=ROW)
    rows["t"] = np.arange(start, start + count)
    rows["score"] = np.arange(start, start + count) / 7
    rows["emb"] = (np.arange(start, start + count)[:, None] * 31 + np.arange(5)) % 65_536
    return rows


def pushed_in_parts(topk, score, pinned, cuts):
    start = 0
    for part, pins in zip(np.split(score, sorted(cuts)), np.split(pinned, sorted(cuts)), strict=True):
        topk.push(part, numbered_rows(start, len(part)), pins)
        start += len(part)


def read_back(selection, rows=3):
    parts = list(selection.chunks(rows))
    assert all(len(indices) == rows for indices, _ in parts[:-1])
    indices = np.concatenate([np.empty(0, dtype=np.int64), *(indices for indices, _ in parts)])
    read = np.concatenate([np.empty(0, dtype=ROW), *(rows for _, rows in parts)])
    return indices, read


@given(data=st.data(), count=st.integers(0, 120), seed=st.integers(0, 10_000))
@settings(max_examples=300, deadline=None)
def test_the_selection_is_a_stable_sort_of_everything(tmp_path_factory, data, count, seed):
    random = np.random.default_rng(seed)
    tied = data.draw(st.booleans())
    score = random.choice(TIED, count) if tied else random.standard_normal(count).astype(np.float32)
    pinned = random.random(count) < data.draw(st.sampled_from([0.0, 0.2, 1.0]))
    capacity = data.draw(st.none() | st.integers(0, 40))
    budget = data.draw(st.none() | st.integers(0, 40 if capacity is None else capacity))
    cuts = data.draw(st.lists(st.integers(0, count), max_size=12))
    with TopK(capacity=capacity, spill_dir=tmp_path_factory.getbasetemp()) as topk:
        pushed_in_parts(topk, score, pinned, cuts)
        selection = topk.finish(budget)
        indices, rows = read_back(selection, data.draw(st.integers(1, 50)))
        again, _ = read_back(selection)

    free = np.flatnonzero(~pinned).tolist()
    room = next((size for size in (budget, capacity) if size is not None), count)
    counted = oracle.best(score.tolist(), free, room)
    expected = sorted([*counted, *np.flatnonzero(pinned).tolist()])
    assert selection.indices.dtype == np.int64
    assert selection.indices.tolist() == indices.tolist() == again.tolist() == expected
    assert rows.tobytes() == numbered_rows(0, count)[expected].tobytes()
    dropped = sorted(set(free) - set(counted))
    assert selection.highest_dropped == (max(score[dropped].tolist()) if dropped else None)
    assert selection.lowest_kept == (min(score[counted].tolist()) if counted else None)


@given(data=st.data(), cells=st.integers(1, 8), places=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_the_selection_is_that_of_select_tokens(tmp_path_factory, data, cells, places, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    correspondence = torch.randint(-2, 3, (cells, places), generator=generator) / 4
    correspondence[0] = 0
    scores = EchoScores(correspondence, correspondence.clone(), torch.arange(cells) > 0)
    budget = data.draw(st.integers(0, cells * places))
    with TopK(capacity=budget, spill_dir=tmp_path_factory.getbasetemp()) as topk:
        for t in range(cells):
            topk.push(scores.novelty[t].numpy(), numbered_rows(t * places, places), np.full(places, t == 0))
        assert topk.finish(budget).indices.tolist() == select_tokens(scores, budget=budget).tolist()


@pytest.mark.parametrize("rising", [True, False])
def test_disk_holds_no_more_than_three_capacities(tmp_path, rising):
    capacity, held = 50, []
    with TopK(capacity=capacity, spill_dir=tmp_path) as topk:
        for step in range(200):
            score = np.arange(step * 20, step * 20 + 20, dtype=np.float32)
            topk.push(score if rising else -score, numbered_rows(step * 20, 20), np.zeros(20, dtype=np.bool_))
            held.append(topk._candidate_rows.rows)
        expected = np.arange(3950, 4000) if rising else np.arange(50)
        assert topk.finish(capacity).indices.tolist() == expected.tolist()
    assert max(held) <= 3 * capacity
    compactions = sum(after < before for before, after in itertools.pairwise(held))
    assert compactions >= 50 if rising else compactions <= 1


def test_one_large_push_is_thinned_before_it_reaches_the_disk(tmp_path):
    score = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    with TopK(capacity=10, spill_dir=tmp_path) as topk:
        topk.push(score, numbered_rows(0, len(score)), np.zeros(len(score), dtype=np.bool_))
        assert topk._candidate_rows.rows == 10
        selection = topk.finish(10)
    assert selection.indices.tolist() == sorted(np.argsort(-score, kind="stable")[:10].tolist())
    assert selection.highest_dropped == float(np.sort(score)[-11])


def test_rows_never_gather_in_memory(tmp_path):
    row = np.dtype([("emb", "V7168")])  # 3584 values of 2 bytes
    random = np.random.default_rng(0)
    with TopK(capacity=4000, spill_dir=tmp_path) as topk:
        tracemalloc.start()
        try:
            for _ in range(80):  # 20,000 rows, 143 MB
                score = random.random(250, dtype=np.float32)
                topk.push(score, np.zeros(250, dtype=row), np.zeros(250, dtype=np.bool_))
            selection = topk.finish(4000)
            # 29 MB of kept rows: asked for at once, they come in parts all the same.
            assert sum(len(indices) for indices, _ in selection.chunks(4000)) == 4000
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak_bytes < 24 << 20


def test_nothing_is_left_in_the_spill_folder(tmp_path):
    with TopK(capacity=3, spill_dir=tmp_path) as topk:
        topk.push(np.zeros(9, dtype=np.float32), numbered_rows(0, 9), np.zeros(9, dtype=np.bool_))
        topk.finish(2)
    assert list(tmp_path.iterdir()) == []
    topk.close()


def test_a_selection_of_nothing(tmp_path):
    with TopK(capacity=5, spill_dir=tmp_path) as topk:
        selection = topk.finish(None)
        assert list(selection.chunks(4)) == []
    assert len(selection) == 0
    assert selection.highest_dropped is None
    assert selection.lowest_kept is None


def test_plain_rows_come_back_in_their_dtype(tmp_path):
    with TopK(capacity=None, spill_dir=tmp_path) as topk:
        values = np.arange(6, dtype=np.float64)[::2]  # not contiguous
        topk.push(np.zeros(3, dtype=np.float32), values, np.array([False, True, False]))
        ((indices, rows),) = topk.finish(None).chunks(10)
    assert indices.tolist() == [0, 1, 2]
    assert rows.dtype == np.float64
    assert rows.tolist() == [0.0, 2.0, 4.0]


def test_scores_that_are_not_numbers_are_an_error_of_the_model(tmp_path):
    with TopK(capacity=2, spill_dir=tmp_path) as topk, pytest.raises(ModelError, match="1 of 3"):
        topk.push(
            np.array([0, np.nan, 1], dtype=np.float32), numbered_rows(0, 3), np.zeros(3, dtype=np.bool_)
        )


def test_a_spill_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"missing.*local folder"):
        TopK(capacity=2, spill_dir=tmp_path / "missing")


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="capacity"):
        TopK(capacity=-1, spill_dir=tmp_path)
    with TopK(capacity=2, spill_dir=tmp_path) as topk:
        free = np.zeros(3, dtype=np.bool_)
        with pytest.raises(ValueError, match="float32"):
            topk.push(np.zeros(3), numbered_rows(0, 3), free)
        with pytest.raises(ValueError, match="rows and pinned"):
            topk.push(np.zeros(3, dtype=np.float32), numbered_rows(0, 2), free)
        with pytest.raises(ValueError, match="fixed size"):
            topk.push(np.zeros(3, dtype=np.float32), np.array([None] * 3), free)
        topk.push(np.zeros(3, dtype=np.float32), numbered_rows(0, 3), free)
        with pytest.raises(ValueError, match="one dtype"):
            topk.push(np.zeros(3, dtype=np.float32), np.zeros(3), free)
        with pytest.raises(ValueError, match="budget 3"):
            topk.finish(3)
        selection = topk.finish(1)
        with pytest.raises(ValueError, match="at least 1"):
            next(selection.chunks(0))
        with pytest.raises(ValueError, match="finish"):
            topk.finish(1)
        with pytest.raises(ValueError, match="finish"):
            topk.push(np.zeros(3, dtype=np.float32), numbered_rows(0, 3), free)


class Rows:
    """Rows that are made when they are asked for, and how many were."""

    def __init__(self, start, count):
        self.rows, self.taken, self.dtype = numbered_rows(start, count), 0, ROW

    def __len__(self):
        return len(self.rows)

    def take(self, places):
        self.taken += len(places)
        return self.rows[places]


@pytest.mark.parametrize(("keep", "most"), [(0.05, 0.22), (0.25, 0.64)])
def test_rows_are_taken_of_tokens_that_can_still_be_kept_alone(tmp_path, keep, most):
    count, each = 100_000, 1000
    score = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    pinned = np.zeros(count, dtype=np.bool_)
    pinned[:each] = True
    sources = [Rows(start, each) for start in range(0, count, each)]
    with TopK(capacity=int(keep * count), spill_dir=tmp_path) as topk:
        for source in sources:
            part = slice(source.rows["t"][0], source.rows["t"][0] + each)
            topk.push(score[part], source, pinned[part])
        indices, rows = read_back(topk.finish(None), each)
    best = each + np.argsort(-score[each:], kind="stable")[: int(keep * count)]
    assert indices.tolist() == [*range(each), *sorted(best.tolist())]
    assert rows.tobytes() == numbered_rows(0, count)[indices].tobytes()
    assert sum(source.taken for source in sources) <= each + most * count
