"""One video, from its file to its kept tokens, in this process: against the oracle, in any cut, partial and failed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import echoprune
from echoprune.data import Frames, TimeGrid
from echoprune.dtype import codec
from echoprune.errors import MediaError
from echoprune.index import drain, index_segments, sampling_of
from echoprune.models import load_encoder
from echoprune.models.encoder import Encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.pool import unpool
from echoprune.schema import RANKS, StoreSettings
from tests import oracle
from tests import stores as made_stores
from tests.clips import Clip, damage, even, write

CELL_FRAMES, SEGMENT = 2, 4
FRAME_HW, GRID_HW = (84, 140), (3, 5)
PLACES = 15


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")
    return load_encoder(str(folder), segment_cells=SEGMENT, device="cpu")


def settings(encoder: Encoder, **changes: object) -> StoreSettings:
    made = made_stores.settings(dim=encoder.dim, dtype="fp32", segment_cells=SEGMENT, cell_frames=CELL_FRAMES)
    plain = {
        "keep": "0.25",
        "anchor_every_s": 0.0,
        "temperature": 0.5,
        "window": None,
        "fps": "2",
        "frames": None,
    }
    return replace(made, max_frames=None, **(plain | changes))


def grid(cells: int) -> TimeGrid:
    frames = cells * CELL_FRAMES
    return TimeGrid(
        times_s=np.arange(frames) / 2.0, frame_pts=np.arange(frames) * 500, frame_hw=FRAME_HW, grid_hw=GRID_HW,
        cell_frames=CELL_FRAMES, segment_cells=SEGMENT, end_s=frames / 2,
    )  # fmt: skip


def segments(pixels: np.ndarray, *, damaged: int = 0) -> Iterator[Frames]:
    step = SEGMENT * CELL_FRAMES
    for start in range(0, len(pixels), step):
        yield Frames(
            pixels[start : start + step], start // CELL_FRAMES, CELL_FRAMES, "pyav", damaged if start else 0
        )


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Ten cells: a still textured picture in which one block changes from cell 4 on."""
    random = np.random.default_rng(3)
    still = random.integers(0, 255, (*FRAME_HW, 3)).astype(np.uint8)
    frames = np.repeat(still[None], 20, axis=0)
    frames += random.integers(0, 3, frames.shape).astype(np.uint8)
    for frame in range(8, 20):
        frames[frame, 28:56, 28:56] = random.integers(0, 255, (28, 28, 3))
    return frames


def index(source: Iterator[Frames], made: StoreSettings, encoder: Encoder, folder: Path, *, cells: int = 10):
    return drain(
        index_segments(
            source, grid=grid(cells), time_base_s=0.001, encoder=encoder, settings=made, spill_dir=folder
        )
    )


def rows_of(indexed) -> np.ndarray:
    return np.concatenate([rows for _, rows in indexed.selection.chunks(7)])


@pytest.mark.parametrize("by", RANKS)
def test_kept_tokens_are_the_oracles(pixels: np.ndarray, encoder: Encoder, tmp_path: Path, by: str) -> None:
    whole = encoder.encode(Frames(pixels, 0, CELL_FRAMES, "pyav")).flat
    c, e = oracle.echo(whole.numpy(), grid_hw=GRID_HW, temperature=0.5)
    with index(segments(pixels), settings(encoder, rank_by=by), encoder, tmp_path) as indexed:
        kept = oracle.keep_without_question(c, e, budget=10 * PLACES // 4, by=by)
        assert indexed.selection.indices.tolist() == kept
        rows = rows_of(indexed)
        np.testing.assert_allclose(rows["correspondence"], c.reshape(-1)[kept], atol=1e-5)
        np.testing.assert_allclose(rows["echo"], e.reshape(-1)[kept], atol=1e-5)
        stored = codec("fp32").decode(rows["emb"].copy().view(np.uint8).reshape(len(rows), -1))
        assert torch.equal(stored, whole.reshape(-1, encoder.dim)[kept])
        assert (indexed.cells, indexed.seen, indexed.kept) == (10, 150, PLACES + 37)
        assert indexed.columns.kept.sum() == indexed.kept and indexed.columns.kept[0] == PLACES
        assert indexed.error is None and indexed.decoder == "pyav" and indexed.covered_s == 10.0
        dropped = np.setdiff1d(np.arange(PLACES, 150), kept)
        ranked = (-c - e) if by == "novelty" else oracle.change(c, e)
        assert indexed.selection.highest_dropped == pytest.approx(ranked.reshape(-1)[dropped].max(), abs=1e-5)
        # Whatever it goes by, what a reader sees of a cell is its novelty.
        np.testing.assert_allclose(indexed.columns.mean_novelty, (-c - e).mean(axis=1), atol=1e-5)


def test_the_block_that_changes_is_kept_and_the_still_rest_is_not(
    pixels: np.ndarray, encoder: Encoder, tmp_path: Path
) -> None:
    made = settings(encoder, keep="6/cell", window=1)
    with index(segments(pixels), made, encoder, tmp_path) as indexed:
        later = indexed.selection.indices[PLACES:]
        changing = [t * PLACES + 6 for t in range(4, 10)]
        assert set(changing) <= set(later.tolist())


def test_anchors_are_whole_and_not_counted(pixels: np.ndarray, encoder: Encoder, tmp_path: Path) -> None:
    made = settings(encoder, keep="0.1", anchor_every_s=3.0)
    with index(segments(pixels), made, encoder, tmp_path) as indexed:
        assert np.flatnonzero(indexed.columns.anchor).tolist() == [0, 3, 6, 9]
        assert indexed.columns.kept[indexed.columns.anchor].tolist() == [PLACES] * 4
        assert indexed.kept == 4 * PLACES + 15


def test_everything_is_kept(pixels: np.ndarray, encoder: Encoder, tmp_path: Path) -> None:
    with index(segments(pixels), settings(encoder, keep="all"), encoder, tmp_path) as indexed:
        assert indexed.selection.indices.tolist() == list(range(150))
        assert indexed.selection.highest_dropped is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_what_is_stored_explains_itself(
    pixels: np.ndarray, encoder: Encoder, tmp_path: Path, dtype: str
) -> None:
    """Scores are those of the tokens as they will be read back (int8: as they were before quantisation)."""
    made = settings(encoder, keep="all", dtype=dtype)
    with index(segments(pixels), made, encoder, tmp_path) as indexed:
        rows = rows_of(indexed)
    scale = rows["scale"].copy() if dtype == "int8" else None
    stored = codec(dtype).decode(rows["emb"].copy().view(np.uint8).reshape(150, -1), scale)
    c, e = oracle.echo(stored.float().reshape(10, PLACES, -1).numpy(), grid_hw=GRID_HW, temperature=0.5)
    exact = 3e-2 if dtype == "int8" else 1e-5
    np.testing.assert_allclose(rows["correspondence"], c.reshape(-1), atol=exact)
    np.testing.assert_allclose(rows["echo"], e.reshape(-1), atol=exact)


def breaks_off(pixels: np.ndarray, *, after: int) -> Iterator[Frames]:
    yield from list(segments(pixels))[:after]
    raise MediaError("broken", stage="decode", kind="decode_failed")


def test_a_video_that_breaks_off_keeps_its_ratio(
    pixels: np.ndarray, encoder: Encoder, tmp_path: Path
) -> None:
    with index(breaks_off(pixels, after=2), settings(encoder), encoder, tmp_path) as indexed:
        assert indexed.error is not None and indexed.error.kind == "decode_failed"
        assert (indexed.cells, indexed.covered_s) == (8, 8.0)
        assert indexed.kept == PLACES + 8 * PLACES // 4
    with pytest.raises(MediaError, match="broken"):
        index(breaks_off(pixels, after=0), settings(encoder), encoder, tmp_path)


def test_pictures_of_a_video_that_breaks_off_are_let_go_of_at_once(
    pixels: np.ndarray, encoder: Encoder, tmp_path: Path
) -> None:
    # The error lives on in the result, and would hold the frames of calls that it came through.
    *_, last = whole = list(segments(pixels))
    held = weakref.ref(last)

    def source(whole: list[Frames]) -> Iterator[Frames]:
        while whole:
            yield whole.pop(0)
        raise MediaError("broken", stage="decode", kind="decode_failed")

    gc.collect()
    gc.disable()
    try:
        del last
        with index(source(whole), settings(encoder), encoder, tmp_path) as indexed:
            assert indexed.error is not None
            assert held() is None
    finally:
        gc.enable()


def test_damaged_frames_are_said(pixels: np.ndarray, encoder: Encoder, tmp_path: Path) -> None:
    with index(segments(pixels, damaged=3), settings(encoder), encoder, tmp_path) as indexed:
        assert indexed.error is not None and indexed.error.kind == "damaged"
        assert "4.0 to 10.0 s" in str(indexed.error)


def test_segments_out_of_order_are_a_bug_not_a_result(
    pixels: np.ndarray, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="starts at cell 4, expected 0"):
        index(iter(list(segments(pixels))[::-1][1:]), settings(encoder), encoder, tmp_path)


def test_nothing_is_left_in_the_spill_folder(pixels: np.ndarray, encoder: Encoder, tmp_path: Path) -> None:
    index(segments(pixels), settings(encoder), encoder, tmp_path).close()
    with pytest.raises(MediaError):
        index(breaks_off(pixels, after=0), settings(encoder), encoder, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_index_video_reads_a_file(encoder: Encoder, tmp_path: Path) -> None:
    uri = str(write(Clip("clip.mp4", even(100)), tmp_path))
    made = settings(encoder)
    with echoprune.index_video(uri, encoder=encoder, settings=made) as indexed:
        assert (indexed.cells, indexed.decoder, indexed.error) == (4, "decord", None)
        first = indexed.selection.indices.copy()
    with echoprune.index_video(uri, encoder=encoder, settings=made, decoder="pyav") as indexed:
        assert indexed.selection.indices.tolist() == first.tolist() and indexed.decoder == "pyav"
    with pytest.raises(MediaError, match=r"nosuch\.mp4"):
        echoprune.index_video(str(tmp_path / "nosuch.mp4"), encoder=encoder, settings=made)


def test_a_damaged_file_is_never_plainly_ok(encoder: Encoder, tmp_path: Path) -> None:
    whole = write(Clip("whole.mp4", even(200)), tmp_path)
    hurt = damage(whole, tmp_path / "hurt.mp4", at=0.5)
    with echoprune.index_video(str(hurt), encoder=encoder, settings=settings(encoder)) as indexed:
        assert indexed.error is not None and indexed.error.stage == "decode"
        assert indexed.decoder == "pyav"


def test_sampling_is_read_back_from_the_settings(encoder: Encoder) -> None:
    assert sampling_of(settings(encoder, fps="30000/1001")).fps.denominator == 1001
    assert sampling_of(settings(encoder, fps=None, frames=8)).frames == 8


def test_the_radius_bounds_the_tokens_that_are_read_back(
    pixels: np.ndarray, encoder: Encoder, tmp_path: Path
) -> None:
    made = settings(encoder, keep="all", dtype="int8")
    with index(segments(pixels), made, encoder, tmp_path) as indexed:
        rows = rows_of(indexed)
        stored = indexed.columns.pooled[0:10]
        radius = indexed.columns.radius
    tokens = codec("int8").decode(rows["emb"].copy().view(np.uint8).reshape(150, -1), rows["scale"].copy())
    unit = torch.nn.functional.normalize(tokens.double(), dim=1).reshape(10, PLACES, -1)
    distance = (unit - unpool(stored).double()[:, None]).norm(dim=-1).amax(dim=1).numpy()
    assert (distance <= radius).all() and (distance > 0.9 * radius).all()
