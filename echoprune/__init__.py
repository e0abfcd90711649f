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
    "ConfigError": "errors",
    "EchoPruneError": "errors",
    "EchoScorer": "echo",
    "EchoScores": "data",
    "Frames": "data",
    "IndexedVideo": "index",
    "Keep": "prune",
    "MediaError": "errors",
    "ModelError": "errors",
    "StoreError": "errors",
    "UnknownModelError": "errors",
    "NotAStoreError": "errors",
    "StoreMismatchError": "errors",
    "TimeGrid": "data",
    "TokenGrid": "data",
    "TokenSet": "data",
    "TokenStore": "store",
    "TopK": "topk",
    "VideoInfo": "data",
    "echo_scores": "echo",
    "index_video": "index",
    "load_encoder": "models",
    "open_store": "store",
    "relevance": "query",
    "select_tokens": "prune",
}

__all__ = [
    "ConfigError",
    "EchoPruneError",
    "EchoScorer",
    "EchoScores",
    "Frames",
    "IndexedVideo",
    "Keep",
    "MediaError",
    "ModelError",
    "NotAStoreError",
    "StoreError",
    "StoreMismatchError",
    "TimeGrid",
    "TokenGrid",
    "TokenSet",
    "TokenStore",
    "TopK",
    "UnknownModelError",
    "VideoInfo",
    "echo_scores",
    "index_video",
    "load_encoder",
    "open_store",
    "relevance",
    "select_tokens",
]

if TYPE_CHECKING:
    from echoprune.data import EchoScores, Frames, TimeGrid, TokenGrid, TokenSet, VideoInfo
    from echoprune.echo import EchoScorer, echo_scores
    from echoprune.errors import (
        ConfigError,
        EchoPruneError,
        MediaError,
        ModelError,
        NotAStoreError,
        StoreError,
        StoreMismatchError,
        UnknownModelError,
    )
    from echoprune.index import IndexedVideo, index_video
    from echoprune.models import load_encoder
    from echoprune.prune import Keep, select_tokens
    from echoprune.query import relevance
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
