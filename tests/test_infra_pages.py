"""Each command that a page shows is one that the real command line takes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.command_lines import ours, parse, shown

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "infra").glob("*.md"))
)
TARGETS = ("laptop", "existing-cluster", "ray-up", "kuberay")


def parsed(page: str) -> list[str]:
    """The commands that the page calls; fails, naming the line, for one that does not exist or takes no such option."""
    found = []
    for number, line in shown(ROOT / page):
        for words in ours(line):
            try:
                found.append(parse(words))
            except click.exceptions.Exit:
                found.append(words[0])  # --help, --version
            except click.UsageError as error:
                pytest.fail(f"{page}:{number}: {' '.join(words)}\n{error.format_message()}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_exists_and_takes_its_options(page: str) -> None:
    found = parsed(page)
    assert found or page not in ("README.md", "docs/answers.md", *(f"infra/{name}.md" for name in TARGETS))


def test_the_readme_shows_the_commands_that_people_need() -> None:
    found = set(parsed("README.md"))
    assert {f"echoprune {name}" for name in ("index", "plan", "status", "answer", "search")} <= found
    assert "ray job submit: python -m jobs.index" in found


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_its_page_and_the_readme_lists_it(target: str) -> None:
    page = (ROOT / "infra" / f"{target}.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    order = [headings.index(name) for name in ("Bring up", "Submit", "Watch", "Resume", "Tear down")]
    assert order == sorted(order)
    assert f"]({target}.md)" in (ROOT / "infra" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "echoprune index videos --store s --model m --no-such-option",
        "echoprune index videos --store s --model m --dtype fp64",
        "echoprune no-such-command",
        "echoprune models no-such-command",
        "python -m jobs.index videos --storee s",
        "python -m jobs.nothing",
        "ray job submit --no-such-option -- python -m jobs.index v --store s --model m",
        "ray job submit --address http://x:1 -- python -m jobs.answer s --questions q --no-such-option",
        "A=1 cat x | echoprune status --no-such-option > out 2>&1",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    (words,) = ours(line)
    with pytest.raises(click.UsageError):
        parse(words)


def test_words_of_shell_are_none_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "text: echoprune nothing\n\n    A=1 echoprune status \\\n        store 2> err && ls | echoprune -v verify s # why\n"
        "```bash\n$ echoprune plan a --store s --model m --config x.yaml > out\n```\necho\n"
    )
    lines = list(shown(tmp_path / "page.md"))
    assert [number for number, _ in lines] == [3, 6]
    found = [words for _, line in lines for words in ours(line)]
    assert found == [
        ["echoprune", "status", "store"],
        ["echoprune", "-v", "verify", "s"],
        ["echoprune", "plan", "a", "--store", "s", "--model", "m", "--config", "x.yaml"],
    ]
    assert [parse(words) for words in found] == ["echoprune status", "echoprune verify", "echoprune plan"]
