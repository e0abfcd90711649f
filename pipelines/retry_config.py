"""The configuration of a retry run: what index runs on, without what decides tokens, which the store says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from echoprune.errors import ConfigError
from pipelines.config import IndexConfig, S3InputsConfig, require_decoders
from pipelines.job_config import option, require_store_place
from pipelines.max_failed import MaxFailed


def _as_in_index(name: str) -> Any:
    """The option of that name, as an index run has it."""
    same = IndexConfig.__dataclass_fields__[name]
    return field(default=same.default, metadata=same.metadata)


@dataclass(frozen=True)
class RetryConfig(S3InputsConfig):
    """Everything that a retry run depends on beside its store. `classes`: error classes to try again; none: all."""

    store: str = ""
    classes: tuple[str, ...] = ()

    partial: bool = option(False, "Also try videos again that are stored in part.")
    model: str = option(
        "",
        "Checkpoint that the store was made with. Default: where it was for the newest shard of the store.",
    )
    device: str = _as_in_index("device")
    encoders: int | None = _as_in_index("encoders")
    decoders_per_gpu: str = _as_in_index("decoders_per_gpu")
    grow_to: int | None = _as_in_index("grow_to")
    in_flight_mb: int = _as_in_index("in_flight_mb")
    decode_timeout: float = _as_in_index("decode_timeout")
    failed_ok: bool = _as_in_index("failed_ok")
    max_failed: str | None = _as_in_index("max_failed")
    address: str | None = _as_in_index("address")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.store:
            raise ConfigError(
                "STORE is missing: name the folder of a store on the command line or in --config"
            )
        require_store_place(self.store, name="STORE")
        require_decoders(self.decoders_per_gpu, grow_to=self.grow_to)
        MaxFailed.parse(self.max_failed, of=1)
