"""What an index run would come to: the archive's estimate, and the time it takes at a stated rate."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch

from echoprune.errors import ConfigError
from echoprune.estimate import Estimate, Range, estimate
from echoprune.models import ModelSettings, fast_tower_refused, model_settings
from echoprune.plan import load_plan
from echoprune.s3_options import use_s3
from echoprune.schema import PLAIN_TOWER
from echoprune.sources import list_sources
from echoprune.storage import Storage
from pipelines.config import IndexConfig
from pipelines.index import store_settings

# What the towers reached on an H100 in bf16, plain and fast, and a CPU core with AVX-512 in float32.
GPU_FLOPS, FAST_GPU_FLOPS, CORE_FLOPS = 60e12, 450e12, 50e9
# Software decoding of H.264: 360 frames/s of 1280x720 on one core.
CORE_PIXELS_S = 360 * 1280 * 720
# The last run's rate is taken as it is; assumed rates are right within about this factor.
UNSURE = 2.0


@dataclass(frozen=True)
class Forecast:
    """The estimate of an archive, how many videos are new to the store, and the time with what it is based on."""

    estimate: Estimate
    new_videos: int
    time_s: Range
    time_basis: str


def forecast(config: IndexConfig, *, probe: int | None, gpus: int | None) -> Forecast:
    """The Forecast for a run with `config`; reads headers of `probe` files (None: all), decodes nothing."""
    if not config.paths:
        raise ConfigError("no PATHS: give video files, globs, folders or a manifest")
    # Headers are read as the videos are, the store is looked at as it would be written.
    use_s3(config.s3_inputs)
    sources = list_sources(config.paths)
    model = model_settings(config.model, max_pixels=config.max_pixels or None)
    settings = store_settings(config, model)
    storage = Storage(config.store, s3=config.s3)
    known = set(load_plan(storage).table["uri"].to_pylist())
    fresh = [source for source in sources if source.uri not in known]
    found = estimate(sources, layout=model.layout, settings=settings, probe=probe)
    share = len(fresh) / len(sources)
    rate = _last_rate(storage)
    if rate is not None:
        time = found.video_s.times(share / rate)
        return Forecast(
            found, len(fresh), time, f"for what is new, at {rate:.1f} x real time, the rate of the last run"
        )
    fast = config.tower == "fast" or (config.tower == "auto" and not fast_tower_refused(config.model))
    time, basis = _assumed(found, model, tower="fast" if fast else PLAIN_TOWER, gpus=gpus)
    return Forecast(found, len(fresh), time.times(share), basis)


def _assumed(found: Estimate, model: ModelSettings, *, tower: str, gpus: int | None) -> tuple[Range, str]:
    """Time by operations and pixels, for GPUs or for this machine's cores, and the words for it."""
    count = torch.cuda.device_count() if gpus is None else gpus
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = GPU_FLOPS if tower == PLAIN_TOWER else FAST_GPU_FLOPS
    flops = count * each if count else max(1, cores - 1) * CORE_FLOPS
    encode_s = found.tokens.times(model.token_flops / flops)
    decode_s = found.pixels.times(1 / (CORE_PIXELS_S * (15 * count if count else 1)))
    slower = encode_s if encode_s.middle >= decode_s.middle else decode_s
    what = "encoding" if slower is encode_s else "decoding"
    where = f"{count} GPUs at {each / 1e12:.0f} TFLOP/s" if count else f"{cores} CPU cores"
    time = Range(slower.low / UNSURE, slower.middle, slower.high * UNSURE)
    return time, f"{what} on {where}, assumed; a first run on part of the archive tells better"


def _last_rate(storage: Storage) -> float | None:
    """Seconds of video per second of the newest run that indexed anything; None before the first."""
    for name in reversed([name for name in storage.names("runs") if name.endswith(".json")]):
        rate = json.loads(storage.read_bytes(name))["run"]["video_hours_per_hour"]
        if rate:
            return float(rate)
    return None
