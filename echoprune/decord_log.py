"""What the FFmpeg inside decord complains about while it decodes: heard through its log, since decord does not say.

decord carries libraries of its own, apart from those of PyAV; `library` is its own shared library, through which the
dynamic linker finds the FFmpeg that it was linked with (Linux, macOS; where it does not, nothing is heard).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# FFmpeg's levels: lower is worse, bits above these eight are a colour.
_LEVEL_BITS = 0xFF
_ERROR = 16
_INFO = 32
# A picture that was patched is mentioned as mere information.
_PATCHED = b"concealing"


@dataclass
class Heard:
    """What has been said so far.

    `messages` counts those of any level: FFmpeg reports dozens of details when it opens a file, so 0 after that
    means that nothing can be heard. `complaint`: the first error, as FFmpeg's source has it, without its values; "" if there was none.
    """

    messages: int = 0
    complaint: str = ""


_current = Heard()
_one_listener = threading.Lock()


def _on_log(_source: int | None, level: int, text: int) -> None:
    _current.messages += 1
    severity = level & _LEVEL_BITS
    if _current.complaint or severity > _INFO:
        return
    said = ctypes.string_at(text)
    if severity <= _ERROR or said.startswith(_PATCHED):
        _current.complaint = said.decode(errors="replace").strip() or "an error without a text"


# The fourth argument, the values of the text, is not declared, since it is never read. Made once and kept for good:
# a thread may be on its way into it when listening ends.
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(_on_log)


@contextmanager
def listening(library: Any) -> Iterator[Heard]:
    """What decord's FFmpeg says until the block ends; every reader must be opened and dropped within the block.

    `library`: the ctypes.CDLL of decord. A reader's threads speak for themselves and cannot be told apart, so
    that others who listen wait for this block to end. Costs 5 % of the speed of decoding: 1 to 10 messages a frame.
    """
    global _current  # noqa: PLW0603 - C calls back without a context
    with _one_listener:
        _current = heard = Heard()
        try:
            set_callback = library.av_log_set_callback
            default = ctypes.cast(library.av_log_default_callback, ctypes.c_void_p)
        except AttributeError:
            yield heard
            return
        set_callback(_CALLBACK)
        try:
            yield heard
        finally:
            set_callback(default)
