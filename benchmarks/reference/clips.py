"""Batches for training: short clips of rendered scenes with their questions as token ids, and what each token shows.

A clip is a few whole cells at random times of a scene of 160 s, at their places in time: no token of a cell is left
out. Batch n is the same whatever process makes it; its frames are drawn where it is learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.reference.asked import Asked, Prompts
from benchmarks.reference.pictures import Pictures, plan_pictures
from benchmarks.reference.recipe import Recipe
from benchmarks.reference.truth import IGNORED, token_truth
from echoprune.scene import TASKS, Scene, SynthObject, plan_scene
from echoprune.scene_questions import scene_questions
from echoprune.view import view_of

# Of eight batches one has frames far apart, as an index of 16 frames has them, and one a quarter of the clips with four
# times the cells: what happens is then as small a part of all tokens as in between.
_SPARSE, _LONG = 1 / 8, 1 / 8
_SPARSE_CELLS = 8
_LONG_TIMES = 4
# Of four other clips one shows a window of so many seconds, in which often nothing happens: captions are asked of such.
_WINDOWED = 1 / 4
_WINDOW_S = (20, 60)
_QUIET = 0.4
_TILE = 64
# Questions of one kind about one clip: of four things that pop up not all are asked where they are.
_OF_A_KIND = 3
# Of a window they would ask about less than the words say.
_OF_THE_WHOLE = ("event_time", "event_count")


@dataclass(frozen=True)
class Batch:
    """B clips of T cells.

    `pictures`: their frames (B F), clip by clip. `ids` (B, L), `positions` (axes, B, L), `block` (B, L): 0 what all
    questions of a clip see, 1 on its questions, -1 padding; `labels` (B, L): the next id where that is part of an
    answer, else IGNORED. `asked` (M,): where those are in labels made flat. `truth` (B, 5, T, N): what each token shows,
    by TRUTHS. All int64. `weights` (M,) float32: what the loss of each id of an answer counts for, 1 / sqrt(ids of that
    answer). `kinds`: of each question, clip by clip.
    """

    pictures: Pictures = field(repr=False)
    ids: torch.Tensor = field(repr=False)
    positions: torch.Tensor = field(repr=False)
    block: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    asked: torch.Tensor = field(repr=False)
    weights: torch.Tensor = field(repr=False)
    truth: torch.Tensor = field(repr=False)
    kinds: list[list[str]] = field(repr=False)

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads from directly, called by the loader: other copies wait for the GPU."""
        pinned: Batch = _pinned(self)
        return pinned


def _pinned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, tuple):
        return tuple(_pinned(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _pinned(getattr(value, each.name)) for each in fields(value)})
    return value


class Clips(torch.utils.data.Dataset[Batch]):
    """Batch n of a recipe, without end; `folder`: the checkpoint whose tokenizer and prompts are used."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self._prompts: Any = None

    def __getitem__(self, step: int) -> Batch:
        if self._prompts is None:
            # In the process that uses it: a tokenizer that has run warns when its process is forked.
            self._prompts = Prompts(self.folder)
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step])
        size = recipe.sizes[int(rng.integers(len(recipe.sizes)))]
        form = float(rng.random())
        sparse, long = form < _SPARSE, _SPARSE <= form < _SPARSE + _LONG
        cells = _SPARSE_CELLS if sparse else int(rng.integers(recipe.cells[0], recipe.cells[1] + 1))
        count = recipe.batch
        if long:
            cells, count = cells * _LONG_TIMES, max(1, count // _LONG_TIMES)
        clips = [self._clip(rng, size, cells, sparse=sparse, long=long) for _ in range(count)]
        # In whole tiles: products of rows that are none fall back to kernels of half the speed.
        longest = -(-max(len(clip.asked.ids) for clip in clips) // _TILE) * _TILE

        def padded(name: str, value: int) -> torch.Tensor:
            rows = [getattr(clip.asked, name) for clip in clips]
            return torch.stack(
                [torch.nn.functional.pad(row, (0, longest - row.shape[-1]), value=value) for row in rows],
                dim=-2,
            )

        labels = padded("labels", IGNORED)
        return Batch(
            pictures=plan_pictures(
                [clip.scene for clip in clips],
                [clip.times_s for clip in clips],
                seed=int(rng.integers(2**31)),
            ),
            ids=padded("ids", self._prompts.pad),
            positions=padded("positions", 0),
            block=padded("block", -1),
            labels=labels,
            asked=(labels.flatten() != IGNORED).nonzero()[:, 0],
            weights=torch.cat([answer_weights(clip.asked) for clip in clips]),
            truth=torch.from_numpy(np.stack([clip.truth for clip in clips])),
            kinds=[clip.asked.kinds for clip in clips],
        )

    def _clip(
        self, rng: np.random.Generator, size: tuple[int, int], cells: int, *, sparse: bool, long: bool
    ) -> _Clip:
        recipe, prompts = self.recipe, self._prompts
        task = "fade" if rng.random() < 0.1 else str(rng.choice([task for task in TASKS if task != "fade"]))
        scene = plan_scene(rng, seconds=recipe.seconds, size=size, task=task)
        of_cells = _SPARSE_CELLS if sparse else recipe.of_cells
        step_s = recipe.seconds / of_cells
        frame_step_s = step_s / prompts.cell_frames
        window = None
        if not sparse and not long and rng.random() < _WINDOWED:
            window = choose_window(rng, scene)
        within = scene if window is None else cropped(scene, *window)
        starts = np.arange(of_cells) * step_s
        grid_hw = prompts.grid_hw(size)
        view = view_of(
            starts,
            starts + step_s,
            grid_hw=grid_hw,
            cell_frames=prompts.cell_frames,
            frame_step_s=frame_step_s,
            start_s=None if window is None else window[0],
            end_s=None if window is None else window[1],
        )
        assert view is not None
        chosen = np.arange(of_cells) if sparse else choose_cells(rng, within, cells, starts=view.times_s)
        times_s = (view.times_s[chosen, None] + np.arange(prompts.cell_frames) * frame_step_s).reshape(-1)
        seen = {id(item): sum(item.opacity(t) > 0.9 for t in times_s.tolist()) for item in scene.objects}

        def shown(item: SynthObject) -> bool:
            return seen[id(item)] >= (2 if item.role == "passing" else 1)

        by_kind = scene_questions(within, rng, video="", shown=shown, window_s=None)
        left_out = () if window is None else _OF_THE_WHOLE
        if prompts.timeless:
            left_out = (*left_out, "event_time")
        drawn = [
            questions[index]
            for kind, questions in by_kind.items()
            if kind not in left_out
            for index in rng.permutation(len(questions))[:_OF_A_KIND]
        ]
        asked = [drawn[index] for index in rng.permutation(len(drawn))[: recipe.questions]]
        truth = token_truth(scene, times_s, grid_hw=grid_hw, cell_frames=prompts.cell_frames)
        return _Clip(scene, times_s, prompts.clip(view, chosen, asked), truth)


@dataclass(frozen=True)
class _Clip:
    scene: Scene
    times_s: npt.NDArray[np.float64]
    asked: Asked
    truth: npt.NDArray[np.int64]


def answer_weights(asked: Asked) -> torch.Tensor:
    """(M,) float32, for each id that is part of an answer 1 / sqrt(ids of that answer).

    The mean over all ids is one over captions: each has some fifty ids, so that a third of the loss is theirs, and answers
    of a word and its end have a thirtieth of that each.
    """
    block = asked.block[asked.labels != IGNORED]
    return torch.bincount(block)[block].float().rsqrt()


def choose_window(rng: np.random.Generator, scene: Scene) -> tuple[float, float] | None:
    """(start, end) s of a window that cuts no event, with a second to spare; None if none was found in a few tries.

    Four in ten are to be ones in which nothing happens, as about half of those are that captions are asked of.
    """
    events = scene.of_role("popup", "passing")
    quiet = rng.random() < _QUIET
    for _ in range(16):
        length = int(rng.integers(_WINDOW_S[0], _WINDOW_S[1] + 1))
        start = int(rng.integers(0, int(scene.duration_s) - length + 1))
        stop = start + length
        whole = all(item.end_s + 1 <= at or item.start_s - 1 >= at for item in events for at in (start, stop))
        if whole and not (quiet and any(item.start_s < stop and item.end_s > start for item in events)):
            return float(start), float(stop)
    return None


def cropped(scene: Scene, start_s: float, end_s: float) -> Scene:
    """`scene` without the things that are in sight at no time of [start_s, end_s) alone."""
    kept = tuple(item for item in scene.objects if item.start_s < end_s and item.end_s > start_s)
    return replace(scene, objects=kept)


def choose_cells(
    rng: np.random.Generator, scene: Scene, count: int, *, starts: Sequence[float] | npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """`count` of the cells that begin at `starts`, or all, ascending: some of each thing that stands or happens, others anywhere."""
    chosen: set[int] = set()
    step_s = float(starts[1] - starts[0])
    for item in scene.objects:
        if item.role == "plate":
            continue
        clear = [
            cell
            for cell, start in enumerate(starts)
            if item.opacity(float(start)) > 0.9 and item.opacity(float(start) + step_s / 2) > 0.9
        ]
        if not clear:
            continue
        if item.role == "still":
            chosen.add(int(rng.choice(clear)))
        else:
            fewest = 2 if item.role == "passing" else 1
            number = int(rng.integers(fewest, max(fewest + 1, min(4, len(clear)) + 1)))
            first = int(rng.integers(0, max(1, len(clear) - number + 1)))
            chosen.update(clear[first : first + number])
    rest = [cell for cell in rng.permutation(len(starts)).tolist() if cell not in chosen]
    chosen.update(rest[: max(0, count - len(chosen))])
    kept = sorted(chosen)
    while len(kept) > count:
        kept.pop(int(rng.integers(len(kept))))
    return np.asarray(kept)
