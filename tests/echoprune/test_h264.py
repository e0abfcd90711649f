"""IDR slices told from other slices in both packet layouts, by hand and in real packets."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from echoprune.h264 import holds_idr, is_referred_to
from tests.clips import CLIPS, write

_AVCC = bytes([1, 100, 0, 31, 0xFF])  # lengths of 4 bytes
_SPS, _IDR, _OTHER = b"\x67\0\0", b"\x65\1\2\3", b"\x41\1\2\3"


def _lengths(*units: bytes, size: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(size, "big") + unit for unit in units)


def test_length_prefixed() -> None:
    assert holds_idr(_lengths(_SPS, _IDR), extradata=_AVCC)
    assert not holds_idr(_lengths(_SPS, _OTHER), extradata=_AVCC)
    assert holds_idr(_lengths(_SPS, _IDR, size=2), extradata=bytes([1, 100, 0, 31, 0xFD]))
    assert not holds_idr(b"", extradata=_AVCC)
    assert not holds_idr(b"\0\0\0\x09\x41", extradata=_AVCC)  # longer than the packet


def test_start_codes() -> None:
    assert holds_idr(b"\0\0\0\1" + _SPS + b"\0\0\1" + _IDR, extradata=b"")
    assert not holds_idr(b"\0\0\0\1" + _SPS + b"\0\0\1" + _OTHER, extradata=b"")
    assert not holds_idr(b"\0\0\1", extradata=b"")


@pytest.mark.parametrize(
    ("name", "fresh"), [("bframes.mp4", 5), ("bframes.mkv", 5), ("stream.ts", 5), ("refresh.mkv", 1)]
)
def test_real_packets(name: str, fresh: int, tmp_path: Path) -> None:
    with av.open(str(write(CLIPS[name], tmp_path))) as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata or b"")
        found = [
            (packet.is_keyframe, holds_idr(bytes(packet), extradata=extradata))
            for packet in container.demux(stream)
            if packet.size
        ]
    assert sum(idr for _, idr in found) == fresh
    assert sum(key for key, _ in found) == 5


def test_what_nothing_refers_to() -> None:
    b_slice, delimiter, sei = b"\x01\x9e\x21", b"\x09\xf0", b"\x06\x05\x01"
    for packet in (
        _lengths(b_slice),
        _lengths(delimiter, b_slice, b_slice),
        _lengths(sei, b_slice),
    ):
        assert not is_referred_to(packet, extradata=_AVCC)
        # Damaged in the length of a part: not to be trusted.
        assert is_referred_to(packet[:-1], extradata=_AVCC)
        assert is_referred_to(packet + b"\0", extradata=_AVCC)
        assert is_referred_to(packet + b"\0\0\0\0", extradata=_AVCC)
    for packet in (
        _lengths(_OTHER),
        _lengths(_IDR),
        _lengths(_SPS, b_slice),
        _lengths(b_slice, b"\x41\x9e"),
        _lengths(b"\x81\x9e\x21"),
        _lengths(delimiter),
        b"",
    ):
        assert is_referred_to(packet, extradata=_AVCC)
    assert not is_referred_to(b"\0\0\0\1" + delimiter + b"\0\0\1" + b_slice, extradata=b"")
    assert is_referred_to(b"\0\0\0\1" + delimiter + b"\0\0\1" + _OTHER, extradata=b"")
