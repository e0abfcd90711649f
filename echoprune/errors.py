"""Every error this package raises on purpose.

    EchoPruneError
    ├── ConfigError      the user asked for something that cannot be done; nothing ran        (exit code 2)
    ├── MediaError       one video cannot be read (on); it becomes a row in `failures`        (exit code 3)
    ├── UnanswerableError    one question cannot be asked; it becomes a failed answer         (exit code 3)
    ├── ModelError       the model cannot be loaded, or computes nonsense; the run stops      (exit code 1)
    │   └── UnknownModelError    no checkpoint there, or none of a family that is known       (exit code 2)
    ├── TooManyFailedError   more items failed than --max-failed lets; the run stops           (exit code 1)
    └── StoreError       the store is damaged, held by another run, or cannot be written      (exit code 1)
        ├── NotAStoreError       the folder holds no store                                    (exit code 2)
        ├── StoreMismatchError   a setting differs from those the store was made with         (exit code 2)
        ├── NoSuchVideoError     no video of that name in the store, or several              (exit code 2)
        ├── StoreUnavailableError    an object store did not answer for as long as was asked (exit code 1)
        └── LeaseLostError       another run has taken the store over                         (exit code 1)

A message says what happened, the value, what would have been accepted, and the cure, on one line.
"""

from __future__ import annotations


class EchoPruneError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a user as it is."""


class ConfigError(EchoPruneError):
    """An option, a path or a combination of them cannot be used."""


class MediaError(EchoPruneError):
    """One video cannot be read, or cannot be read on.

    `stage` is where it happened: "probe", "decode" or "encode". `kind` is a word to group by (the column
    `class` of the failures table), such as "missing", "empty", "unreadable", "not_a_video",
    "no_video_stream", "no_frames", "decode_failed", "damaged", "time_jump", "too_long", "decode_hang",
    "decoder_died", "decoder_swelled", "node_out_of_memory", "source_changed", "source_unreachable", "larger_than_cache".
    """

    def __init__(self, message: str, *, stage: str, kind: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.kind = kind

    def __reduce__(self) -> tuple[object, tuple[str, str, str]]:
        # Exceptions with keyword-only arguments do not unpickle by themselves; this one crosses processes.
        return (_media_error, (str(self), self.stage, self.kind))


def _media_error(message: str, stage: str, kind: str) -> MediaError:
    return MediaError(message, stage=stage, kind=kind)


class ModelError(EchoPruneError):
    """A checkpoint cannot be loaded, or produced values that are not finite."""


class UnknownModelError(ModelError):
    """There is no checkpoint where one was said to be, or it is of a family that has no adapter."""


class TooManyFailedError(EchoPruneError):
    """More videos or questions of a run failed than it was told to bear with."""


class StoreError(EchoPruneError):
    """A store cannot be read or written: damaged, or held by another run."""


class NotAStoreError(StoreError):
    """A folder that was said to be a store is none, or holds something else."""


class StoreMismatchError(StoreError):
    """A setting differs from the one that the store was made with; the message names the field."""


class NoSuchVideoError(StoreError):
    """A store has no video of the name given, or (`several`) more than one."""

    def __init__(self, message: str, *, several: bool = False) -> None:
        super().__init__(message)
        self.several = several


class StoreUnavailableError(StoreError):
    """An object store did not answer, or refused, until patience was over. Nothing is known to be wrong with the store."""


class LeaseLostError(StoreError):
    """Another run has taken the store over: whoever belongs to this one writes nothing more."""


class UnanswerableError(EchoPruneError):
    """A question cannot be asked; `error_class` is a word to group by."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
