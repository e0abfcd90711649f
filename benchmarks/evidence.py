"""Ways to weigh the evidence of kept tokens: how often the heaviest moment is within 2 s of the event asked about.

    python -m benchmarks.evidence STORE QUESTIONS --model reference --budget 0.05

STORE holds all tokens of the videos of QUESTIONS, as `echoprune synth` writes them, made with the same model.
"""

from __future__ import annotations

import argparse

import torch

import echoprune
from echoprune.answer_settings import AnswerSettings
from echoprune.change import change
from echoprune.evaluation import event_found
from echoprune.evidence import cell_mass, moments
from echoprune.prepare import Scored, choose_for, open_video, score
from echoprune.questions import read_questions


def weights(scored: Scored, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """(K,) mass of each kept token, by the name of the way."""
    stored, r = scored.stored, scored.related
    assert r is not None
    known = (stored.t > 0) | (scored.view.first_cell > 0)
    new = torch.where(known, -stored.correspondence - stored.echo, -2.0)
    standard = (r - r.mean()) / r.std() + (new - new.mean()) / new.std()
    changed = torch.where(known, change(stored.correspondence, stored.echo), 0.0)[index]
    above, fresh = (r - r.mean())[index].clamp(min=0), new[index] - new[index].min()
    return {
        "r - c - e above the lowest kept": (r + new)[index] - (r + new)[index].min(),
        "relevance above the mean": above,
        "both standardised, added, squared": standard[index].clamp(min=0) ** 2,
        "relevance above the mean times novelty above the lowest kept": above * fresh,
        "relevance above the mean times change above the lowest kept": above * (changed - changed.min()),
        "its square times change above the lowest kept": above**2 * (changed - changed.min()),
    }


def main() -> None:
    """Prints the share of hits of each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store")
    parser.add_argument("questions")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--budget", default="0.05")
    options = parser.parse_args()
    store = echoprune.open_store(options.store)
    answerer = echoprune.load_answerer(options.model, compute_dtype="fp32")
    settings = AnswerSettings(budget=options.budget)
    hits: dict[str, list[bool]] = {}
    video = None
    for question in read_questions(options.questions).questions:
        start_s, end_s = (question.extra.get(name) for name in ("event_start_s", "event_end_s"))
        if not isinstance(start_s, float) or not isinstance(end_s, float):
            continue
        if event_found(None, (start_s, end_s)) is None:
            continue
        video = open_video(question, store, video)
        scored = score(question, video=video, answerer=answerer, settings=settings)
        kept = choose_for(scored, scored.stored, scored.related, None, answerer=answerer, settings=settings)
        t = scored.stored.t[kept.indices].numpy()
        for name, mass in weights(scored, kept.indices).items():
            # Mass is what change has above the lowest: without a question it is taken as it is.
            first = moments(cell_mass(t, mass.numpy(), None, cells=scored.view.grid_thw[0]), scored.view)[0]
            hit = event_found((first.start_s, first.end_s), (start_s, end_s))
            assert hit is not None
            hits.setdefault(name, []).append(hit)
    for name, found in hits.items():
        print(f"{sum(found) / len(found):6.1%} of {len(found)}  {name}")


if __name__ == "__main__":
    main()
