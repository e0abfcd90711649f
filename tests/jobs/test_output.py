"""What commands print: names from outside, with brackets and line ends in them, and nothing cut off."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from jobs.cli import main
from jobs.index import summary
from jobs.progress import bar_on, rates, shown
from tests import stores as made

WIDE = {"COLUMNS": "250"}


def call(*arguments: str | Path) -> tuple[int, str, list[str]]:
    result = CliRunner().invoke(main, [str(each) for each in arguments], env=WIDE)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store whose path, videos and failures hold what rich takes for markup."""
    folder = tmp_path / "c[" / "x]"
    settings = made.settings()
    storage = made.create_store(folder, settings)
    clips = [made.clip("/archive/[red]a.mp4", settings)]
    made.write_shard(
        storage, settings, clips, failed=["/archive/b[/x] :smile:.mp4", "/archive/two\nlines.mp4"]
    )
    return folder


@pytest.mark.parametrize("option", [(), ("--failures",)])
def test_status_names_each_video_as_it_is_called(store: Path, option: tuple[str, ...]) -> None:
    code, out, _ = call("status", store, *option)
    assert code == 3
    assert out.splitlines()[0] == str(store)
    assert "/archive/b[/x] :smile:.mp4" in out and "no such file" in out
    assert ("/archive/two\\nlines.mp4" in out) == bool(option)


def test_status_of_no_store_with_brackets(tmp_path: Path) -> None:
    code, _, err = call("status", tmp_path / "c[" / "x]")
    assert code == 2 and len(err) == 1 and "c[/x] is no store" in err[0]


@pytest.mark.parametrize(
    ("video", "says"),
    [
        ("nothing.mp4", "no video 'nothing.mp4' among the 3"),
        ("\udcff.mp4", "no video"),
        (
            "/archive/b[/x] :smile:.mp4",
            "/archive/b[/x] :smile:.mp4 failed (missing: no such file) and has no tokens",
        ),
    ],
)
def test_inspecting_what_is_not_there_is_wrong_usage(store: Path, video: str, says: str) -> None:
    code, _, err = call("inspect", store, video)
    assert code == 2 and len(err) == 1 and says in err[0] and "retry" not in err[0]


def report(
    *, failures: list[tuple[str, str, str]], failed: int, done: int, left_out: int = 0
) -> dict[str, Any]:
    run = {
        "videos": {"of": done, "done": done}, "failures": failures, "failures_left_out": left_out, "video_hours": 0.1,
        "elapsed_s": 9.0, "video_hours_per_hour": 40.0, "tokens_seen": 100, "tokens_kept": 25, "store_bytes": 1000,
    }  # fmt: skip
    return {
        "run": run,
        "store": {"ok": 1, "partial": 0, "failed": failed},
        "config": {"store": "/tmp/s"},
    }


def test_a_summary_has_one_line_for_each_thing_it_says() -> None:
    failure = ("/v/two\nlines.mp4", "missing", "/v/two lines.mp4: no such file")
    lines = summary(report(failures=[failure], failed=1, done=2))
    assert not any("\n" in line for line in lines)
    assert any("two\\nlines.mp4" in line for line in lines)
    assert not any("not tried again" in line for line in lines)


def test_a_summary_says_that_failed_videos_were_left_as_they_are() -> None:
    lines = summary(report(failures=[], failed=2, done=0))
    assert lines[0].startswith("nothing to do")
    assert "2 failed videos of earlier runs were not tried again" in lines
    one = summary(report(failures=[("/v/a.mp4", "empty", "0 bytes")], failed=2, done=1))
    assert "1 failed video of earlier runs was not tried again" in one
    many = summary(report(failures=[("/v/a.mp4", "empty", "0 bytes")] * 6, left_out=7, failed=14, done=1))
    assert "  and 8 more" in many and "1 failed video of earlier runs was not tried again" in many


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_progress_bar_is_cut_at_no_width(width: int) -> None:
    snapshot = {
        "tokens_seen": 123_400_000, "tokens_kept": 30_900_000, "failed": 12, "eta_s": 30_000.0,
        "video_hours_per_hour": 1234.5,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bar = bar_on(console, "videos")
    bar.add_task("", total=12345, completed=678, words=rates(snapshot))
    console.print(bar.get_renderable())
    printed = console.file.getvalue()
    assert "…" not in printed and "678/12345" in printed
    for word in rates(snapshot).split():
        assert word in printed


def test_what_comes_from_outside_stays_on_its_line() -> None:
    assert shown("a\nb\x1b[31m\u2028c ä☃.mp4") == "a\\nb\\x1b[31m\\u2028c ä☃.mp4"
