"""The rule of how many decoders an encoder gets: by hand, and against a simulated encoder."""

from __future__ import annotations

import pytest

from pipelines.growth import WINDOW_S, WINDOW_SEGMENTS, Growth, Pace, Rates, helped, wanted


def measured(decoders: int, *, decode: float, encode: float, seconds: float = 40.0) -> Rates:
    """What is measured of an encoder that takes `encode` segments a second from decoders that give `decode` each."""
    delivered = min(encode, decoders * decode)
    busy_s = seconds * delivered / encode
    return Rates(round(seconds * delivered), seconds - busy_s, busy_s)


@pytest.mark.parametrize(
    ("decoders", "decode", "encode", "count"),
    [
        (8, 1.0, 8.0, 8),  # just enough
        (8, 1.0, 7.0, 8),  # more than enough: none is taken away
        (8, 1.0, 10.0, 10),  # by hand: 10 segments a second are taken, each decoder gives one
        (8, 2.0, 25.0, 13),  # 12.5 decoders
        (8, 1.0, 15.0, 15),
        (8, 1.0, 16.0, 16),
        (8, 1.0, 100.0, 16),  # at most twice as many at once
        (1, 1.0, 1.5, 2),
        (1, 1.0, 9.0, 2),
        (20, 1.0, 21.0, 20),  # a wait of 4.8 % is none
        (20, 1.0, 22.0, 22),
    ],
)
def test_as_many_as_the_encoder_takes(decoders: int, decode: float, encode: float, count: int) -> None:
    assert wanted(decoders, measured(decoders, decode=decode, encode=encode), most=1000) == count


@pytest.mark.parametrize(("most", "count"), [(1000, 16), (11, 11), (8, 8), (3, 8), (0, 8)])
def test_never_more_than_there_is_room_for_and_never_fewer_than_there_are(most: int, count: int) -> None:
    assert wanted(8, measured(8, decode=1.0, encode=100.0), most=most) == count


@pytest.mark.parametrize("rates", [Rates(0, 0.0, 0.0), Rates(0, 30.0, 0.0), Rates(0, 0.0, 30.0)])
def test_nothing_delivered_says_nothing_about_decoders(rates: Rates) -> None:
    assert wanted(4, rates, most=100) == 4


def test_an_encoder_that_takes_no_time_gets_twice_as_many() -> None:
    assert wanted(4, Rates(100, 30.0, 0.0), most=100) == 8


def test_what_helped() -> None:
    before = measured(8, decode=1.0, encode=16.0)
    assert helped(before, measured(16, decode=1.0, encode=16.0), decoders=8, added=8)
    # The disk gives 8 segments a second, however many ask for them.
    assert not helped(before, measured(16, decode=0.5, encode=16.0), decoders=8, added=8)
    # A quarter of what was promised is just enough.
    assert helped(before, measured(16, decode=10.1 / 16, encode=16.0), decoders=8, added=8)
    assert not helped(before, measured(16, decode=9.9 / 16, encode=16.0), decoders=8, added=8)
    # Other videos, slower to encode: no more came, since no more is needed.
    assert helped(before, measured(16, decode=1.0, encode=6.0), decoders=8, added=8)


def test_a_stretch_is_long_enough_and_has_enough_segments() -> None:
    growth = Growth()
    assert growth.is_due(Rates(WINDOW_SEGMENTS, WINDOW_S / 2, WINDOW_S / 2))
    assert not growth.is_due(Rates(WINDOW_SEGMENTS, WINDOW_S / 2, WINDOW_S / 3))
    assert not growth.is_due(Rates(WINDOW_SEGMENTS - 1, WINDOW_S, WINDOW_S))


@pytest.mark.parametrize(
    ("start", "decode", "encode", "most", "end"),
    [(15, 1.0, 100.0, 1000, 100), (2, 1.0, 33.0, 1000, 33), (7, 3.0, 20.0, 1000, 7), (1, 1.0, 50.0, 12, 12)],
)
def test_growth_ends_where_the_encoder_is_busy(
    start: int, decode: float, encode: float, most: int, end: int
) -> None:
    growth, count = Growth(), start
    for _ in range(10):
        count = growth.next(count, measured(count, decode=decode, encode=encode), most=most)
    # Within the share of waiting that counts as none.
    assert 0.95 * end <= count <= end


def test_decoders_that_do_not_help_are_added_ever_more_slowly() -> None:
    growth, count, seconds = Growth(), 2, 0.0
    while count < 64:
        stretch = next(s for s in range(1, 10_000) if growth.is_due(Rates(WINDOW_SEGMENTS, s - 1.0, 1.0)))
        seconds += stretch
        # Two segments a second come, however many decoders there are; the encoder would take eight.
        count = growth.next(count, measured(count, decode=2 / count, encode=8.0, seconds=stretch), most=1000)
    assert seconds == WINDOW_S * (1 + 1 + 2 + 4 + 8)
    # One that helps brings the first pace back.
    growth.next(count, measured(count, decode=1.0, encode=8.0), most=1000)
    assert growth.is_due(Rates(WINDOW_SEGMENTS, WINDOW_S, 0.0))


def test_the_stopwatch() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    for step, note in ((1, pace.worked), (2, pace.waited), (4, pace.skip), (8, pace.worked), (16, pace.skip)):
        now[0] += step
        note()
    now[0] += 32
    pace.waited(segments=3)
    assert pace.rates == Rates(3, waited_s=34.0, busy_s=9.0)
    assert pace.rates.seconds == 43.0 and pace.rates.idle == 34 / 43
    pace.begin()
    assert pace.rates == Rates(0, 0.0, 0.0)
