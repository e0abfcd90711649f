"""Which H.264 packets really are fresh starts, and which nothing refers to. Nothing else of the bitstream is read."""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR_SLICE = 1, 5
# Access unit delimiter, supplemental information, filler: of no picture.
_NO_PICTURE = frozenset({6, 9, 12})


def holds_idr(packet: bytes, *, extradata: bytes) -> bool:
    """Whether a packet holds an IDR slice: nothing after it refers to anything before.

    Containers also mark recovery points and the waves of periodic intra refresh as keyframes. Decoding from one of
    those lost the first frames, and decord then returned every later frame of the group under a wrong index, without
    an error. `extradata`: the stream's; it tells length-prefixed packets (MP4, Matroska) from start codes (MPEG-TS).
    """
    return any(header & 31 == _IDR_SLICE for header in _headers(packet, extradata) if header is not None)


def is_referred_to(packet: bytes, *, extradata: bytes) -> bool:
    """Whether another picture may refer to that of a packet; False only for a sound packet of slices that say no (nal_ref_idc 0).

    A packet whose parts do not add up to it is damaged: what it says of itself is not trusted.
    """
    slices = 0
    for header in _headers(packet, extradata):
        # The topmost bit is always 0.
        if header is None or header & 0x80:
            return True
        if header & 31 == _SLICE and not header & 0x60:
            slices += 1
        elif header & 31 not in _NO_PICTURE:
            return True
    return slices == 0


def _headers(packet: bytes, extradata: bytes) -> Iterator[int | None]:
    """The first byte of each of a packet's units; None where a unit reaches beyond the packet, or is empty."""
    if len(extradata) > 4 and extradata[0] == 1:
        yield from _in_lengths(packet, size=(extradata[4] & 3) + 1)
        return
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        yield packet[at + 3]
        at = packet.find(b"\0\0\1", at + 3)


def _in_lengths(packet: bytes, *, size: int) -> Iterator[int | None]:
    at = 0
    while at < len(packet):
        begin = at + size
        at = begin + int.from_bytes(packet[at:begin], "big")
        if begin < min(at, len(packet)):
            yield packet[begin]
        if at == begin or at > len(packet):
            yield None
