"""The result of an evaluation as tables of text: the main one for a terminal and a README, all of them as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from echoprune.evaluation import EVERYTHING, PREFIXES, ResultRow
from echoprune.evaluation_grid import ALL, DENSE, Setting

Cells = list[str]


def main_table(rows: Sequence[ResultRow]) -> list[Cells]:
    """The header and a line for each setting with the most frames, and for the dense run that fits into its budget.

    Accuracies in % with their 95 % interval; the difference is that of all questions to the setting named beside it.
    """
    by = _by_setting(rows)
    groups = _main_groups(rows)
    lines = [["policy", "frames", "budget", "keep", *groups, "difference", "to", "evidence", "tokens"]]
    for setting in _main_settings(list(by)):
        found, whole = by[setting], by[setting][EVERYTHING]
        shares = [_share(found[group]) if group in found else "" for group in groups]
        difference = "" if whole.difference is None else _difference(whole)
        own = (setting.policy, str(setting.frames), setting.budget, setting.keep)
        lines.append([*own, *shares, difference, _against(whole), *_counts(whole)])
    return lines


def short_tables(rows: Sequence[ResultRow], *, reach: bool) -> dict[str, list[Cells]]:
    """The main table cut by budget and keep, which are the key in words, for a terminal.

    With `reach` an accuracy has the farther end of its interval beside it, as 95 ±3, in points.
    """
    by = _by_setting(rows)
    groups = _main_groups(rows)
    tables: dict[str, list[Cells]] = {}
    for setting in _main_settings(list(by)):
        found, whole = by[setting], by[setting][EVERYTHING]
        shares = [_short(found[group], reach=reach) if group in found else "" for group in groups]
        difference = "" if whole.difference is None else f"{100 * whole.difference:+.1f}"
        if (
            whole.difference is not None
            and whole.difference_low is not None
            and whole.difference_high is not None
        ):
            farther = max(whole.difference_high - whole.difference, whole.difference - whole.difference_low)
            difference += f" ±{100 * farther:.1f}"
        header = ["policy", "frames", *groups, "difference", "to", "evidence", "tokens"]
        title = f"budget {setting.budget}, keep {setting.keep}"
        own = (setting.policy, str(setting.frames))
        tables.setdefault(title, [header]).append(
            [*own, *shares, difference, _against(whole), *_counts(whole)]
        )
    return tables


def markdown(rows: Sequence[ResultRow], left_out: Sequence[tuple[Setting, str]]) -> str:
    """The whole result as Markdown: the main table, accuracy over frames, accuracy by group, and what was left out."""
    by = _by_setting(rows)
    n = max(row.n for row in rows)
    parts = [
        f"Accuracy in % on {n} questions, with its 95 % interval (Wilson); `difference` is paired, in points, with its "
        "95 % interval (Newcombe), to the same setting but for what stands in `to`. `evidence`: % of questions about an "
        "event of 10 s at most whose top moment has its middle within 2 s of it. `tokens`: visual tokens of a prompt, mean.\n",
        _table(main_table(rows)),
    ]
    for budget, keep in panels(rows):
        lines = _over_frames(by, budget, keep)
        if len(lines[0]) > 2:
            groups = " / ".join(_main_groups(rows)[:2])
            parts += [f"\nBudget {budget}, keep {keep}: {groups}, by frames.\n", _table(lines)]
    kinds = [name for name in dict.fromkeys(row.group for row in rows) if name not in (*PREFIXES, EVERYTHING)]
    if kinds:
        lines = [["policy", "frames", "budget", "keep", *kinds]]
        for setting in _main_settings(list(by)):
            found = by[setting]
            shares = [f"{100 * found[kind].accuracy:.1f}" if kind in found else "" for kind in kinds]
            lines.append([setting.policy, str(setting.frames), setting.budget, setting.keep, *shares])
        counts = ", ".join(f"{kind} {max(row.n for row in rows if row.group == kind)}" for kind in kinds)
        parts += [f"\nBy kind of question ({counts}).\n", _table(lines)]
    reasons = list(dict.fromkeys(reason for _, reason in left_out))
    if reasons:
        parts += ["\nLeft out: " + "; ".join(reasons) + "."]
    return "\n".join(parts) + "\n"


def panels(rows: Sequence[ResultRow]) -> list[tuple[str, str]]:
    """The pairs of budget and keep under which something was chosen, in order."""
    return list(
        dict.fromkeys((row.budget, row.keep) for row in rows if row.budget != ALL and row.policy != DENSE)
    )


def _by_setting(rows: Sequence[ResultRow]) -> dict[Setting, dict[str, ResultRow]]:
    found: dict[Setting, dict[str, ResultRow]] = {}
    for row in rows:
        found.setdefault(row.setting, {})[row.group] = row
    return found


def _main_groups(rows: Sequence[ResultRow]) -> list[str]:
    there = {row.group for row in rows}
    return [name for name in (*PREFIXES, EVERYTHING) if name in there]


def _main_settings(settings: Sequence[Setting]) -> list[Setting]:
    """Those with the most frames, by keep and budget, after the dense run with the most frames that fits."""
    most = max(each.frames for each in settings)
    chosen: list[Setting] = []
    for keep in dict.fromkeys(each.keep for each in settings):
        for budget in dict.fromkeys(each.budget for each in settings):
            here = [each for each in settings if (each.keep, each.budget) == (keep, budget)]
            dense = sorted((each for each in here if each.policy == DENSE), key=lambda each: each.frames)[-1:]
            chosen += dense + [each for each in here if each.frames == most and each.policy != DENSE]
    return chosen


def _over_frames(by: dict[Setting, dict[str, ResultRow]], budget: str, keep: str) -> list[Cells]:
    here = [each for each in by if (each.budget, each.keep) == (budget, keep)]
    frames = sorted({each.frames for each in here})
    groups = _main_groups([row for found in by.values() for row in found.values()])[:2]
    lines = [["policy", *map(str, frames)]]
    for name in dict.fromkeys(each.policy for each in here):
        cells = [name]
        for count in frames:
            found = by.get(Setting(name, count, budget, keep), {})
            shares = [f"{100 * found[group].accuracy:.1f}" for group in groups if group in found]
            cells.append(" / ".join(shares))
        lines.append(cells)
    return lines


def _share(row: ResultRow) -> str:
    return f"{100 * row.accuracy:.1f} ({100 * row.ci_low:.1f} to {100 * row.ci_high:.1f})"


def _short(row: ResultRow, *, reach: bool) -> str:
    farther = max(row.ci_high - row.accuracy, row.accuracy - row.ci_low)
    return f"{100 * row.accuracy:.1f}" + (f" ±{100 * farther:.1f}" if reach else "")


def _counts(row: ResultRow) -> Cells:
    return [
        "" if row.evidence_within_2s is None else f"{100 * row.evidence_within_2s:.1f}",
        "" if row.visual_tokens is None else f"{row.visual_tokens:,.0f}",
    ]


def _against(row: ResultRow) -> str:
    """What the setting that the row is compared with has other than its own."""
    own = str(row.setting).split(", ")
    return ", ".join(part for part in (row.against or "").split(", ") if part not in own)


def _difference(row: ResultRow) -> str:
    assert row.difference is not None and row.difference_low is not None and row.difference_high is not None
    low, high = 100 * row.difference_low, 100 * row.difference_high
    return f"{100 * row.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def _table(lines: Sequence[Cells]) -> str:
    marks = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], marks, *lines[1:]])
