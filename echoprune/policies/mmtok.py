"""Policy `mmtok`, after MMTok (arXiv 2508.18264): tokens that together cover the question and the video.

    P[m,j] = softmax over all tokens j of (q^[m] . x^[j] / 0.01) / M              the words of the question
    Q[i,j] = softmax over the tokens j of i's segment of (x^[i] . x^[j] / 0.2) / n    the video
    K times: the token j that adds most to  sum over m of max P[m, kept]  +  0.5 x sum over i of max Q[i, kept]

The official method is for one image. Its Q is n x n, 7 GB for 160 cells of 256 tokens: here a token covers others of its
own segment alone, whole cells of at most 1,024 tokens together, while the budget is one for the whole view. Its Q compares
features from before the projector, which a store does not hold: here the stored vectors themselves. Without a
question the video alone is covered.
"""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates, units
from echoprune.precision import full_float32

SEGMENT_TOKENS = 1024
# 1 GiB of Q: beyond 262,144 tokens segments are shorter, down to one cell.
SIMILARITIES = 1 << 28
WORD_TEMPERATURE = 0.01
VIDEO_TEMPERATURE = 0.2
VIDEO_WEIGHT = 0.5


@torch.no_grad()
def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending. Ties: the lower index wins. Raises ModelError if not finite."""
    vectors = candidates.require_vectors()
    cells, places, _ = vectors.shape
    limit = min(SEGMENT_TOKENS, SIMILARITIES // (cells * places))
    step = max(1, limit // places)
    with full_float32():
        words, covers = _coverage(vectors, candidates.query, cells_each=step)
    return _greedy(words, covers, count=candidates.count)


def _coverage(
    vectors: torch.Tensor, query: torch.Tensor | None, *, cells_each: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """P (M, n), M = 0 without a question, and the weighted Q of each segment (n_s, n_s), rows what is covered."""
    total = vectors.shape[0] * vectors.shape[1]
    directions = vectors.new_zeros((0, vectors.shape[2]), dtype=torch.float32)
    if query is not None:
        directions = units(query.to(vectors.device))
    similar, covers = [], []
    for begin in range(0, len(vectors), cells_each):
        unit = units(vectors[begin : begin + cells_each].flatten(0, 1))
        similar.append(directions @ unit.T)
        covers.append(torch.softmax(unit @ unit.T / VIDEO_TEMPERATURE, dim=1) * (VIDEO_WEIGHT / total))
    words = torch.softmax(torch.cat(similar, dim=1) / WORD_TEMPERATURE, dim=1) / max(1, len(directions))
    return words, covers


def _greedy(words: torch.Tensor, covers: list[torch.Tensor], *, count: int) -> torch.Tensor:
    """Indices of `count` columns, each the one that adds most to the sum of row maxima over those before it."""
    device = words.device
    ends = torch.tensor([len(cover) for cover in covers]).cumsum(0).tolist()
    begins = [0, *ends[:-1]]
    segment_of = (
        torch.arange(len(covers)).repeat_interleave(torch.tensor([len(cover) for cover in covers])).tolist()
    )
    best_words = torch.zeros(len(words), dtype=torch.float32, device=device)
    best = [torch.zeros(len(cover), dtype=torch.float32, device=device) for cover in covers]
    from_words = words.sum(dim=0)
    from_video = torch.cat([cover.sum(dim=0) for cover in covers])
    taken = torch.zeros(ends[-1], dtype=torch.float32, device=device)
    kept = []
    for _ in range(count):
        # What is taken adds nothing; below 0, it is behind all others that add nothing. argmax: the first of equal ones.
        index = int((from_words + from_video + taken).argmax())
        kept.append(index)
        taken[index] = -torch.inf
        at = segment_of[index]
        cover, column = covers[at], index - begins[at]
        best[at] = torch.maximum(best[at], cover[:, column])
        from_video[begins[at] : ends[at]] = (cover - best[at][:, None]).clamp_(min=0).sum(dim=0)
        if bool((words[:, index] > best_words).any()):
            best_words = torch.maximum(best_words, words[:, index])
            from_words = (words - best_words[:, None]).clamp_(min=0).sum(dim=0)
    return torch.tensor(kept, dtype=torch.int64).sort().values
