"""What every job's configuration is made of: fields that describe their options, and the checks of their limits.

A field's default is the option's default, its metadata is the option's help and limits. A file given by `--config`
has the same names; flags win over the file. Nothing here imports torch or ray, so that `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echoprune.credentials import without_secrets
from echoprune.errors import ConfigError
from echoprune.s3_options import is_s3, require_whole_scheme, s3_place


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    at_least: float | None = None,
    above: float | None = None,
    required: bool = False,
) -> Any:
    """A dataclass field that also describes its command-line option: its help, and what JobConfig checks."""
    metadata = {"help": text, "choices": choices, "metavar": metavar, "required": required}
    return field(default=default, metadata=metadata | {"at_least": at_least, "above": above})


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The option's name, such as --anchor-every."""
    return "--" + field.name.replace("_", "-")


def option_fields(config: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a configuration dataclass that are options, in order; those of S3 last."""
    found = [field for field in dataclasses.fields(config) if "help" in field.metadata]
    return sorted(found, key=lambda field: field.name.startswith("s3_"))


def scalar_kind(annotation: Any) -> type[int] | type[float] | type[str] | type[bool]:
    """`int` of `int | None`, and so on: the one type that an option's text is turned into; `bool` is a flag."""
    kinds = [each for each in typing.get_args(annotation) if each is not types.NoneType]
    found = kinds[0] if kinds else annotation
    if found not in (int, float, str, bool):
        raise TypeError(f"an option cannot be made of {annotation}")
    return typing.cast("type[int] | type[float] | type[str] | type[bool]", found)


@dataclass(frozen=True)
class JobConfig:
    """Base of a job's configuration: checks the declared limits of every `option` when made, with ConfigError.

    A subclass adds checks of its own in `__post_init__`, after calling this one. Fields that are no options (a
    text, or a tuple of texts such as `paths`) are the command's arguments.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in option_fields(type(self)):
            _check_value(each, getattr(self, each.name), scalar_kind(hints[each.name]))

    def as_dict(self) -> dict[str, Any]:
        """The effective configuration, fit for JSON and for other eyes: URLs are without signatures and passwords."""
        return {name: _shown(value) for name, value in dataclasses.asdict(self).items()}


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_shown(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def _check_value(field: dataclasses.Field[Any], value: Any, kind: type[Any]) -> None:
    name, limits = flag_name(field), field.metadata
    if limits["required"] and not value:
        raise ConfigError(f"{name} is missing: give it on the command line or in the --config file")
    if value is None and field.default is None:
        return
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        raise ConfigError(f"{name} is {value!r}: it must be {expected}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}: it must be a finite number")
    if limits["at_least"] is not None and value < limits["at_least"]:
        words = "0 or more" if limits["at_least"] == 0 else f"at least {limits['at_least']}"
        raise ConfigError(f"{name} is {value}: it must be {words}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError(f"{name} is {value}: it must be more than {limits['above']}")
    if limits["choices"] and value not in limits["choices"]:
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(limits['choices'])}")


def require_store_place(path: str, *, name: str = "--store") -> None:
    """Raises ConfigError unless `path` is an s3:// URL, or is, or can become, a folder of this machine."""
    if is_s3(path):
        s3_place(path)
        return
    require_whole_scheme(path)
    if "://" in path and not path.startswith("file://"):
        raise ConfigError(
            f"{name} {without_secrets(path)} cannot be used: name a local folder, or s3://BUCKET/KEY"
        )
    local = Path(path.removeprefix("file://")).expanduser()
    if path and local.exists() and not local.is_dir():
        raise ConfigError(f"{name} {path} is a file: name the folder of a store, or a new one")
