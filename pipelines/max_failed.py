"""The end of a run that fails too much: `--max-failed`, as a number or as a share of what the run is to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from echoprune.errors import ConfigError, TooManyFailedError


@dataclass(frozen=True)
class MaxFailed:
    """`most`: how many of the run's items may fail."""

    text: str
    most: float

    @classmethod
    def parse(cls, text: str | None, *, of: int) -> MaxFailed:
        """The limit of a run over `of` items: "100" are so many, "0.05" is a share of them, None is no limit."""
        if text is None:
            return cls("", math.inf)
        if text.isascii() and text.isdecimal():
            return cls(text, int(text))
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise ConfigError(
                f"--max-failed is {text!r}: give a whole number such as 100, or a share below 1 such as 0.05"
            )
        return cls(text, share * of)

    def check(self, failed: int, *, of: int, what: str, classes: Mapping[str, int]) -> None:
        """Raises TooManyFailedError where more have failed; `classes`: how often which, as far as it is committed."""
        if failed <= self.most:
            return
        told = ", ".join(f"{name} {count}" for name, count in sorted(classes.items()))
        raise TooManyFailedError(
            f"{failed} of {of} {what} failed{f' ({told})' if told else ''}, more than --max-failed {self.text} lets: find out "
            "why, then give the same command again, with a higher --max-failed if that is to be expected"
        )
