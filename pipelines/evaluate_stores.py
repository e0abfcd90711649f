"""The stores of an evaluation: one per number of frames and keep, made by index runs and shared by all settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from echoprune.choose import Budget
from echoprune.errors import ConfigError
from echoprune.evaluation_folder import store_name
from echoprune.evaluation_questions import Scorable
from echoprune.models import model_settings
from echoprune.plan import load_plan, pending
from echoprune.receipt import read_receipts
from echoprune.schema import SETTINGS_FILE
from echoprune.storage import Storage
from echoprune.store import TokenStore, open_store
from pipelines.config import S3_OPTIONS, IndexConfig
from pipelines.evaluate_config import EvalConfig
from pipelines.index import run_index

log = logging.getLogger(__name__)

# Families whose cells carry their time as text, so that what a budget holds is known after tokenising alone.
TIMED_FAMILIES = ("qwen3_vl",)

OnProgress = Callable[[dict[str, Any]], None]


def index_stores(
    config: EvalConfig,
    stores: Sequence[tuple[int, str]],
    videos: tuple[str, ...],
    storage: Storage,
    connect: Callable[[], None],
    *,
    compute_dtype: str,
    stored_dtype: str,
    on_progress: OnProgress,
) -> None:
    """Brings each store up to its plan; the dtypes are those of the IndexConfig. `connect`: called before the first that needs it, so that all share one Ray."""
    todo = [each for each in stores if not _complete(Storage(storage.url_of(store_name(*each))), videos)]
    for place, (count, keep) in enumerate(todo):
        connect()
        log.info("index %d of %d: %d frames, keep %s", place + 1, len(todo), count, keep)

        def told(snapshot: dict[str, Any], place: int = place) -> None:
            on_progress(
                {
                    "stage": "index",
                    "steps_done": place * len(videos) + snapshot["videos_done"],
                    "steps": len(todo) * len(videos),
                    "stores_done": place,
                    "stores": len(todo),
                }
            )

        run_index(
            IndexConfig(
                store=storage.url_of(store_name(count, keep)),
                model=config.model,
                paths=videos,
                frames=count,
                keep=keep,
                max_pixels=config.max_pixels,
                anchor_every=config.anchor_every,
                compute_dtype=compute_dtype,
                dtype=stored_dtype,
                device=config.device,
                address=config.address,
                **{name: getattr(config, name) for name in S3_OPTIONS},
            ),
            on_progress=told,
        )


def _complete(store: Storage, videos: Sequence[str]) -> bool:
    if not store.exists(SETTINGS_FILE):
        return False
    plan = load_plan(store)
    return len(plan) >= len(videos) and not pending(plan, read_receipts(store))


def budget_fits(
    config: EvalConfig, asked: Scorable, storage: Storage, stores: Sequence[tuple[int, str]]
) -> Callable[[int, str, str], bool]:
    """Whether a budget holds all that a store has of every video. ConfigError for a store without any video."""
    timed = model_settings(config.model).family in TIMED_FAMILIES
    ranged = any(each.start_s is not None or each.end_s is not None for each in asked.questions)
    sizes = {}
    for count, keep in stores:
        rows = _videos(open_store(storage.url_of(store_name(count, keep))))
        sizes[count, keep] = [(row["tokens"], row["kept"]) for row in rows if row["status"] != "failed"]
        if not sizes[count, keep]:
            raise ConfigError(
                f"none of the videos could be indexed, such as {rows[0]['uri']}: {rows[0]['error']}"
            )

    def fits(frames: int, keep: str, budget: str) -> bool:
        parsed = Budget.parse(budget)
        # A ratio is one of the question's own range, whose share of the stored tokens may be larger.
        if timed or (ranged and parsed.ratio is not None):
            return False
        return all((parsed.count(tokens) or tokens) >= kept for tokens, kept in sizes[frames, keep])

    return fits


def _videos(store: TokenStore) -> list[dict[str, Any]]:
    columns = ("uri", "status", "error", "tokens", "kept")
    rows: list[dict[str, Any]] = store.videos().select(columns).to_pylist()
    return rows
