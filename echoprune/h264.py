"""Which H.264 keyframes really are fresh starts. Nothing else of the bitstream is read."""

from __future__ import annotations

_IDR_SLICE = 5


def holds_idr(packet: bytes, *, extradata: bytes) -> bool:
    """Whether a packet holds an IDR slice: nothing after it refers to anything before.

    Containers also mark recovery points and the waves of periodic intra refresh as keyframes. Decoding from one of
    those lost the first frames, and decord then returned every later frame of the group under a wrong index, without
    an error. `extradata`: the stream's; it tells length-prefixed packets (MP4, Matroska) from start codes (MPEG-TS).
    """
    if len(extradata) > 4 and extradata[0] == 1:
        return _in_lengths(packet, size=(extradata[4] & 3) + 1)
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
        if packet[at + 3] & 31 == _IDR_SLICE:
            return True
        at = packet.find(b"\0\0\1", at + 3)
    return False


def _in_lengths(packet: bytes, *, size: int) -> bool:
    at = 0
    while at + size < len(packet):
        if packet[at + size] & 31 == _IDR_SLICE:
            return True
        at += size + int.from_bytes(packet[at : at + size], "big")
    return False
