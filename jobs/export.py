"""`echoprune export`: answers as sample logs, stores as float vectors. What is written is decided in echoprune/export.py."""

from __future__ import annotations

import click

from echoprune.errors import ConfigError
from jobs.options import s3_options
from jobs.progress import shown
from jobs.spinner import busy
from pipelines.job_config import require_store_place

OF_ANSWERS = ("jsonl",)
OF_STORES = ("parquet", "npz", "lance")


@click.command()
@click.argument("source", metavar="STORE_OR_ANSWERS")
@click.option("--out", required=True, metavar="PATH", help="File (jsonl) or folder to write; must not exist.")
@click.option(
    "--format",
    "form",
    type=click.Choice([*OF_ANSWERS, *OF_STORES]),
    help="jsonl of answers and captions; parquet, npz or lance of a store. Default: jsonl, of a store parquet.",
)
@s3_options
def export(source: str, out: str, form: str | None) -> None:
    """Write answers or tokens in forms that other tools read.

    \b
    answers or captions -> jsonl     one sample a line, in the shape of lmms-eval's sample logs
    store               -> parquet   tokens, cells and videos, vectors as lists of float32
                           lance     the same as Lance datasets (pip install 'echoprune[lance]')
                           npz       one file a video, for numpy

    PATH appears when it is whole. Exit code: 0 written, 2 wrong usage, 1 it broke.
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    require_store_place(source, name="STORE_OR_ANSWERS")
    require_local_path(out)
    with busy() as tell:
        tell("reading")
        from echoprune.answer_store import MARKER, open_answers
        from echoprune.schema import SETTINGS_FILE
        from echoprune.storage import Storage

        storage = Storage(source)
        if storage.exists(SETTINGS_FILE):
            chosen = _format(form, OF_STORES, what=f"{source} is a store")
            line = _tokens(source, out, form=chosen)
        elif storage.exists(MARKER):
            _format(form, OF_ANSWERS, what=f"{source} holds answers")
            from echoprune.export import export_answers

            count = export_answers(open_answers(source), out)
            line = f"{count:,} answers written to {out}"
        else:
            raise ConfigError(
                f"{source} is neither a store (it has no {SETTINGS_FILE}) nor answers (no {MARKER}): name the --store of an "
                "index, or the --out of an answer or caption run"
            )
    click.echo(shown(line))


def _tokens(source: str, out: str, *, form: str) -> str:
    from echoprune.export import export_tokens
    from echoprune.store import open_store

    count = export_tokens(open_store(source), out, format=form)
    return f"{count:,} tokens written to {out}"


def _format(form: str | None, accepted: tuple[str, ...], *, what: str) -> str:
    if form is not None and form not in accepted:
        raise ConfigError(
            f"--format {form} does not fit: {what}, which is written as {' or '.join(accepted)}"
        )
    return form or accepted[0]


def require_local_path(out: str) -> None:
    """Raises ConfigError unless `out` can be a new path of this machine."""
    if not out or "://" in out:
        raise ConfigError(f"--out {out!r} is not a local path: name a new file or folder")
