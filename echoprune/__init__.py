"""Index large video archives into stores of pruned visual tokens, and answer from the store.

Everything that is true without a cluster lives in this package. Public names are loaded on first use, so that
importing the package (and `echoprune --help`) costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it. `TYPE_CHECKING` below says the same to type checkers; a test
# compares the two.
_PUBLIC = {
    "Answer": "question",
    "AnswerSettings": "answer_settings",
    "AnswerStore": "answer_store",
    "ConfigError": "errors",
    "EchoPruneError": "errors",
    "EchoScorer": "echo",
    "EchoScores": "data",
    "Evidence": "question",
    "Frames": "data",
    "IndexedVideo": "index",
    "Keep": "prune",
    "MediaError": "errors",
    "ModelError": "errors",
    "NoSuchVideoError": "errors",
    "NotAStoreError": "errors",
    "Question": "question",
    "S3Options": "s3_options",
    "StoreError": "errors",
    "StoreMismatchError": "errors",
    "StoreSettings": "schema",
    "TimeGrid": "data",
    "TokenGrid": "data",
    "TokenSet": "data",
    "TokenStore": "store",
    "TopK": "topk",
    "UnanswerableError": "errors",
    "UnknownModelError": "errors",
    "VideoInfo": "data",
    "answer_questions": "answer",
    "echo_scores": "echo",
    "index_video": "index",
    "load_answerer": "models",
    "load_encoder": "models",
    "open_answers": "answer_store",
    "open_store": "store",
    "read_questions": "questions",
    "relevance": "query",
    "search_tokens": "search",
    "select_tokens": "prune",
    "use_s3": "s3_options",
}

__all__ = [
    "Answer",
    "AnswerSettings",
    "AnswerStore",
    "ConfigError",
    "EchoPruneError",
    "EchoScorer",
    "EchoScores",
    "Evidence",
    "Frames",
    "IndexedVideo",
    "Keep",
    "MediaError",
    "ModelError",
    "NoSuchVideoError",
    "NotAStoreError",
    "Question",
    "S3Options",
    "StoreError",
    "StoreMismatchError",
    "StoreSettings",
    "TimeGrid",
    "TokenGrid",
    "TokenSet",
    "TokenStore",
    "TopK",
    "UnanswerableError",
    "UnknownModelError",
    "VideoInfo",
    "answer_questions",
    "echo_scores",
    "index_video",
    "load_answerer",
    "load_encoder",
    "open_answers",
    "open_store",
    "read_questions",
    "relevance",
    "search_tokens",
    "select_tokens",
    "use_s3",
]

if TYPE_CHECKING:
    from echoprune.answer import answer_questions
    from echoprune.answer_settings import AnswerSettings
    from echoprune.answer_store import AnswerStore, open_answers
    from echoprune.data import EchoScores, Frames, TimeGrid, TokenGrid, TokenSet, VideoInfo
    from echoprune.echo import EchoScorer, echo_scores
    from echoprune.errors import (
        ConfigError,
        EchoPruneError,
        MediaError,
        ModelError,
        NoSuchVideoError,
        NotAStoreError,
        StoreError,
        StoreMismatchError,
        UnanswerableError,
        UnknownModelError,
    )
    from echoprune.index import IndexedVideo, index_video
    from echoprune.models import load_answerer, load_encoder
    from echoprune.prune import Keep, select_tokens
    from echoprune.query import relevance
    from echoprune.question import Answer, Evidence, Question
    from echoprune.questions import read_questions
    from echoprune.s3_options import S3Options, use_s3
    from echoprune.schema import StoreSettings
    from echoprune.search import search_tokens
    from echoprune.store import TokenStore, open_store
    from echoprune.topk import TopK


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'echoprune' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"echoprune.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
