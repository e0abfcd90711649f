"""`echoprune`: the group of all commands. Importing this module loads neither torch nor ray."""

from __future__ import annotations

import logging

import click

import echoprune
from jobs.answer import answer
from jobs.caption import caption
from jobs.collect import collect
from jobs.compact import compact
from jobs.demo import demo
from jobs.eval import evaluate
from jobs.exits import CONTEXT_SETTINGS, OneLineErrors
from jobs.export import export
from jobs.forget import forget
from jobs.index import index
from jobs.inspect_video import inspect_video
from jobs.models import models
from jobs.overlap import overlap
from jobs.plan import plan
from jobs.retry import retry
from jobs.search import search
from jobs.status import status
from jobs.synth import synth
from jobs.verify import verify


@click.group(cls=OneLineErrors, context_settings=CONTEXT_SETTINGS)
@click.version_option(echoprune.__version__, prog_name="echoprune")
@click.option("--verbose", "-v", is_flag=True, help="Log what happens, to standard error.")
def main(verbose: bool) -> None:
    """Index large video archives into stores of pruned visual tokens, and answer from the store.

    \b
    echoprune models tiny --family qwen2_5_vl --out tiny     a small random model to try with
    echoprune index VIDEOS --store STORE --model tiny        videos -> store
    echoprune status STORE                                   what is in it
    echoprune inspect STORE VIDEO --png kept.png             what was kept of one video
    echoprune answer STORE --model tiny --questions F --out A    questions -> answers, no video opened
    echoprune caption STORE --model tiny --out C             a text for every half minute
    echoprune search STORE "red bus" --answers C             moments whose text says so
    echoprune overlap STORE --model tiny --questions F           what a smaller --keep would have lost
    echoprune eval VIDEOS --model tiny --questions F --out E     what pruning costs at equal budget
    echoprune synth --out archive                                clips, questions and truth to try it with
    echoprune export C --out samples.jsonl                   answers or tokens for other tools
    echoprune retry STORE                                    failed videos again
    echoprune verify STORE                                   reread it, list what is wrong
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


for command in (
    index,
    plan,
    status,
    inspect_video,
    answer,
    caption,
    search,
    overlap,
    evaluate,
    synth,
    export,
    models,
    demo,
):
    main.add_command(command)
for command in (retry, verify, collect, forget, compact):
    main.add_command(command)

if __name__ == "__main__":
    main()
