"""What `auto` means for --tower, --engine and --compute-dtype: what is there already was made so; else what suits the machine.

On GPUs that is fast, if the model is fit for it, in the checkpoint's own numbers; on a CPU the library's code in fp32.
A store, or a folder of answers, has one of each from its first run on, which it names: a later run elsewhere, on
another kind of machine too, goes on with that one, and is refused where it is told to use another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from echoprune.answer_run import AnswerRun
from echoprune.answer_settings import LIBRARY
from echoprune.answer_store import MARKER
from echoprune.models import auto_dtype, fast_engine_refused, fast_tower_refused
from echoprune.schema import PLAIN_TOWER
from echoprune.storage import Storage
from echoprune.store import read_settings
from pipelines.answer_config import AnsweringConfig
from pipelines.config import IndexConfig
from pipelines.crew import Crew

log = logging.getLogger(__name__)

FAST = "fast"


def tower_of(config: IndexConfig, people: Crew | None) -> str:
    """The tower of an index run; `people`: who works for a store that is yet to be made, None for one that is there."""
    if config.tower != "auto":
        return config.tower
    if people is None:
        return read_settings(Storage(config.store)).tower
    return _suited(people, lambda: fast_tower_refused(config.model), otherwise=PLAIN_TOWER)


def index_dtype_of(config: IndexConfig, people: Crew | None, *, own: str) -> str:
    """What the encoder of an index run computes in, of a checkpoint of dtype `own`; `people` as of `tower_of`."""
    if config.compute_dtype != "auto":
        return config.compute_dtype
    if people is None:
        return read_settings(Storage(config.store)).compute_dtype
    return auto_dtype(own, gpu=people.gpus_each > 0)


def answer_dtype_of(config: AnsweringConfig, people: Crew | None, *, own: str) -> str:
    """What the model of an answer run computes in, of a checkpoint of dtype `own`; `people` as of `engine_of`."""
    if config.compute_dtype != "auto":
        return config.compute_dtype
    if people is not None:
        return auto_dtype(own, gpu=people.gpus_each > 0)
    made = _made(config)
    return made.compute_dtype if made else own


def engine_of(config: AnsweringConfig, people: Crew | None) -> str:
    """The engine of an answer run; `people`: who answers in a folder that is yet to be made, None for one that is there."""
    if config.engine != "auto":
        return config.engine
    made = _made(config) if people is None else None
    if made:
        return str(made.settings.get("engine", LIBRARY))
    if people is None or config.temperature > 0:  # sampled text is the library's affair
        return LIBRARY
    return _suited(people, lambda: fast_engine_refused(config.model), otherwise=LIBRARY)


def _made(config: AnsweringConfig) -> AnswerRun | None:
    """What the folder of the answers was made with; None where it is none yet."""
    storage = Storage(config.out)
    if not storage.exists(MARKER):
        return None
    return AnswerRun.from_json(storage.read_bytes(MARKER), where=storage.url_of(MARKER))


def _suited(people: Crew, refused: Callable[[], str], *, otherwise: str) -> str:
    if not people.gpus_each:
        return otherwise
    reason = refused()
    if reason:
        log.info("%s: %s is used", reason, otherwise)
    return otherwise if reason else FAST
