"""Command-line options made from a configuration dataclass, and the `--config` file that means the same.

Each field with `option(...)` metadata becomes one click option of the same name, default and help, so that the
dataclass stays the single source. Flags given on the command line win over the file.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from echoprune.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The option's name, such as --anchor-every."""
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def option_fields(config: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a configuration dataclass that are options, in order."""
    return [field for field in dataclasses.fields(config) if "help" in field.metadata]


def _scalar(annotation: Any) -> type:
    """`int` of `int | None`, and so on."""
    kinds = [each for each in typing.get_args(annotation) if each is not types.NoneType]
    found = kinds[0] if kinds else annotation
    if found not in (int, float, str):
        raise TypeError(f"an option cannot be made of {annotation}")
    return typing.cast(type, found)


def options_of(config: type[Any]) -> Callable[[Command], Command]:
    """A decorator that adds the options of `config`, and `--config FILE`, to a click command."""
    hints = typing.get_type_hints(config)

    def decorate(command: Command) -> Command:
        for field in reversed(option_fields(config)):
            choices = field.metadata["choices"]
            kind: Any = click.Choice(choices) if choices else _scalar(hints[field.name])
            command = click.option(
                flag_name(field),
                field.name,
                type=kind,
                default=field.default,
                show_default=field.default not in (None, ""),
                help=field.metadata["help"],
                metavar=field.metadata["metavar"] or None,
            )(command)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(dir_okay=False),
            is_eager=True,
            callback=_load_file(config),
            expose_value=False,
            help="YAML file with any of these options (fps: 1) and `paths`; flags win over it.",
        )(command)

    return decorate


def _load_file(config: type[Any]) -> Callable[[click.Context, click.Parameter, str | None], None]:
    known = {field.name for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)

    def load(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        settings = read_config(Path(value))
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"{value}: unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        for name, setting in settings.items():
            if name == "paths":
                if not isinstance(setting, list) or not all(isinstance(each, str) for each in setting):
                    raise ConfigError(f"{value}: paths must be a list of strings, got {setting!r}")
            elif isinstance(setting, list | dict | bool):
                raise ConfigError(f"{value}: {name} must be a single value, got {setting!r}")
            elif setting is not None and _scalar(hints[name]) is str:
                settings[name] = str(setting)  # YAML reads `fps: 2` as a number
        context.default_map = {**(context.default_map or {}), **settings}

    return load


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, dashes in names read as underscores; ConfigError if it is not one."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"--config {path} is not YAML ({first}); write lines such as `fps: 1`") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"--config {path} must hold a mapping of options, such as `fps: 1`; got {type(loaded).__name__}"
        )
    return {str(name).replace("-", "_"): setting for name, setting in loaded.items()}
