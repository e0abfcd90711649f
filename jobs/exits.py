"""Exit codes, and how an error becomes one line on standard error.

0    every video is ok or partial (partial ones are warned about)
1    the run broke
2    usage or configuration: nothing ran
3    finished, but failed videos stand
130  interrupted (Ctrl-C); 143 after SIGTERM
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import click

from echoprune.credentials import masked
from echoprune.errors import (
    ConfigError,
    EchoPruneError,
    NoSuchVideoError,
    NotAStoreError,
    StoreMismatchError,
    UnknownModelError,
)
from jobs.progress import shown
from pipelines import interrupted

OK, BROKE, USAGE, FAILED_VIDEOS, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Group):
    """A click group whose commands fail with one line and the right exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Runs the command and exits the process."""
        kwargs["standalone_mode"] = False
        one_line(partial(super().main, *args, **kwargs))


def finished(failed: int, *, failed_ok: bool) -> int:
    """The exit code of a run that came to its end, with that many failed videos or answers in all."""
    return FAILED_VIDEOS if failed and not failed_ok else OK


def run_module(command: click.Command, module: str) -> NoReturn:
    """Runs a command as `python -m MODULE`, with the errors and exit codes that it has below `echoprune`."""
    # Unlike Group.main, a command of its own has not inherited the settings of the group.
    options = {"prog_name": f"python -m {module}", "standalone_mode": False, **CONTEXT_SETTINGS}
    one_line(partial(command.main, **options))


def one_line(run: Callable[[], object]) -> NoReturn:
    """Calls `run` and exits: with the code it returns, or with one line of what went wrong and its code."""
    interrupted.forget()
    signal.signal(signal.SIGTERM, _interrupt)
    # One that is ignored, as by a shell's background jobs, stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        result = run()
    except click.UsageError as error:
        # A group without a command: its message is the whole help. click 8.1 prints that by itself.
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            click.echo(error.format_message(), err=True)
            sys.exit(USAGE)
        # click prints the usage line too; one line with the cure is enough.
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(f"{error.format_message()}{where}", USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), USAGE)
    except (ConfigError, UnknownModelError, NotAStoreError, StoreMismatchError, NoSuchVideoError) as error:
        _fail(str(error), USAGE)
    except EchoPruneError as error:
        _fail(str(error), BROKE)
    except (KeyboardInterrupt, click.Abort):
        terminated = interrupted.last() == signal.SIGTERM
        what, code = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
        _fail(f"{what}; what was committed stands, the same command goes on from there", code)
    except BrokenPipeError:
        sys.exit(BROKE)
    sys.exit(result if isinstance(result, int) else OK)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # Noted, since Ray and click each put an exception of their own in place of the one raised here.
    interrupted.note(signum)
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"echoprune: {shown(masked(' '.join(message.split())))}", err=True)
    sys.exit(code)
