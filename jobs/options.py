"""Command-line options made from a configuration dataclass, and the `--config` file that means the same.

Each `option(...)` field of a JobConfig becomes one click option of the same name, default and help, so that the
dataclass stays the single source. The file is read as text, and its values go through the same parsers as flags:
`fps: 1:30` and `frames: 1.5` are refused as they are on the command line. Flags win over the file.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from echoprune.errors import ConfigError
from echoprune.s3_options import use_s3
from pipelines.config import S3Config
from pipelines.job_config import JobConfig, flag_name, option_fields, scalar_kind

Command = TypeVar("Command", bound=Callable[..., Any])

_NULL = re.compile(r"(?:~|null|Null|NULL|)$")


def options_of(config: type[JobConfig]) -> Callable[[Command], Command]:
    """A decorator that adds the options of `config`, and `--config FILE`, to a click command.

    The command receives one keyword argument per field; fields that are no options are its own arguments.
    """
    hints = typing.get_type_hints(config)

    def decorate(command: Command) -> Command:
        for field in reversed(option_fields(config)):
            command = _option(field, hints[field.name])(command)
        named = {
            field.name: f"`{field.name}` (a list)" if _is_list(field) else f"`{field.name}`"
            for field in dataclasses.fields(config)
            if "help" not in field.metadata
        }
        also = f" and {', '.join(named.values())}" if named else ""
        return click.option(
            "--config",
            "config_file",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            is_eager=True,
            callback=_file_loader(config),
            expose_value=False,
            help=f"YAML file with any of these options, such as `fps: 1`,{also}; flags win over it. Relative paths in "
            "it start at the current folder, as on the command line.",
        )(command)

    return decorate


def _option(field: dataclasses.Field[Any], annotation: Any) -> Callable[[Command], Command]:
    choices = field.metadata["choices"]
    kind: Any = click.Choice(choices) if choices else scalar_kind(annotation)
    flag = flag_name(field)
    return click.option(
        # With its opposite, so that the command line wins over the file.
        flag if kind is not bool else f"{flag}/--no-{flag.removeprefix('--')}",
        field.name,
        type=kind,
        default=field.default,
        show_default=field.default not in (None, "", False),
        help=field.metadata["help"],
        metavar=field.metadata["metavar"] or None,
    )


def s3_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command, preceded by making the options of S3Config those of this process.

    For commands that have no configuration; to be put next to the function, below the command's own options.
    """
    fields = option_fields(S3Config)

    @functools.wraps(command)
    def with_s3(*arguments: Any, **options: Any) -> Any:
        config = S3Config(**{field.name: options.pop(field.name) for field in fields})
        use_s3(config.s3)
        return command(*arguments, **options)

    hints = typing.get_type_hints(S3Config)
    decorated: Callable[..., Any] = with_s3
    for field in reversed(fields):
        decorated = _option(field, hints[field.name])(decorated)
    return decorated


def _is_list(field: dataclasses.Field[Any]) -> bool:
    """Whether a field that is no option is a list of texts."""
    return isinstance(field.default, tuple)


def _file_loader(config: type[JobConfig]) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def load(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            settings = read_config(Path(value), config, parameters=context.command.params)
            context.default_map = {**(context.default_map or {}), **settings}

    return load


def read_config(
    path: Path, config: type[JobConfig], *, parameters: typing.Sequence[click.Parameter]
) -> dict[str, Any]:
    """The settings in a YAML file by field name, parsed as the `parameters` of the command parse their flags.

    Dashes in names are read as underscores. An option with no value keeps its default where that is None. Raises
    ConfigError, naming the file and the field.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    parsers = {parameter.name: parameter for parameter in parameters}
    settings: dict[str, Any] = {}
    for name, value in _mapping(path).items():
        field = fields.get(name)
        if field is None:
            raise ConfigError(f"{path}: unknown option {name!r}; known are {', '.join(sorted(fields))}")
        if "help" not in field.metadata and _is_list(field):
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise ConfigError(f"{path}: {name} must be a list of texts, such as [a, b]; got {value!r}")
            settings[name] = value
        elif value is None:
            if field.default is not None:
                raise ConfigError(f"{path}: {name} has no value: give one, or leave the line out")
        elif not isinstance(value, str):
            raise ConfigError(f"{path}: {name} must be a single value, got {value!r}")
        elif "help" not in field.metadata:
            settings[name] = value
        else:
            try:
                settings[name] = parsers[name].type.convert(value, parsers[name], None)
            except click.BadParameter as error:
                raise ConfigError(f"{path}: {name} is {value!r}: {error.message}") from error
    return settings


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every scalar as the text it is written as, or None where there is none."""
    import yaml

    class Texts(yaml.BaseLoader):
        """Resolves no types but null: YAML would read 1:30 as 90, 010 as 8 and `no` as false."""

    Texts.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
    Texts.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)
    try:
        # BaseLoader makes nothing but texts, lists and mappings, whatever the tags say.
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=Texts)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"--config {path} is not YAML ({first}); write lines such as `fps: 1`") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {path} must hold a mapping of options, such as `fps: 1`")
    return {str(name).replace("-", "_"): value for name, value in loaded.items()}
