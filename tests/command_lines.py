"""Command lines as pages and cluster files show them, held to the real click commands. Nothing is run."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from pathlib import Path

import click
from ray.scripts.scripts import cli as ray_cli

from jobs.cli import main

_OPERATORS = re.compile(r"[|&;<>()]+")
_SETTING = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
# Options of which the parser reads the file that they name.
_FILES = ("--config",)


def shown(page: Path) -> Iterator[tuple[int, str]]:
    """(line number, command line) of each line in the fenced and indented blocks of a Markdown page, continuations joined."""
    fence, joined, first = False, "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip().startswith("```"):
            fence, joined = not fence, ""
            continue
        if not fence and not line.startswith("    ") and not joined:
            continue
        first = first if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        yield first, joined.removeprefix("$ ")
        joined = ""


def ours(line: str) -> Iterator[list[str]]:
    """The words of each `echoprune`, `python -m jobs...` and `ray` command in a line of shell, without redirections."""
    if not re.search(r"\b(echoprune|python -m jobs|ray)\b", line):
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "#", True
    commands: list[list[str]] = [[]]
    skip = False
    try:
        found = list(lexer)
    except ValueError:
        # An apostrophe without its other half: prose or Python, unless it looks like a command.
        assert not line.startswith(("echoprune ", "python -m jobs", "ray ")), line
        return
    for word in found:
        if _OPERATORS.fullmatch(word):
            # "2> file": the number and the file are no words of the command.
            skip = "<" in word or ">" in word
            if skip and commands[-1] and commands[-1][-1].isdigit():
                commands[-1].pop()
            if not skip:
                commands.append([])
        elif not skip:
            commands[-1].append(word)
        else:
            skip = False
    for command in commands:
        words = list(dropwhile(_SETTING.fullmatch, command))
        if words and (words[0] in ("echoprune", "ray") or words[:2] == ["python", "-m"]):
            yield words


def parse(words: Sequence[str]) -> str:
    """The name of the command that `words` call. Raises click.UsageError for what it does not take."""
    program, rest = words[0], list(words[1:])
    if program == "ray":
        # Ray prints a warning of its own where it parses.
        with contextlib.redirect_stderr(io.StringIO()):
            name, context = _descend(ray_cli, "ray", rest)
        if name == "ray job submit":
            entry = list(context.params["entrypoint"])
            return f"{name}: {parse(entry) if entry[:2] == ['python', '-m'] else entry[0]}"
        return name
    if program == "echoprune":
        return _descend(main, "echoprune", rest)[0]
    module, rest = rest[1], rest[2:]
    if not module.startswith("jobs."):
        return f"python -m {module}"
    for command in (main, *main.commands.values()):
        if command.callback and getattr(command.callback, "__module__", "") == module:
            return _descend(command, f"python -m {module}", rest)[0]
    raise click.UsageError(f"no command in {module}")


def _descend(command: click.Command, name: str, words: list[str]) -> tuple[str, click.Context]:
    for option in _FILES:
        while option in words:
            at = words.index(option)
            if not any(option in each.opts for each in command.params):
                break
            words = words[:at] + words[at + 2 :]
    context = command.make_context(name, list(words))
    if not isinstance(command, click.Group):
        return name, context
    rest = [*context._protected_args, *context.args]
    inner_name, inner, rest = command.resolve_command(context, rest)
    assert inner is not None
    return _descend(inner, f"{name} {inner_name}", rest)
