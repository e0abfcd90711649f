"""Questions about a scene and their answers, from its truth: what `synth` writes and the reference model learns from.

Kinds begin with `event_` where the answer shows for a few seconds alone, and with `static_` where it stands. Each comes
open or with options. `extra` says when that is: `event_start_s`, `event_end_s`, from the first of the things asked about
to the last; both None where nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from echoprune.question import Question
from echoprune.scene import COLOURS, DIRECTIONS, PLACES, SHAPES, Scene, SynthObject

KINDS = (
    "event_colour",
    "event_kind",
    "event_position",
    "event_direction",
    "event_order",
    "event_count",
    "event_time",
    "event_appeared",
    "event_caption",
    "static_colour",
    "static_kind",
    "static_position",
)
NOTHING = "Nothing happens."

_MINUTES = ("first", "second", "third")
# An event so near to the turn of a minute could be put on either side of it.
_MARGIN_S = 5.0
_OPTIONS = 4
_PLACE_NAMES = tuple(name for row in PLACES for name in row)
_WAYS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
WINDOW_S = 30.0

Shown = Callable[[SynthObject], bool]


def scene_questions(
    scene: Scene,
    rng: np.random.Generator,
    *,
    video: str,
    shown: Shown = lambda item: True,
    window_s: float | None = WINDOW_S,
) -> dict[str, list[Question]]:
    """All questions that `scene` answers, by kind, in order of time, each in a form that `rng` draws; ids are empty.

    Captions are of windows of `window_s`, one with an event and one without, of the whole scene if that is None or it is short.

    `shown`: whether enough of a thing is seen to ask about it, for clips that show a part of the scene. What is about all
    events together (count, captions) is asked if all are shown.
    """
    popups = [item for item in scene.of_role("popup") if shown(item)]
    passing = [item for item in scene.of_role("passing") if shown(item)]
    stills = [item for item in scene.of_role("still") if shown(item)]
    complete = all(shown(item) for item in scene.of_role("popup", "passing"))
    ask = _Asker(rng, video)
    found: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for item in popups:
        found["event_colour"].append(ask.colour(item, "that pops up"))
        found["event_kind"].append(ask.kind(item, "that pops up"))
        found["event_position"].append(
            ask("event_position", f"Where does the {item.name} pop up?", item.place, _PLACE_NAMES, [item])
        )
        if minute := _minute(item, scene.duration_s):
            text = f"In which minute does the {item.name} pop up?"
            found["event_time"].append(ask("event_time", text, minute, _MINUTES, [item]))
    for item in passing:
        found["event_colour"].append(ask.colour(item, "that passes by"))
        found["event_kind"].append(ask.kind(item, "that passes by"))
        text = f"Which way does the {item.name} pass by?"
        found["event_direction"].append(ask("event_direction", text, item.direction, DIRECTIONS, [item]))
    if len(popups) > 1:
        first, last = sorted(rng.permutation(len(popups))[:2].tolist())
        pair = [popups[first], popups[last]]
        named = [pair[index].name for index in rng.permutation(2)]
        text = f"Which pops up first, the {named[0]} or the {named[1]}?"
        found["event_order"].append(ask("event_order", text, pair[0].name, named, pair))
    if complete and popups:
        text = "How many things pop up?"
        counts = [str(count) for count in range(1, _OPTIONS + 1)]
        found["event_count"].append(ask("event_count", text, str(len(popups)), counts, popups, ordered=True))
    if complete:
        found["event_caption"] = _captions(scene, ask, window_s)
    if popups:
        found["event_appeared"] = _appeared(scene, popups, ask)
    for item in stills:
        found["static_colour"].append(ask.colour(item, "that stands still"))
        found["static_kind"].append(ask.kind(item, "that stands still"))
        text = f"Where does the {item.name} stand?"
        found["static_position"].append(ask("static_position", text, item.place, _PLACE_NAMES, [item]))
    return found


def caption(scene: Scene, start_s: float, end_s: float) -> str:
    """What happens in [start_s, end_s) seconds, one sentence an event in order; `NOTHING` if nothing does."""
    events = [
        item for item in scene.of_role("popup", "passing") if item.start_s < end_s and item.end_s > start_s
    ]
    sentences = []
    for item in events:
        done = f"pops up at the {item.place}" if item.role == "popup" else f"passes {_WAYS[item.direction]}"
        sentences.append(f"{_with_article(item.name).capitalize()} {done}.")
    return " ".join(sentences) or NOTHING


class _Asker:
    """Makes questions about one video, open or with options as `rng` draws."""

    def __init__(self, rng: np.random.Generator, video: str) -> None:
        self.rng = rng
        self._video = video

    def __call__(
        self,
        kind: str,
        text: str,
        answer: str,
        choices: Sequence[str],
        about: Sequence[SynthObject],
        *,
        ordered: bool = False,
    ) -> Question:
        """A question whose `answer` is one of `choices`, of which four at most become options, shuffled unless `ordered`."""
        options: tuple[str, ...] = ()
        if self.rng.random() < 0.5:
            others = [choice for choice in choices if choice != answer]
            drawn = [others[index] for index in self.rng.permutation(len(others))[: _OPTIONS - 1]]
            offered = [answer, *drawn]
            options = (
                tuple(sorted(offered, key=list(choices).index))
                if ordered
                else tuple(offered[index] for index in self.rng.permutation(len(offered)))
            )
        return self.row(kind, text, answer, about, options=options)

    def colour(self, item: SynthObject, clause: str) -> Question:
        return self(
            f"{_group(item)}_colour",
            f"What colour is the {item.shape} {clause}?",
            item.colour,
            [*COLOURS],
            [item],
        )

    def kind(self, item: SynthObject, clause: str) -> Question:
        return self(
            f"{_group(item)}_kind", f"What is the {item.colour} thing {clause}?", item.shape, SHAPES, [item]
        )

    def row(
        self,
        kind: str,
        text: str,
        answer: str,
        about: Sequence[SynthObject],
        *,
        options: tuple[str, ...] = (),
        prompt: str | None = None,
        window: tuple[float | None, float | None] = (None, None),
    ) -> Question:
        happened = [item for item in about if item.role != "still"]
        when = {
            "event_start_s": round(min(item.start_s for item in happened), 3) if happened else None,
            "event_end_s": round(max(item.end_s for item in happened), 3) if happened else None,
        }
        return Question(
            question_id="",
            video=self._video,
            question=text,
            options=options,
            answer=answer,
            kind=kind,
            prompt=prompt,
            start_s=window[0],
            end_s=window[1],
            extra=when,
        )


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _group(item: SynthObject) -> str:
    return "static" if item.role == "still" else "event"


def _minute(item: SynthObject, seconds: float) -> str | None:
    """The name of the minute in which `item` pops up; None if that is not sure, or the clip is not of two or three."""
    if not 100 <= seconds <= 60 * len(_MINUTES):
        return None
    early, late = int((item.start_s - _MARGIN_S) // 60), int((item.end_s + _MARGIN_S) // 60)
    return _MINUTES[max(early, 0)] if max(early, 0) == min(late, 2) else None


def _appeared(scene: Scene, popups: Sequence[SynthObject], ask: _Asker) -> list[Question]:
    """One question about a thing that pops up, one about a thing that is nowhere."""
    there = popups[int(ask.rng.integers(len(popups)))].name
    return [
        ask.row("event_appeared", f"Does {_with_article(name)} pop up?", answer, about, prompt="yes_no")
        for name, answer, about in (
            (there, "yes", [item for item in popups if item.name == there]),
            (_absent(scene, ask.rng), "no", []),
        )
    ]


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """The name of nothing in `scene`: as often of a colour and a kind that are there apart as of a colour that is nowhere."""
    colours, shapes, together = (
        {item.colour for item in scene.objects},
        {item.shape for item in scene.objects},
        {item.name for item in scene.objects},
    )
    names = [(colour, shape, f"{colour} {shape}") for colour in COLOURS for shape in SHAPES]
    apart = [
        name
        for colour, shape, name in names
        if colour in colours and shape in shapes and name not in together
    ]
    nowhere = [name for colour, _, name in names if colour not in colours]
    drawn = apart if apart and (not nowhere or rng.random() < 0.5) else nowhere
    return drawn[int(rng.integers(len(drawn)))]


def _captions(scene: Scene, ask: _Asker, window_s: float | None) -> list[Question]:
    """A window around an event, and one in which nothing happens, if there is room; no event is cut by their ends."""
    events = scene.of_role("popup", "passing")
    windows: list[tuple[float | None, float | None]] = [(None, None)]
    if window_s is not None and scene.duration_s > 2 * window_s:
        starts = np.arange(0.0, scene.duration_s - window_s, 1.0).tolist()
        clean = [
            start
            for start in starts
            if all(_clear(item, start) and _clear(item, start + window_s) for item in events)
        ]
        busy = [start for start in clean if caption(scene, start, start + window_s) != NOTHING]
        quiet = [start for start in clean if caption(scene, start, start + window_s) == NOTHING]
        drawn = [float(ask.rng.choice(group)) for group in (busy, quiet) if group]
        windows = [(start, start + window_s) for start in drawn]
    rows = []
    for start_s, end_s in windows:
        seen = (start_s or 0.0, scene.duration_s if end_s is None else end_s)
        about = [item for item in events if item.start_s < seen[1] and item.end_s > seen[0]]
        text = "What happens?"
        rows.append(
            ask.row(
                "event_caption", text, caption(scene, *seen), about, prompt="brief", window=(start_s, end_s)
            )
        )
    return rows


def _clear(item: SynthObject, border_s: float) -> bool:
    """Whether `item` is a second or more away from the border of a window."""
    return item.end_s + 1 <= border_s or item.start_s - 1 >= border_s
