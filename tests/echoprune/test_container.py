"""Reading packets of files that change half way."""

from __future__ import annotations

from pathlib import Path

import av

from echoprune.container import open_video, packets_of
from echoprune.probe import scan_video
from tests.clips import Clip, even, write

EMPTY_PACKETS = (
    b"\x47\x1f\xff\x10" + b"\xff" * 184
) * 20_000  # 3.8 MB, more than FFmpeg looks through at the end


def joined(folder: Path) -> Path:
    """A transport stream that has sound from 16 s to 18 s only, too far in for the first look at the file."""
    silent = write(Clip("silent.ts", even(400)), folder)
    sound = write(Clip("sound.ts", even(50, start_ms=16_000), audio_s=2.0), folder)
    last = write(Clip("last.ts", even(100, start_ms=18_000)), folder)
    path = folder / "joined.ts"
    path.write_bytes(
        silent.read_bytes() + 2 * EMPTY_PACKETS + sound.read_bytes() + EMPTY_PACKETS + last.read_bytes()
    )
    return path


def test_a_stream_that_begins_half_way_costs_no_packet_of_the_video(tmp_path: Path) -> None:
    path = joined(tmp_path)
    with av.open(str(path)) as container:
        assert len(container.streams) == 1  # else the file does not show what is meant
    with open_video(str(path)) as container:
        packets = list(packets_of(container, container.streams.video[0]))
    assert sum(packet.size > 0 for packet in packets) == 550
    info = scan_video(str(path))
    # The joints break the transport's packet counters, and so cost a packet or a group each, which is said.
    assert "packets are damaged" in info.incomplete
    assert info.end_pts * info.time_base == 22
