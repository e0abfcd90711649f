"""What Ray's errors say of an actor; and one that Ray ends since the node's memory is full."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import ray

from echoprune.models import frame_layout
from echoprune.sample import Sampling
from pipelines.crew import Crew
from pipelines.decode_actor import DecodeActor, Opened, VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.decoders import Decoders
from pipelines.places import Place, Places
from pipelines.ray_errors import ANSWERED, GONE, RAYS_OWN
from pipelines.ray_session import session
from tests.clips import Clip, even, write
from tests.pipelines.misbehaving import swell


def test_every_error_of_ray_says_one_thing() -> None:
    """One that comes with another version of Ray must be judged before it is met."""
    known = vars(ray.exceptions).values()
    errors = {each for each in known if isinstance(each, type) and issubclass(each, ray.exceptions.RayError)}
    said = {error: [issubclass(error, each) for each in (GONE, ANSWERED, RAYS_OWN)] for error in errors}
    assert len(said) > 30
    assert {error for error, what in said.items() if sum(what) != 1} == {ray.exceptions.RayError}


class SwellingOnce(DecodeActor):
    """A decode actor whose first process takes more and more memory on the video of 300 frames."""

    def begin(self, span: int, opened: Opened, first_cell: int, stop_cell: int, decoder: str) -> None:
        super().begin(span, opened, first_cell, stop_cell, decoder)
        note = Path(opened.info.uri).with_suffix(".swelled")
        if note.name == "300.swelled" and not note.exists():
            note.touch()
            self._spans[span] = swell(self._spans[span], blocks=110, each_s=0.03, then_s=10.0)


@pytest.mark.long
def test_a_decoder_that_ray_ends_for_memory_costs_no_video(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    used = memory["MemTotal"] - memory["MemAvailable"]
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(used + (2600 << 20)) / memory['MemTotal']:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    uris = [str(write(Clip(f"{frames}.mp4", even(frames)), tmp_path)) for frames in (300, 100, 25)]
    opener = VideoOpener(
        frame_layout(str(tiny), max_pixels=20_000), Sampling(fps=Fraction(4)), segment_cells=2
    )
    made = []

    def make(place: Place) -> object:
        made.append(ray.remote(SwellingOnce).options(num_cpus=0.1, max_restarts=0).remote(opener))
        return made[-1]

    with session(None, object_store_bytes=200 << 20):
        people = Crew(encoders=1, decoders=1, gpus_each=0, threads=1, share=2)
        places = Places(people, ray.get_runtime_context().get_node_id())
        pool = DecodePool(Decoders(make, places, count=1), lookahead=lambda _: 2, timeout_s=60.0)
        cells = []
        for video in pool.videos(uris, decoder="auto"):
            video.open()
            cells.append(sum(segment.cells for segment in video.segments()))
        with pytest.raises(ray.exceptions.OutOfMemoryError):
            ray.get(made[0].ready.remote())
        pool.close()
    assert cells == [24, 8, 2] and len(made) == 2
