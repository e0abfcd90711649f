"""How a trained checkpoint answers about unseen scenes, by kind of question: straight from pictures, without video files.

    python -m benchmarks.reference check DIR

Tokens, echo scores, relevance, policies, prompts and texts are made by the product's own code, from pictures with
colours at half the resolution, as video files hold them. What a codec does besides is left out, and so is the store:
tokens are those of a lossless one. `echoprune eval` measures the rest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reference.learner import as_stored
from benchmarks.reference.pictures import draw, plan_pictures
from echoprune.choose import Budget, choose
from echoprune.data import EchoScores, Frames, TokenGrid, TokenSet
from echoprune.echo import echo_scores
from echoprune.letters import is_correct, parse_choice
from echoprune.models import Encoder, load_answerer, load_encoder
from echoprune.models.answerer import Answerer, Decoding
from echoprune.models.encoder import SquareLayout
from echoprune.models.prompt import Prompt
from echoprune.policies import Candidates, policy
from echoprune.query import relevance
from echoprune.question import Question
from echoprune.resize import resize_frames
from echoprune.scene import Scene, plan_scene
from echoprune.scene_questions import KINDS, scene_questions
from echoprune.stored import Stored
from echoprune.templates import template_for
from echoprune.view import View, view_of

POLICIES = ("anchored", "echoprune", "evs", "uniform", "random")
SECONDS = 160.0
# All tokens are asked about in one clip of so many: ten thousand a prompt take as long as twenty pruned ones.
_DENSE_EVERY = 4
# Of the time there is, the share after which the dense questions that have been collected are answered.
_PRUNED_SHARE = 0.7
_NEW_TOKENS = 64
# Tokens of a batch, each as long as its longest.
_BATCH_TOKENS = 1 << 17
_CLIPS_TOGETHER = 20
# Far from the seeds of training, which are lists of two numbers.
_SEEDS = 0x5EED

Counts = dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class _Asked:
    """One question under one setting."""

    setting: str
    question: Question
    prompt: Prompt = field(repr=False)


@dataclass(frozen=True)
class _Video:
    """The tokens of one scene at some frames, scored, on the answerer's device."""

    grid: TokenGrid
    scores: EchoScores
    step_s: float
    cell_frames: int

    def view(self, question: Question) -> View:
        cells, h, w, _ = self.grid.tokens.shape
        starts = np.arange(cells) * self.step_s
        view = view_of(
            starts,
            starts + self.step_s,
            grid_hw=(h, w),
            cell_frames=self.cell_frames,
            start_s=question.start_s,
            end_s=question.end_s,
        )
        if view is None:
            raise ValueError(f"no cell begins between {question.start_s} and {question.end_s} s")
        return view


def check(
    folder: Path,
    *,
    device: str = "auto",
    clips: int = 300,
    seed: int = 0,
    frames: int = 320,
    few: int = 16,
    policies: Sequence[str] = POLICIES,
    budget: str = "512",
    limit_s: float | None = None,
) -> dict[str, Any]:
    """Accuracy by setting and kind over one question of each kind about each of `clips` scenes of 160 s, as JSON.

    Settings: `frames` frames pruned to `budget` by each of `policies`, the same frames "dense" (a quarter of the scenes),
    and `few` frames whole. `limit_s`: seconds after which it stops with fewer scenes.
    """
    began = time.monotonic()

    def over(share: float) -> bool:
        return limit_s is not None and time.monotonic() - began > share * limit_s

    encoder = load_encoder(str(folder), segment_cells=32, device=device)
    answerer = load_answerer(str(folder), device=device)
    counts: Counts = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    waiting: list[_Asked] = []
    dense: list[_Asked] = []
    done = 0
    while done < clips and not over(_PRUNED_SHARE):
        scene = plan_scene(np.random.default_rng([_SEEDS, seed, done]), seconds=SECONDS, size=(224, 224))
        questions = one_of_each(scene, np.random.default_rng([_SEEDS, seed, done, 1]))
        many, whole = (_encoded(scene, encoder, count, seed=done) for count in (frames, few))
        for question in questions:
            waiting.append(_Asked(f"{few} frames whole", question, _whole(question, whole, answerer)))
            waiting += _pruned(question, many, answerer, policies=policies, budget=budget, seed=done)
            if done % _DENSE_EVERY == 0:
                dense.append(_Asked("dense", question, _whole(question, many, answerer)))
        done += 1
        if done % _CLIPS_TOGETHER == 0:
            _answer(waiting, answerer, counts)
            waiting = []
    _answer(waiting, answerer, counts)
    for batch in _batches(dense):
        if over(1.0):
            break
        _answer(batch, answerer, counts)
    return {
        "folder": folder.name,
        "seed": seed,
        "clips": done,
        "frames": frames,
        "budget": budget,
        "seconds": round(time.monotonic() - began, 1),
        "settings": {name: _shares(counts[name]) for name in ("dense", f"{few} frames whole", *policies)},
    }


def one_of_each(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of each kind that `scene` answers, drawn from `rng`."""
    by_kind = scene_questions(scene, rng, video="")
    return [found[int(rng.integers(len(found)))] for found in by_kind.values() if found]


def table(report: dict[str, Any]) -> str:
    """The accuracies of a report in per cent, kinds down, settings across, with the number of questions."""
    settings = report["settings"]
    lines = [f"{'':18}" + "".join(f"{name:>17}" for name in settings)]
    for kind in ("event", "static", "all", *KINDS):
        cells = []
        for found in settings.values():
            right, n = found.get(kind, (0, 0))
            cells.append(f"{100 * right / n:6.1f} of {n:<6}" if n else "-")
        lines.append(f"{kind:18}" + "".join(f"{cell:>17}" for cell in cells))
    lines.append(f"{report['clips']} clips, {report['seconds']} s")
    return "\n".join(lines)


def _encoded(scene: Scene, encoder: Encoder, count: int, *, seed: int) -> _Video:
    """The scene's tokens at `count` instants, spread evenly, and their scores."""
    step_s = SECONDS / count
    pictures = as_stored(draw(plan_pictures([scene], [np.arange(count) * step_s], seed=seed), encoder.device))
    height, width = encoder.layout.frame_hw(*pictures.shape[1:3])
    # LLaVA-OneVision has one size for all; the others see these pictures as they are.
    if not isinstance(encoder.layout, SquareLayout) and (height, width) != tuple(pictures.shape[1:3]):
        raise ValueError(f"{tuple(pictures.shape[1:3])} pictures would be resized to {(height, width)}")
    pixels = resize_frames(pictures.cpu().numpy(), (height, width), resample=encoder.layout.resample)
    cell_frames = encoder.layout.cell_frames
    grid = encoder.encode(Frames(pixels, 0, cell_frames, "drawn"))
    scores = echo_scores(
        grid.flat,
        grid_hw=(grid.tokens.shape[1], grid.tokens.shape[2]),
        temperature=encoder.default_temperature,
        window=encoder.default_window,
    )
    return _Video(grid, scores, step_s * cell_frames, cell_frames)


def _whole(question: Question, video: _Video, answerer: Answerer) -> Prompt:
    view = video.view(question)
    return _prompt(question, video, view, torch.arange(view.tokens), answerer)


def _pruned(
    question: Question, video: _Video, answerer: Answerer, *, policies: Sequence[str], budget: str, seed: int
) -> list[_Asked]:
    """The question with the tokens that each policy keeps of `video`."""
    view = video.view(question)
    part = slice(view.first_cell, view.stop_cell)
    vectors = video.grid.flat[part]
    query = answerer.embed(question.question.strip()).to(vectors.device)
    stored = Stored(
        t=torch.arange(view.grid_thw[0]).repeat_interleave(view.tokens_per_cell),
        correspondence=video.scores.correspondence[part].flatten().cpu(),
        echo=video.scores.echo[part].flatten().cpu(),
        cells=view.grid_thw[0],
        tokens_per_cell=view.tokens_per_cell,
        highest_dropped=None,
    )
    related = relevance(vectors.flatten(0, 1), query).cpu()
    asked = []
    for name in policies:
        chooser = policy(name)
        given = Candidates(
            stored=stored,
            budget=Budget.parse(budget).count(view.tokens),
            relevance=related,
            first=chooser.first or "share",
            grid_hw=view.grid_thw[1:],
            seed=seed,
            vectors=vectors if chooser.needs_vectors else None,
            query=query,
        )
        kept = choose(given, chooser).indices
        asked.append(_Asked(name, question, _prompt(question, video, view, kept, answerer)))
    return asked


def _prompt(question: Question, video: _Video, view: View, index: torch.Tensor, answerer: Answerer) -> Prompt:
    text = template_for(question, "auto").render(question)
    _, h, w = view.grid_thw
    part = slice(view.first_cell, view.stop_cell)
    vectors, deepstack = video.grid.tokens[part].flatten(0, 2), video.grid.deepstack
    where = index.to(vectors.device)
    t = index // (h * w)
    kept = TokenSet(
        tokens=vectors[where],
        positions=torch.stack([t, index // w % h, index % w], dim=1),
        times_s=torch.from_numpy(view.times_s)[t],
        correspondence=torch.zeros(len(index)),
        echo=torch.zeros(len(index)),
        anchor=torch.zeros(len(index), dtype=torch.bool),
        grid_thw=view.grid_thw,
        deepstack=None if deepstack is None else deepstack[:, part].flatten(1, 3)[:, where],
    )
    return answerer.place(answerer.skeleton(text, view), kept, view)


def _batches(asked: Iterable[_Asked]) -> Iterable[list[_Asked]]:
    """Captions apart, which are long, and prompts of one length together, which need no mask."""
    batch: list[_Asked] = []
    ordered = sorted(asked, key=lambda each: (each.question.kind == "event_caption", len(each.prompt)))
    for each in ordered:
        caption = each.question.kind == "event_caption"
        if batch and (
            (len(batch) + 1) * (len(each.prompt) + _NEW_TOKENS) > _BATCH_TOKENS
            or caption != (batch[0].question.kind == "event_caption")
        ):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _answer(asked: list[_Asked], answerer: Answerer, counts: Counts) -> None:
    for batch in _batches(asked):
        decoding = Decoding(max_new_tokens=_NEW_TOKENS)
        texts = answerer.generate([each.prompt for each in batch], decoding)
        for each, text in zip(batch, texts, strict=True):
            question = each.question
            chosen = parse_choice(text.text, question.options) if question.options else None
            found = counts[each.setting][question.kind or ""]
            found[0] += bool(is_correct(question, chosen, text.text))
            found[1] += 1


def _shares(counts: dict[str, list[int]]) -> dict[str, list[int]]:
    """(right, asked) by kind, and of "event", "static" and "all" together."""
    found = {kind: list(pair) for kind, pair in counts.items()}
    for group in ("event", "static", "all"):
        pairs = [pair for kind, pair in counts.items() if group == "all" or kind.startswith(group)]
        found[group] = [sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)]
    return found
