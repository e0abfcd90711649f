"""The method once more, slowly: plain loops in float64, written from its equations and sharing no code with it."""

from __future__ import annotations

import math

import numpy as np


def unit(vector):
    length = math.sqrt(float(np.dot(vector, vector)))
    return vector / length if length > 0 else np.zeros_like(vector)


def echo(tokens, *, grid_hw, temperature, window=None):
    """Correspondence and echo (T, N) float64 of tokens (T, N, D); row 0 is 0."""
    tokens = np.asarray(tokens, dtype=np.float64)
    cells, places, _ = tokens.shape
    _, width = grid_hw
    correspondence, scores = np.zeros((cells, places)), np.zeros((cells, places))
    for t in range(1, cells):
        for i in range(places):
            neighbours = []
            for j in range(places):
                dh, dw = j // width - i // width, j % width - i % width
                if window is None or max(abs(dh), abs(dw)) <= (window - 1) // 2:
                    neighbours.append(j)
            now = unit(tokens[t, i])
            similarity = [float(np.dot(now, unit(tokens[t - 1, j]))) for j in neighbours]
            top = max(similarity)
            weight = [math.exp((s - top) / temperature) for s in similarity]
            correspondence[t, i] = float(np.dot(now, unit(tokens[t - 1, i])))
            scores[t, i] = sum(p * s for p, s in zip(weight, similarity, strict=True)) / sum(weight)
    return correspondence, scores


def relevance(tokens, query, *, query_mask=None, reduce="max", temperature=0.1):
    """Relevance (n,) float64 of tokens (n, D) to query tokens (M, D)."""
    result = []
    for token in np.asarray(tokens, dtype=np.float64):
        similarity = [
            float(np.dot(unit(token), unit(word)))
            for m, word in enumerate(np.asarray(query, dtype=np.float64))
            if query_mask is None or query_mask[m]
        ]
        if reduce == "max":
            result.append(max(similarity))
        elif reduce == "mean":
            result.append(sum(similarity) / len(similarity))
        else:
            weight = [math.exp(s / temperature) for s in similarity]
            result.append(sum(p * s for p, s in zip(weight, similarity, strict=True)) / sum(weight))
    return np.array(result)


def best(score, candidates, count):
    """The `count` of `candidates` with the highest score; of equal ones the lower index."""
    return sorted(candidates, key=lambda index: (-score[index], index))[: max(count, 0)]


def keep_with_question(correspondence, echo, relevance, *, budget, first="share"):
    """Sorted flat indices by r - c - e with the first cell's quota; one first cell."""
    return keep_by_score(relevance - correspondence - echo, relevance, budget=budget, first=first)


def keep_by_score(score, relevance, *, budget, first):
    """Sorted flat indices by `score` (T, N), in the one first cell by `relevance`, with its quota."""
    cells, places = score.shape
    flat = score.reshape(-1)
    early, later = list(range(places)), list(range(places, cells * places))
    by_relevance = relevance.reshape(-1)
    if cells == 1:
        return sorted(best(by_relevance, early, budget))
    share = max(1, budget // cells)
    quota = min(places, budget, share if first == "share" else max(share, math.ceil(budget / 2)))
    kept = best(flat, later, budget - quota)
    kept += best(by_relevance, early, max(quota, min(places, budget - len(kept))))
    return sorted(kept)


def keep_without_question(correspondence, echo, *, budget, by="novelty"):
    """Sorted flat indices by -c - e or by change, the first cell whole and not counted."""
    cells, places = correspondence.shape
    rank = -correspondence - echo if by == "novelty" else change(correspondence, echo)
    return sorted([*range(places), *best(rank.reshape(-1), range(places, cells * places), budget)])


def change(correspondence, echo, relevance=0.0):
    """(1 - c)(2 - e + r), without relevance what an index ranks by."""
    return np.maximum(1.0 - correspondence, 0.0) * (2.0 - echo + relevance)
