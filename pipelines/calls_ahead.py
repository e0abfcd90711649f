"""Which decode actor is asked for which segment next: all of them are to be at work, with so many frames in memory at most.

Segments are consumed in order, and decoded by many at a time. So whatever is asked for goes by the order of consumption: an
actor is asked for a span when it has nothing else to begin, the next one that nobody has. It is never asked for more than it
will soon begin, since a span that waits behind another one of the same actor keeps the encoder waiting, and with it all others.
Filling up one actor after another gave 536, 176 and 308 frames/s with 256, 512 and 1,024 MB of frames, where 15 actors slept
as long as they would decode, and an encoder that takes 693; this gives 527, 540 and 531 (`benchmarks.decode_ahead`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipelines.decode_process import DecodeProcess, Span

# Calls that an actor may have to answer: one that it is at, and one that it goes on with while the encoder is busy.
PENDING = 2
# Segments that an actor may have decoded, or be at, whatever others have: with one it would wait for the encoder each time.
ALWAYS = 2


def calls_ahead(
    spans: Sequence[Span],
    decoders: Sequence[DecodeProcess],
    *,
    pending: Mapping[DecodeProcess, int],
    each: int,
    count: int,
) -> Iterator[tuple[DecodeProcess, Span]]:
    """(actor, span) for each segment to ask for now, `spans` being all that are to come in order of consumption.

    `pending`: calls of each actor that it has not answered. A span that no actor has is the given one's from then on. Of
    `count` actors that there are to be, those that are up may have `each` x `count` segments together under way or decoded
    and not consumed, less ALWAYS for each that is not up, and twice `each` alone: one that has died answers all calls at once.
    Spans that were another actor's, lost since, come on top of that.
    """
    always = min(ALWAYS, each)
    owners = {span: decoder for decoder in decoders for span in decoder.spans}
    # Of each actor the spans of which there is more to ask for: one at a time, but for those that were another one's.
    unfinished: dict[DecodeProcess, set[Span]] = {decoder: set() for decoder in decoders}
    for span, decoder in owners.items():
        if span.to_issue and not span.video.error:
            unfinished[decoder].add(span)
    calls = dict(pending)
    loads = {decoder: decoder.load for decoder in decoders}
    # What is left when each has ALWAYS.
    used = sum(max(0, load - always) for load in loads.values())
    spare = (each - always) * max(count, len(decoders)) - used

    def room(decoder: DecodeProcess, span: Span, asked: int) -> bool:
        if calls[decoder] >= PENDING:
            return False
        if span.inherited:
            return len(span.calls) + asked < always
        return loads[decoder] < always or (spare > 0 and loads[decoder] < 2 * each)

    full = False
    for span in spans:
        owner = owners.get(span)
        # Of a long video hundreds of spans are to come.
        if (owner is None and full) or not span.to_issue:
            continue
        if owner is None:
            free = [
                other
                for other in decoders
                if not unfinished[other] and other.may_have(span.video) and room(other, span, 0)
            ]
            if not free:
                full = not span.video.at_home
                continue
            owner = min(free, key=lambda other: (calls[other], loads[other]))
        asked, left = 0, span.to_issue
        while asked < left and room(owner, span, asked):
            asked += 1
            calls[owner] += 1
            if not span.inherited:
                spare -= loads[owner] >= always
                loads[owner] += 1
            yield owner, span
        if asked < left:
            unfinished[owner].add(span)
        else:
            unfinished[owner].discard(span)
