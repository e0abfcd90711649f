"""What a model is told about a question: prompt templates, those of the package in prompts/ and a user's own.

A template is Jinja2, sandboxed; it gives the text of the user's turn. The chat format around it is the model adapter's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from echoprune.errors import ConfigError
from echoprune.letters import letter
from echoprune.question import Question

AUTO = "auto"
_SUFFIX = ".jinja"
# What the expressions of a template can raise when they are evaluated, besides Jinja2's own errors.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Template:
    """A prompt template. `literal`: `text` is the prompt itself, braces and all."""

    name: str
    text: str
    literal: bool = False

    @property
    def digest(self) -> str:
        """16 hex digits that follow the text (and whether it is literal), not the name."""
        return hashlib.sha256(f"{int(self.literal)}{self.text}".encode()).hexdigest()[:16]

    def render(self, question: Question) -> str:
        """The prompt for one question, not empty, without blanks around it.

        Known in a template: `question`, `options` (each with `letter` and `text`), `start_s`, `end_s`, `kind` (None where
        not given), `video` (the file name), and the filter `clock`: seconds as m:ss or h:mm:ss. Raises ConfigError
        if the template is broken, uses another name, or gives an empty text.
        """
        text = self.text.strip() if self.literal else self._evaluate(question)
        if not text:
            raise ConfigError(
                f"template {self.name!r} gives an empty prompt: write the text that the model is to get"
            )
        return text

    def _evaluate(self, question: Question) -> str:
        compiled = _compile(self.name, self.text)
        try:
            return compiled.render(_variables(question)).strip()
        except _RENDER_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"template {self.name!r} cannot be filled in for question {question.question_id!r}: {reason}; "
                "known are question, options, start_s, end_s, kind, video and the filter clock"
            ) from error


def template_names() -> tuple[str, ...]:
    """Names of the templates that come with the package, sorted."""
    found = (entry.name for entry in (files("echoprune") / "prompts").iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)))


def load_template(name_or_path: str) -> Template:
    """The package's template of that name, otherwise the one in that file, named as the file is.

    Raises ConfigError if there is neither, or its text is no Jinja2.
    """
    if name_or_path in _shipped():
        return _shipped()[name_or_path]
    path = Path(name_or_path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(
            f"no template {name_or_path!r}, and as a file: {reason}; give one of {', '.join(template_names())}, or a file"
        ) from error
    _compile(path.name, text)
    return Template(path.name, text)


def template_for(question: Question, default: Template | str) -> Template:
    """The template of one question: its own `prompt`, otherwise the run's default.

    A `prompt` that is a name of the package's means that template; any other is the whole text, taken as it is, under
    the name "prompt". `default`: a template, a name or path, or "auto", which is multiple_choice for a question with
    options and open for one without.
    """
    if question.prompt is not None:
        return _shipped().get(question.prompt) or Template("prompt", question.prompt, literal=True)
    if isinstance(default, Template):
        return default
    if default == AUTO:
        default = "multiple_choice" if question.options else "open"
    return load_template(default)


def clock(time_s: float) -> str:
    """Time as m:ss ("1:05"), from an hour on as h:mm:ss ("1:00:09"); whole seconds, rounded down."""
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, Template]:
    folder = files("echoprune") / "prompts"
    return {
        name: Template(name, (folder / f"{name}{_SUFFIX}").read_text("utf-8")) for name in template_names()
    }


@lru_cache(maxsize=64)
def _compile(name: str, text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clock"] = clock
    try:
        return environment.from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"template {name!r} is no Jinja2{where}: {reason}; correct it, or use another"
        ) from error


def _variables(question: Question) -> dict[str, Any]:
    options = [{"letter": letter(i), "text": text} for i, text in enumerate(question.options)]
    return {
        "question": question.question.strip(),
        "options": options,
        "start_s": question.start_s,
        "end_s": question.end_s,
        "kind": question.kind,
        "video": re.split(r"[/\\]", question.video)[-1],
    }
