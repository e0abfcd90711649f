"""`echoprune models`: small random checkpoints of the real classes."""

from __future__ import annotations

from pathlib import Path

import click

from echoprune.errors import ConfigError
from jobs.progress import shown

MAX_SEED = 2**63 - 1  # what torch takes


@click.group()
def models() -> None:
    """Checkpoints to try things with."""


@models.command()
@click.option(
    "--family", default="qwen2_5_vl", show_default=True, help="qwen2_5_vl, qwen3_vl or llava_onevision."
)
@click.option("--out", required=True, metavar="DIR", help="Folder to write; must not exist or be empty.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, MAX_SEED),
    help="Equal seeds give equal weights.",
)
@click.option(
    "--dim",
    default=64,
    show_default=True,
    type=click.IntRange(32),
    help="Width of a visual token, a multiple of 16.",
)
def tiny(family: str, out: str, seed: int, dim: int) -> None:
    """Write a tiny random checkpoint of a family's real class: config, weights, tokenizer, preprocessor.

    It answers nothing sensible, but everything runs on it as on a released model.
    """
    from echoprune.models.tiny import write_tiny_checkpoint

    try:
        taken = Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir()))
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be read: {error.strerror}; name a new folder") from error
    if taken:
        raise ConfigError(f"--out {out} is not empty: name a new folder")
    write_tiny_checkpoint(family, Path(out), seed=seed, dim=dim)
    click.echo(f"{family} checkpoint written to {shown(out)}")
