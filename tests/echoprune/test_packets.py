"""Packets as a file lists them, against what the encoder was given."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from echoprune.container import open_video
from echoprune.packets import Packets, read_packets
from tests.clips import CLIPS, Clip, even, write


def read(path: Path) -> Packets:
    with open_video(str(path)) as container:
        return read_packets(container, container.streams.video[0])


def test_every_packet_has_its_time_and_flags(tmp_path: Path) -> None:
    packets = read(write(CLIPS["bframes.mp4"], tmp_path))
    assert sorted(np.diff(np.sort(packets.pts)).tolist()) == [packets.duration[0]] * 99
    assert not bool(np.all(np.diff(packets.pts) > 0))  # decode order
    assert (
        np.flatnonzero(packets.key).tolist() == np.flatnonzero(packets.fresh).tolist() == [0, 24, 48, 72, 96]
    )
    assert packets.timed.all() and packets.shown.all() and not packets.damaged.any()
    assert (packets.promised, packets.trouble) == (100, "")


def test_hidden_packets_are_marked(tmp_path: Path) -> None:
    clip = Clip("edited.mp4", even(60, start_ms=-1000), options={"bf": "0"})
    packets = read(write(clip, tmp_path))
    assert 0 < int((~packets.shown).sum()) <= 25


def test_a_packet_takes_a_few_bytes(tmp_path: Path) -> None:
    path = write(Clip("many.mp4", even(3000), width=32, height=32), tmp_path)
    read(path)
    tracemalloc.start()
    packets = read(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packets.pts) == 3000
    # 21 bytes each in the result, as much while reading; lists of Python objects took 130.
    assert peak < 3000 * 80, (kept, peak)
