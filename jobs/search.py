"""`echoprune search`: moments of stored videos, by the text of answers and captions and by their tokens.

Which moments those are is decided in echoprune/fulltext.py and echoprune/search.py; no video and no language model is
opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from echoprune.errors import ConfigError, NoSuchVideoError
from echoprune.s3_options import is_s3
from jobs.options import s3_options
from jobs.search_table import describe, show
from jobs.spinner import busy
from pipelines.job_config import require_store_place

if TYPE_CHECKING:
    from echoprune.fulltext import TextHit
    from echoprune.search import Moment, SearchStats
    from echoprune.store import TokenStore

KINDS = ("tokens", "text", "both")


@click.command()
@click.argument("store")
@click.argument("text")
@click.option(
    "--answers",
    multiple=True,
    metavar="DIR",
    help="Search the text of this answer or caption run, again for several.",
)
@click.option(
    "--model",
    help="Search tokens by relevance, with the words of this checkpoint: the one that the store was made with.",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="What to search. Default: text if there is --answers, tokens if there is --model, or both.",
)
@click.option(
    "--videos",
    multiple=True,
    metavar="VIDEO",
    help="Search this video alone, an id, uri, path or file name, again for several. Default: all that are stored.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Moments at most, of each kind; cells side by side are one moment.",
)
@click.option(
    "--max-row-groups",
    type=click.IntRange(1),
    metavar="N",
    help="Read at most N row groups of tokens (about 48 MB each), best first. Default: as many as it takes to be exact.",
)
@click.option(
    "--text-index",
    metavar="FILE",
    help="Where the index of the text is kept. Default: a file search*.sqlite in the first --answers, or in the user's "
    "cache folder if that lies in S3.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for each moment.")
@s3_options
def search(
    *,
    store: str,
    text: str,
    answers: tuple[str, ...],
    model: str | None,
    kind: str | None,
    videos: tuple[str, ...],
    limit: int,
    max_row_groups: int | None,
    text_index: str | None,
    as_json: bool,
) -> None:
    """Find moments of the videos in STORE that TEXT is about; no video is opened.

    By text (--answers): moments whose answer or caption has all the words of TEXT; "words in quotes" stand one after
    another, word* is the beginning of words. By tokens (--model): moments with the tokens nearest to the words of TEXT;
    a coarse measure, made for ranking tokens within a video. Scores of the two are not comparable.

    What was looked at is said on standard error. Exit code: 0 whether or not anything was found, 2 wrong usage, 1 it
    broke.
    """
    wanted = _kinds(kind, answers=answers, model=model)
    require_store_place(store, name="STORE")
    for folder in answers:
        require_store_place(folder, name="--answers")
    # What is not UTF-8 on the command line is no word of any text.
    words = os.fsencode(text).decode("utf-8", "replace").strip()
    if not words:
        raise ConfigError("TEXT is empty: give the words to search for")
    with busy() as tell:
        tell("reading the store")
        from echoprune.store import open_store

        opened = open_store(store)
        video_ids = _videos(opened, videos)
        found: list[dict[str, Any]] = []
        stats: list[dict[str, Any]] = []
        if "text" in wanted:
            rows, stat = _by_text(opened, words, answers, video_ids, limit=limit, index=text_index, tell=tell)
            found += rows
            stats.append(stat)
        if "tokens" in wanted and model is not None:
            rows, stat = _by_tokens(
                opened, words, model, video_ids, limit=limit, max_row_groups=max_row_groups, tell=tell
            )
            found += rows
            stats.append(stat)
    if as_json:
        for row in found:
            click.echo(json.dumps(row))
    elif found:
        show(found)
    for stat in stats:
        click.echo(json.dumps({"event": "searched", **stat}) if as_json else describe(stat), err=True)


def _kinds(kind: str | None, *, answers: Sequence[str], model: str | None) -> set[str]:
    """Which of "text" and "tokens" to search; ConfigError where what they need was not given."""
    given = {name for name, value in (("text", answers), ("tokens", model)) if value}
    if not given:
        raise ConfigError(
            "nothing to search with: give --answers DIR (the text of an answer or caption run), --model M (tokens), or both"
        )
    wanted = given if kind is None else {"text", "tokens"} if kind == "both" else {kind}
    lacking = sorted(wanted - given)
    if lacking:
        cure = "--answers DIR" if lacking[0] == "text" else "--model M, the checkpoint of the store"
        raise ConfigError(f"--kind {kind} searches {lacking[0]}: give {cure}")
    return wanted


def _videos(store: TokenStore, videos: Sequence[str]) -> set[str] | None:
    """Ids of the videos asked for, None for all; ConfigError for one that is not there or has no tokens."""
    if not videos:
        return None
    found = set()
    for video in videos:
        try:
            # Names that are not UTF-8 are stored escaped.
            row = store.video(os.fsencode(video).decode("utf-8", "backslashreplace"))
        except NoSuchVideoError as error:
            raise ConfigError(str(error)) from error
        if row["status"] == "failed":
            raise ConfigError(
                f"{row['uri']} failed ({row['error_class']}: {row['error']}) and has no tokens: name another video"
            )
        found.add(str(row["video_id"]))
    return found


# By text


def _by_text(
    store: TokenStore,
    words: str,
    folders: Sequence[str],
    video_ids: set[str] | None,
    *,
    limit: int,
    index: str | None,
    tell: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from echoprune.answer_store import open_answers
    from echoprune.fulltext import build_index, match_expression

    match_expression(words)
    opened = {answers.storage.url: answers for answers in map(open_answers, folders)}
    target = _index_file(list(opened)) if index is None else Path(index).expanduser()
    tell("reading answers")
    made = build_index(list(opened.values()), target)
    tell("searching text")
    known = set(store.places()["video_id"].to_pylist())
    hits, foreign = _matches(target, words, known if video_ids is None else video_ids, known, limit=limit)
    stat = {
        "kind": "text",
        "folders": len(opened),
        "rows": sum(file.rows for each in opened.values() for file in each.files),
        "found": len(hits),
        "of_other_stores": foreign,
        "index": str(target),
        "index_made": made,
    }
    return [_text_row(rank, hit) for rank, hit in enumerate(hits, start=1)], stat


def _index_file(folders: Sequence[str]) -> Path:
    """Beside the first answers, in the user's cache if they lie in S3, where SQLite cannot write.

    Of several folders one for each combination, since scores depend on all of them.
    """
    from echoprune.fulltext import INDEX_FILE
    from echoprune.own_folder import own_cache

    names = "\n".join(sorted(folders))
    combined = f"search-{hashlib.sha256(names.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}.sqlite"
    if is_s3(folders[0]):
        return own_cache() / combined
    return Path(folders[0]) / (INDEX_FILE if len(folders) == 1 else combined)


def _matches(
    index: Path, words: str, wanted: set[str], known: set[str], *, limit: int
) -> tuple[list[TextHit], int]:
    """The `limit` best hits about the videos `wanted`, and how many better ones are about none of `known`."""
    from echoprune.fulltext import search_text

    asked = limit
    while True:
        hits = search_text(index, words, limit=asked)
        inside = [hit for hit in hits if hit.video_id in wanted]
        if len(inside) >= limit or len(hits) < asked:
            return inside[:limit], sum(hit.video_id not in known for hit in hits)
        asked *= 8


def _text_row(rank: int, hit: TextHit) -> dict[str, Any]:
    return {
        "kind": "text",
        "rank": rank,
        "score": hit.score,
        "video_id": hit.video_id,
        "uri": hit.uri,
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "answers": hit.source,
        "question_id": hit.question_id,
        "matched": list(hit.matched),
        "snippet": hit.snippet,
    }


# By tokens


def _by_tokens(
    store: TokenStore,
    words: str,
    model: str,
    video_ids: set[str] | None,
    *,
    limit: int,
    max_row_groups: int | None,
    tell: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from echoprune.embedding import load_word_embeddings, require_model
    from echoprune.search import search_tokens

    tell("comparing the model with the store's")
    require_model(store.settings, model)
    query = load_word_embeddings(model).embed(words)
    tell("searching tokens")
    hits = search_tokens(store, query, limit=limit, videos=video_ids, max_row_groups=max_row_groups)
    return [_token_row(rank, moment) for rank, moment in enumerate(hits.moments, start=1)], _stats(hits.stats)


def _token_row(rank: int, moment: Moment) -> dict[str, Any]:
    values = asdict(moment)
    first = ("score", "video_id", "uri", "start_s", "end_s", "t", "h", "w")
    return {"kind": "tokens", "rank": rank, **{name: values[name] for name in first}}


def _stats(stats: SearchStats) -> dict[str, Any]:
    return {"kind": "tokens", **asdict(stats)}
