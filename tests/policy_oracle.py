"""The pruning policies once more, slowly: plain loops in float64 and fractions, from the formulas of docs/policies.md."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tests.oracle import best, change, keep_by_score, unit


def middles(count, size):
    """The middle of each of `count` equal parts of 0..size-1."""
    return [math.floor(Fraction(2 * part + 1, 2 * count) * size) for part in range(count)]


def shares(count, parts):
    """`count` in `parts` numbers; the larger ones are the middles."""
    numbers = [count // parts] * parts
    for part in middles(count % parts, parts):
        numbers[part] += 1
    return numbers


def places(count, grid_hw):
    """`count` places of a grid, on rows that lie evenly and evenly within each."""
    height, width = grid_hw
    if count == 0:
        return []
    rows = min(height, round(math.sqrt(count * height / width)), count)
    rows = max(rows, math.ceil(count / width))
    kept = []
    for row, share in zip(middles(rows, height), shares(count, rows), strict=True):
        kept += [row * width + column for column in middles(share, width)]
    return kept


def uniform(cells, grid_hw, *, budget):
    each = grid_hw[0] * grid_hw[1]
    budget = min(budget, cells * each)
    whole, rest = budget // each, budget % each
    chosen = middles(whole + (rest > 0), cells)
    kept = [cell * each + place for cell in chosen[:whole] for place in range(each)]
    if rest:
        kept += [chosen[-1] * each + place for place in places(rest, grid_hw)]
    return sorted(kept)


def anchored(correspondence, echo, relevance, *, budget, first="whole"):
    """By (1 - c)(2 - e + r), the first cell by r."""
    score = change(correspondence, echo, relevance)
    return keep_by_score(score, relevance, budget=budget, first=first)


def evs(correspondence, *, budget):
    cells, each = correspondence.shape
    change = [255.0 if t == 0 else 1.0 - correspondence[t, i] for t in range(cells) for i in range(each)]
    return sorted(best(change, range(len(change)), budget))


def vidcom2(tokens, *, budget):
    tokens = np.asarray(tokens, dtype=np.float64)
    cells, each, dim = tokens.shape
    budget = min(budget, cells * each)
    variance = [float(np.var(tokens[:, :, channel])) for channel in range(dim)]
    channels = sorted(
        sorted(range(dim), key=lambda channel: (variance[channel], channel))[: max(1, dim // 2)]
    )
    vectors = [[unit(tokens[t, i, channels]) for i in range(each)] for t in range(cells)]
    cell_mean = [sum(row) / each for row in vectors]
    video_mean = sum(cell_mean) / cells

    def kernel(one, other):
        distance = float(np.dot(one - other, one - other))
        return sum(math.exp(-distance / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    v = [[kernel(vector, video_mean) for vector in row] for row in vectors]
    total = [v[t][i] + kernel(vectors[t][i], cell_mean[t]) for t in range(cells) for i in range(each)]
    z = [-sum(row) / each for row in v]
    weight = [math.exp((value - max(z)) / 0.01) for value in z]
    p = [value / sum(weight) for value in weight]
    kept = []
    for t in range(cells):
        scale = min(1.0, budget / (cells * each) * (1 + p[t] - sum(p) / cells))
        quota = max(1, round(scale * each))
        kept += best([-value for value in total], range(t * each, (t + 1) * each), quota)
    if len(kept) > budget:
        kept = best([-value for value in total], kept, budget)
    rest = [index for index in range(cells * each) if index not in kept]
    return sorted(kept + best([-value for value in total], rest, budget - len(kept)))


def dycoke(tokens, grid_hw, *, budget):
    tokens = np.asarray(tokens, dtype=np.float64)
    each = tokens.shape[1]
    budget = min(budget, tokens.shape[0] * each)
    return sorted(_dycoke(tokens, list(range(len(tokens))), grid_hw, budget))


def _dycoke(tokens, sequence, grid_hw, budget):
    each = tokens.shape[1]
    heads = [sequence[i] for i in range(0, len(sequence), 4)]
    if budget < len(heads) * each:
        if len(sequence) == 1:
            return [sequence[0] * each + place for place in places(budget, grid_hw)]
        return _dycoke(tokens, heads, grid_hw, budget)
    kept = [head * each + place for head in heads for place in range(each)]
    others = []
    for begin in range(0, len(sequence), 4):
        window = sequence[begin : begin + 4]
        others += [(window[k], window[2] if k == 3 else window[0]) for k in range(1, len(window))]
    if others:
        for (cell, past), share in zip(others, shares(budget - len(kept), len(others)), strict=True):
            cosine = [float(np.dot(unit(tokens[cell, i]), unit(tokens[past, i]))) for i in range(each)]
            kept += [cell * each + place for place in best([-value for value in cosine], range(each), share)]
    return kept


def coverage(tokens, query, *, segment_cells):
    """The rows of A, (M + n, n): words over all tokens, then tokens over those of their segment."""
    tokens = np.asarray(tokens, dtype=np.float64)
    cells, each, dim = tokens.shape
    flat = [unit(vector) for vector in tokens.reshape(-1, dim)]
    rows = []
    for word in [] if query is None else np.asarray(query, dtype=np.float64):
        rows.append(_softmax([float(np.dot(unit(word), vector)) / 0.01 for vector in flat]) / len(query))
    for i in range(cells * each):
        row = np.zeros(cells * each)
        begin = i // each // segment_cells * segment_cells * each
        inside = range(begin, min(begin + segment_cells * each, cells * each))
        row[inside] = _softmax([float(np.dot(flat[i], flat[j])) / 0.2 for j in inside]) / len(flat)
        rows.append(0.5 * row)
    return np.array(rows)


def _softmax(values):
    weight = np.array([math.exp(value - max(values)) for value in values])
    return weight / weight.sum()


def mmtok(tokens, query, *, budget, segment_cells):
    rows = coverage(tokens, query, segment_cells=segment_cells)
    covered, kept = np.zeros(len(rows)), []
    for _ in range(min(budget, rows.shape[1])):
        gain = [
            -1.0 if j in kept else float(np.maximum(0, rows[:, j] - covered).sum())
            for j in range(rows.shape[1])
        ]
        j = max(range(len(gain)), key=lambda index: (gain[index], -index))
        kept.append(j)
        covered = np.maximum(covered, rows[:, j])
    return sorted(kept)
