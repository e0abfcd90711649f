"""Which decode actor is asked for what: all at work, in order of consumption, within bounds. No Ray: nothing is called."""

from __future__ import annotations

from collections import Counter, deque

import pytest

from pipelines.calls_ahead import ALWAYS, PENDING, calls_ahead
from pipelines.decode_process import DecodeProcess, Span, Video

CELLS = 8


def processes(count: int) -> list[DecodeProcess]:
    return [DecodeProcess(handle=None, pid=index, node_id="here") for index in range(count)]


def spans(*segments: int) -> list[Span]:
    return [
        Span(Video(f"{index}.mp4", "auto"), 0, CELLS * each, CELLS) for index, each in enumerate(segments)
    ]


class Simulated:
    """Actors that take `decode` ticks for a segment and `begin` more for a span; one tick of the encoder is a segment."""

    def __init__(
        self, todo: list[Span], decoders: list[DecodeProcess], *, each: int, decode: int, begin: int
    ) -> None:
        self.todo, self.decoders, self.each = deque(todo), decoders, each
        self.decode, self.begin = decode, begin
        self.ready: dict[object, int] = {}  # call: the tick at which it is answered
        self.free = dict.fromkeys(decoders, 0)
        self.now = self.consumed = self.held = 0

    def pump(self) -> None:
        pending = {
            decoder: sum(self.ready[ref] > self.now for ref, _, _ in decoder.calls)
            for decoder in self.decoders
        }
        asked = calls_ahead(
            list(self.todo),
            self.decoders,
            pending=pending,
            each=self.each,
            count=len(self.decoders),
        )
        for decoder, span in list(asked):
            if span not in decoder.spans:
                decoder.spans.append(span)
            starts = max(self.now, self.free[decoder]) + (0 if span.begun else self.begin)
            span.begun = True
            ref = object()
            self.ready[ref] = self.free[decoder] = starts + self.decode
            span.calls.append(ref)
            decoder.calls.append((ref, span.video, span))
        self.held = max(self.held, sum(decoder.load for decoder in self.decoders))

    def run(self) -> int:
        """Ticks until all is consumed."""
        while self.todo:
            self.pump()
            span = self.todo[0]
            self.now += 1
            if span.calls and self.ready[span.calls[0]] <= self.now:
                owner = next(each for each in self.decoders if span in each.spans)
                ref = span.calls.popleft()
                owner.calls = deque(call for call in owner.calls if call[0] is not ref)
                span.next_cell += CELLS
                self.consumed += 1
                if span.next_cell >= span.stop_cell:
                    owner.spans.remove(span)
                    self.todo.popleft()
        return self.now


@pytest.mark.parametrize("each", [2, 3, 5, 7, 12])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 40])
def test_all_are_at_work_however_spans_and_memory_fit(each: int, length: int) -> None:
    count, decode = 15, 12
    # As the pool cuts videos: about `each` segments a span.
    parts = -(-length // each)
    pieces = [length // parts + (index < length % parts) for index in range(parts)]
    todo = spans(*(pieces * (600 // length)))
    simulated = Simulated(todo, processes(count), each=each, decode=decode, begin=1)
    segments = sum(span.to_issue for span in todo)
    # The encoder takes one a tick; the actors together 15 in 12 ticks, less what it takes them to begin.
    least = max(segments, (segments * decode + len(todo)) / count)
    ticks = simulated.run()
    assert simulated.consumed == segments
    assert simulated.held <= max(each, ALWAYS) * count
    # With no more than what each must have, an actor waits for the encoder in the middle of its spans.
    assert ticks <= least * (1.25 if each > ALWAYS else 2.0) + 4 * decode


def test_what_is_consumed_first_is_asked_for_first_one_span_an_actor() -> None:
    todo, decoders = spans(3, 3, 3), processes(2)
    asked = list(calls_ahead(todo, decoders, pending=dict.fromkeys(decoders, 0), each=3, count=2))
    assert [(decoder.pid, todo.index(span)) for decoder, span in asked] == [(0, 0), (0, 0), (1, 1), (1, 1)]
    assert max(Counter(decoder.pid for decoder, _ in asked).values()) == PENDING


def test_one_that_has_calls_to_answer_is_not_asked_for_more() -> None:
    todo, decoders = spans(5), processes(2)
    pending = {decoders[0]: PENDING, decoders[1]: PENDING - 1}
    asked = list(calls_ahead(todo, decoders, pending=pending, each=4, count=2))
    assert [decoder.pid for decoder, _ in asked] == [1]


def test_memory_that_others_fill_leaves_each_its_own() -> None:
    todo, decoders = spans(9, 9), processes(2)
    first = todo[0]
    decoders[0].spans.append(first)
    for _ in range(6):
        ref = object()
        first.calls.append(ref)
        decoders[0].calls.append((ref, first.video, first))
    asked = list(calls_ahead(todo, decoders, pending=dict.fromkeys(decoders, 0), each=3, count=2))
    assert [(decoder.pid, todo.index(span)) for decoder, span in asked] == [(1, 1)] * ALWAYS


def test_a_video_that_must_be_at_home_is_asked_of_an_actor_there() -> None:
    todo, decoders = spans(2, 2), processes(2)
    todo[0].video.at_home = True
    decoders[0].home = False
    asked = list(calls_ahead(todo, decoders, pending=dict.fromkeys(decoders, 0), each=2, count=2))
    assert {(decoder.pid, todo.index(span)) for decoder, span in asked} == {(1, 0), (0, 1)}


def test_what_was_another_ones_comes_on_top_of_the_bound() -> None:
    todo, decoders = spans(3, 3), processes(1)
    lost, own = todo
    lost.inherited = True
    decoders[0].spans += [lost, own]
    for _ in range(2):
        ref = object()
        own.calls.append(ref)
        decoders[0].calls.append((ref, own.video, own))
    asked = list(calls_ahead(todo, decoders, pending={decoders[0]: 0}, each=2, count=1))
    assert [todo.index(span) for _, span in asked] == [0, 0]


def test_room_is_left_for_actors_that_are_still_to_come() -> None:
    # 8 are to be, one is up; then the others come, each with nothing.
    todo, decoders = spans(*[30] * 8), processes(8)

    def fill(up: list[DecodeProcess]) -> None:
        for _ in range(100):
            asked = list(calls_ahead(todo, up, pending=dict.fromkeys(up, 0), each=3, count=8))
            for decoder, span in asked:
                if span not in decoder.spans:
                    decoder.spans.append(span)
                span.calls.append(object())
                decoder.calls.append((span.calls[-1], span.video, span))

    fill(decoders[:1])
    assert decoders[0].load == 2 * 3
    fill(decoders)
    assert sum(decoder.load for decoder in decoders) == 3 * 8


def test_one_that_answers_all_at_once_since_it_is_dead_takes_no_more_than_twice_its_share() -> None:
    todo, decoders = spans(*[40] * 4), processes(4)
    pending = dict.fromkeys(decoders, PENDING) | {decoders[1]: 0}
    for _ in range(100):
        for decoder, span in list(calls_ahead(todo, decoders, pending=pending, each=16, count=4)):
            if span not in decoder.spans:
                decoder.spans.append(span)
            span.calls.append(object())
            decoder.calls.append((span.calls[-1], span.video, span))
    assert [decoder.load for decoder in decoders] == [0, 32, 0, 0]


def test_one_in_the_middle_of_its_own_span_begins_no_other_when_it_has_asked_for_one_it_inherited() -> None:
    todo, decoders = spans(1, 5, 5), processes(1)
    lost, own, later = todo
    lost.inherited = True
    decoders[0].spans += [own, lost]
    asked = list(calls_ahead([lost, later], decoders, pending={decoders[0]: 0}, each=4, count=1))
    assert [todo.index(span) for _, span in asked] == [0]
