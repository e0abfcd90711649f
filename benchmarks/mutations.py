"""Damaged copies of video files, as disks, cables, broken downloads and wrong tools leave them; seeded.

`mutated(number, ...)` is a pure function of the seed, the number and the files: the same call gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

_HEAD_BYTES = 4096
# Values that sizes and counts of a header take when they go wrong: nothing, all bits, the largest and lowest signed ones.
_EXTREMES = (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x00FFFFFF)
# Boxes of MP4 and identifiers of Matroska whose neighbourhood says how the file is to be read.
_BOXES = b"moov trak tkhd mdhd hdlr stsd avcC hvcC stts ctts stss stsc stsz stco elst mvex trun tfhd avih strh idx1"
_EBML = (
    b"\x1a\x45\xdf\xa3",
    b"\x15\x49\xa9\x66",
    b"\x16\x54\xae\x6b",
    b"\x1f\x43\xb6\x75",
    b"\x1c\x53\xbb\x6b",
)
_MARKS = (*_BOXES.split(), *_EBML)

_Rng = np.random.Generator


def _flips(data: bytearray, other: bytes, rng: _Rng) -> None:
    """Single bits anywhere."""
    for at in rng.integers(len(data), size=int(rng.integers(1, 65))):
        data[at] ^= 1 << int(rng.integers(8))


def _header_flips(data: bytearray, other: bytes, rng: _Rng) -> None:
    """Bytes near the parts that say how the file is to be read."""
    for _ in range(int(rng.integers(1, 9))):
        data[_in_header(data, rng)] = int(rng.integers(256))


def _fields(data: bytearray, other: bytes, rng: _Rng) -> None:
    """Sizes and counts of the header at their extremes."""
    for _ in range(int(rng.integers(1, 4))):
        at = min(_in_header(data, rng), len(data) - 4)
        data[at : at + 4] = struct.pack(">I", int(rng.choice(_EXTREMES)))


def _noise(data: bytearray, other: bytes, rng: _Rng) -> None:
    """A run of other bytes."""
    begin, end = _run(data, rng)
    data[begin:end] = rng.bytes(end - begin)


def _zeros(data: bytearray, other: bytes, rng: _Rng) -> None:
    """A run of zeros: a block that was never written."""
    begin, end = _run(data, rng)
    data[begin:end] = bytes(end - begin)


def _cut(data: bytearray, other: bytes, rng: _Rng) -> None:
    """The end is missing."""
    del data[int(rng.integers(1, len(data))) :]


def _cut_front(data: bytearray, other: bytes, rng: _Rng) -> None:
    """The beginning is missing."""
    del data[: int(rng.integers(1, len(data)))]


def _hole(data: bytearray, other: bytes, rng: _Rng) -> None:
    """A piece is missing."""
    begin, end = _run(data, rng)
    del data[begin:end]


def _twice(data: bytearray, other: bytes, rng: _Rng) -> None:
    """A piece is there twice."""
    begin, end = _run(data, rng)
    data[end:end] = data[begin:end]


def _inserted(data: bytearray, other: bytes, rng: _Rng) -> None:
    """Bytes that do not belong there."""
    at = int(rng.integers(len(data)))
    data[at:at] = rng.bytes(int(rng.integers(1, 2048)))


def _shuffled(data: bytearray, other: bytes, rng: _Rng) -> None:
    """Two blocks of a disk in each other's place."""
    size = min(4096, len(data) // 4)
    first, second = sorted(int(at) for at in rng.integers(len(data) - 2 * size, size=2))
    second += size
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )


def _spliced_header(data: bytearray, other: bytes, rng: _Rng) -> None:
    """The first bytes of another file."""
    size = int(rng.integers(8, min(_HEAD_BYTES, len(data), len(other))))
    data[:size] = other[:size]


def _spliced_tail(data: bytearray, other: bytes, rng: _Rng) -> None:
    """The end of another file."""
    at = int(rng.integers(1, len(data)))
    data[at:] = other[int(at / len(data) * len(other)) :]


KINDS: dict[str, Callable[[bytearray, bytes, _Rng], None]] = {
    "flips": _flips,
    "header-flips": _header_flips,
    "fields": _fields,
    "noise": _noise,
    "zeros": _zeros,
    "cut": _cut,
    "cut-front": _cut_front,
    "hole": _hole,
    "twice": _twice,
    "inserted": _inserted,
    "shuffled": _shuffled,
    "spliced-header": _spliced_header,
    "spliced-tail": _spliced_tail,
}


def mutated(number: int, files: Sequence[Path], *, seed: int) -> tuple[str, bytes]:
    """(name, bytes) of damaged copy `number`: each kind and each file come equally often.

    The name tells number, kind and the file that it is a copy of, whose suffix it keeps. `files`: of at least 16 bytes.
    """
    rng = np.random.default_rng([seed, number])
    kind = list(KINDS)[number % len(KINDS)]
    source = files[number // len(KINDS) % len(files)]
    other = files[int(rng.integers(len(files)))]
    data = bytearray(source.read_bytes())
    KINDS[kind](data, other.read_bytes(), rng)
    return f"{number:04d}-{kind}-{source.name}", bytes(data)


def _in_header(data: bytearray, rng: _Rng) -> int:
    """A place within 200 bytes behind one of the marks of the file, or within its first bytes."""
    starts = [0, *(at for mark in _MARKS if (at := data.find(mark)) >= 0)]
    return min(int(rng.choice(starts)) + int(rng.integers(200)), len(data) - 1)


def _run(data: bytearray, rng: _Rng) -> tuple[int, int]:
    """A run of 1 byte to a quarter of the file, short ones as often as long ones."""
    length = int(np.exp(rng.uniform(0, np.log(max(2, len(data) // 4)))))
    begin = int(rng.integers(len(data) - length + 1))
    return begin, begin + length
