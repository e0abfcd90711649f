"""`echoprune answer`: questions about stored videos in, answers out. `python -m jobs.answer` is the same command."""

from __future__ import annotations

from typing import Any

import click

from jobs.exits import finished, run_module
from jobs.options import options_of
from jobs.progress import duration, progress_on_stderr, short, shown, size
from pipelines.answer_config import AnswerConfig

SHOWN_FAILURES = 5
SHOWN_TEXT = 300
# Of an id, a file name and a range in front of an answer, each.
SHOWN_NAME = 60


@click.command()
@click.argument("store")
@options_of(AnswerConfig)
@click.option(
    "--by", multiple=True, metavar="COLUMN", help="Accuracy by this column, again for several. Default: kind."
)
@click.option("--limit", type=click.IntRange(0), default=0, help="Print this many answers at the end.")
def answer(limit: int, **options: Any) -> int:
    """Answer questions about the videos of STORE; no video is opened.

    Answers go to --out as Parquet, one row a question, with the moments that they rest on. Running the same command
    again does what is missing, questions that were appended to the file included.

    Exit code: 0 every question has its answer, 3 some failed (their rows say why), 2 wrong usage, 1 the run broke.
    """
    config = AnswerConfig(**options)
    from pipelines.answer import run_answer

    with progress_on_stderr("questions", words=rates) as progress:
        report = run_answer(config, on_progress=progress)
    return finish(report, limit=limit)


def finish(report: dict[str, Any], *, limit: int, noun: str = "questions") -> int:
    """Prints the summary, and `limit` answers; returns the exit code."""
    for line in [*summary(report, noun=noun), *examples(report["config"]["out"], limit)]:
        click.echo(line)
    return finished(report["answers"]["failed"], failed_ok=report["config"]["failed_ok"])


def summary(report: dict[str, Any], *, noun: str) -> list[str]:
    """The lines printed at the end of a run."""
    run, answers = report["run"], report["answers"]
    lines = []
    if run["questions"]["of"]:
        lines.append(
            f"{run['questions']['done']} {noun} in {duration(run['elapsed_s'])} ({run['questions_per_s']:.1f}/s); "
            f"{short(run['visual_tokens'])} visual tokens seen, {short(run['new_tokens'])} tokens of text, "
            f"{size(run['answer_bytes'])} written"
        )
    else:
        lines.append(f"nothing to do: all of these {noun} are in the answers")
    counts = ", ".join(f"{answers[name]} {name}" for name in ("ok", "empty", "failed"))
    lines.append(f"answers {shown(report['config']['out'])}: {counts}")
    if report["errors"]:
        classes = ", ".join(f"{name} {count}" for name, count in report["errors"].items())
        lines.append(f"  failed by class: {shown(classes)}")
    for question_id, kind, message in run["failures"][:SHOWN_FAILURES]:
        lines.append(shown(f"  {question_id} failed ({kind}): {message}"))
    failed_now = len(run["failures"]) + run["failures_left_out"]
    if failed_now > SHOWN_FAILURES:
        lines.append(f"  and {failed_now - SHOWN_FAILURES} more")
    if (before := answers["failed"] - failed_now) > 0:
        lines.append(f"  {before} failed in earlier runs: --retry-failed answers them again")
    return lines + [_accuracy(row) for row in report["accuracy"]]


def examples(out: str, limit: int) -> list[str]:
    """The first `limit` answers as text, by question id."""
    if not limit:
        return []
    from echoprune.answer_store import open_answers

    columns = [
        "question_id",
        "uri",
        "video",
        "start_s",
        "end_s",
        "question",
        "status",
        "error_class",
        "raw_text",
        "parsed_choice",
        "evidence",
    ]
    lines = []
    for row in open_answers(out).table(columns).slice(0, limit).to_pylist():
        about = " ".join(map(_cut, (row["question_id"], (row["uri"] or row["video"]).rsplit("/", 1)[-1])))
        if row["start_s"] is not None or row["end_s"] is not None:
            end = "end" if row["end_s"] is None else f"{_seconds(row['end_s'])} s"
            about += f" {_seconds(row['start_s'] or 0.0)}-{end}"
        lines.append(shown(f"{about}: {_cut(row['question'], SHOWN_TEXT)}" if row["question"] else about))
        if row["status"] != "ok":
            lines.append(shown(f"  {row['status']} {row['error_class'] or ''}".rstrip()))
            continue
        choice = f"[{row['parsed_choice']}] " if row["parsed_choice"] else ""
        lines.append("  " + shown(choice + row["raw_text"][:SHOWN_TEXT]))
        moments = [
            f"{each['start_s']:.1f}-{each['end_s']:.1f} s ({each['score']:.0%})" for each in row["evidence"]
        ]
        if moments:
            lines.append(f"  evidence: {', '.join(moments)}")
    return lines


def _cut(text: str, most: int = SHOWN_NAME) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _seconds(seconds: float) -> str:
    """Seconds to a tenth; a number that is no time of a video, such as 1e300, in few digits all the same."""
    return f"{seconds:.1f}" if seconds < 1e9 else f"{seconds:.3g}"


def rates(snapshot: dict[str, Any]) -> str:
    """The words beside the bar: speed, tokens, failures, time left."""
    if not snapshot["questions_per_s"]:
        return "starting Ray and loading the model"
    parts = [f"{snapshot['questions_per_s']:.1f}/s", f"{short(snapshot['visual_tokens'])} visual tokens"]
    if snapshot["failed"]:
        parts.append(f"{snapshot['failed']} failed")
    if snapshot["eta_s"] is not None:
        parts.append(f"{duration(snapshot['eta_s'])} left")
    return " · ".join(parts)


def _accuracy(row: dict[str, Any]) -> str:
    numbers = ("overall", "n", "answered", "failed", "correct", "accuracy", "low", "high")
    values = {name: value for name, value in row.items() if name not in numbers}
    groups = [f"{name} {value}" for name, value in values.items() if value is not None]
    groups += [f"without {name}" for name, value in values.items() if value is None]
    of = "" if all(value is None for value in values.values()) else "of "
    what = "of all" if row["overall"] else of + ", ".join(groups)
    share = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})" if row["n"] else "none to score"
    return shown(f"  accuracy {what}: {share}, {row['correct']} of {row['n']}")


if __name__ == "__main__":
    run_module(answer, "jobs.answer")
