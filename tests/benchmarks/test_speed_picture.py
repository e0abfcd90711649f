"""What the README says of speed is what was measured, and the picture can be drawn from it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.speed_picture import main, ratios

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "benchmarks" / "results" / "h200.json"


def test_the_readme_has_the_ratios_that_were_measured() -> None:
    found = dict(ratios(json.loads(MEASURED.read_text(encoding="utf-8"))))
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/speed.md"))
    assert len(found) == 9
    assert f"x {found['qwen2_5_vl: fast tower, plain tower']:.1f} |" in readme
    assert f"x {found['prefill: 5 % of 40,960 tokens, all']:.0f} |" in readme
    assert f"x {found['prefill: 5 % of 81,920 tokens, all']:.0f} |" in readme
    assert f"x {found['decode step, batch 1: fast, library']:.1f} |" in readme
    assert f"x {found['answers: 64 slots, library one by one']:.1f} |" in readme
    for count in (1, 16):
        assert f"x {found[f'question, {count} at a time: from the store, plain call']:.0f}" in readme
    for family in ("qwen2_5_vl", "qwen3_vl", "llava_onevision"):
        assert f"x {found[f'{family}: fast tower, plain tower']:.1f}" in page


def test_the_readme_has_the_index_that_was_measured() -> None:
    record = json.loads(MEASURED.read_text(encoding="utf-8"))["parts"]["index_fast"]["record"]
    found, clips = record["results"], record["options"]["clips"]
    alone, index = found["encode"], found["index"]
    frames = alone["frames"] / record["options"]["alone"]
    rate = clips * frames / sum(index["report"]["worker_s"].values())
    of_encoding = rate / (alone["frames"] / alone["clock_s"])
    hours = index["steady"]["videos_by_s"] * record["options"]["seconds"]
    row = f"| {alone['frames'] / alone['clock_s']:.0f} (the encoding alone) | {rate:.0f}; {hours:.0f} hours of video an hour | {of_encoding:.0%} |"
    assert row.replace("%", " %") in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_leaves_out_what_did_not_run(tmp_path: Path) -> None:
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    measured["parts"]["prefill"] = {"status": "exit code 1", "seconds": 1.0}
    assert len(ratios(measured)) == 7
    (tmp_path / "some.json").write_text(json.dumps(measured))
    assert main([str(tmp_path / "some.json"), str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").read_bytes()[1:4] == b"PNG"
