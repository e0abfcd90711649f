from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from echoprune.errors import ConfigError
from echoprune.question import Question
from echoprune.templates import Template, clock, load_template, template_for, template_names


def ask(**changes: Any) -> Question:
    values: dict[str, Any] = {
        "question_id": "q1",
        "video": "/archive/clip 1.mp4",
        "question": "What colour is it?",
    }
    return Question(**(values | changes))


CHOICE = ask(options=("red", "a {{ blue }} one", "<green>"))


def test_the_package_brings_these_templates() -> None:
    expected = {"brief", "dense", "summary", "multiple_choice", "open", "yes_no", "grounding"}
    assert set(template_names()) == expected and list(template_names()) == sorted(expected)


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("question", [ask(), CHOICE, ask(start_s=1.0, end_s=2.0, kind="where")])
def test_each_gives_a_trimmed_text(name: str, question: Question) -> None:
    text = load_template(name).render(question)
    assert text and text == text.strip() and "\n\n" not in text and "{%" not in text
    is_caption = name in ("brief", "dense", "summary")
    assert (question.question in text) != is_caption


def test_multiple_choice_lists_the_options_by_letter() -> None:
    lines = load_template("multiple_choice").render(CHOICE).splitlines()
    assert lines[:4] == ["What colour is it?", "A. red", "B. a {{ blue }} one", "C. <green>"]
    assert len(lines) == 5 and "letter only" in lines[4]
    assert load_template("multiple_choice").render(ask()) == "What colour is it?"


def test_a_question_is_text_not_template() -> None:
    sly = ask(question="{{ 7 * 6 }} {% raw %} <b>&amp;")
    assert load_template("yes_no").render(sly).splitlines()[0] == sly.question


def test_every_variable_is_known() -> None:
    text = "{{ video }}|{{ kind }}|{{ start_s | clock }}|{{ end_s | clock }}|{{ options[1].text }}|{{ options | length }}"
    question = ask(kind="who", start_s=65.9, end_s=3609.0, options=("x", "y"))
    assert Template("own", text).render(question) == "clip 1.mp4|who|1:05|1:00:09|y|2"
    assert Template("own", "{{ start_s is none }}").render(ask()) == "True"


@pytest.mark.parametrize(
    ("time_s", "shown"), [(0.0, "0:00"), (59.999, "0:59"), (60, "1:00"), (3600, "1:00:00")]
)
def test_clock(time_s: float, shown: str) -> None:
    assert clock(time_s) == shown


def test_a_digest_follows_the_text_alone() -> None:
    digest = Template("a", "text").digest
    assert digest == Template("b", "text").digest and len(digest) == 16 and int(digest, 16)
    assert len({digest, Template("a", "text ").digest, Template("a", "text", literal=True).digest}) == 3
    assert len({load_template(name).digest for name in template_names()}) == len(template_names())


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffSay it: {{ question }}\n".encode())
    own = load_template(str(path))
    assert own.name == "mine.txt" and own.render(ask()) == "Say it: What colour is it?"
    assert pickle.loads(pickle.dumps(own)) == own


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name in ("breif", "", "no/such.jinja", str(tmp_path), str(tmp_path / "latin"), "nul\0"):
        with pytest.raises(ConfigError, match="brief, dense, grounding") as caught:
            load_template(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ question",
        "{% if %}",
        "{{ wrong_name }}",
        "{{ options[5].text }}",
        "{{ start_s | clock }}",
        "{{ question | nosuchfilter }}",
        "{{ 1 / 0 }}",
        "{{ question + 1 }}",
        "{{ question.__class__.__mro__ }}",
        "{{ options.append(1) }}",
        "{{ range(10 ** 9) | list }}",
        "{% include 'other' %}",
        "",
        "  {# only a remark #}\n",
    ],
)
def test_a_broken_template_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="template 'mine'") as caught:
        Template("mine", text).render(ask())
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_found_when_loaded(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("one\n{% endif %}")
    with pytest.raises(ConfigError, match=r"own.jinja' is no Jinja2 \(line 2\)"):
        load_template(str(tmp_path / "own.jinja"))


def test_which_template_a_question_gets() -> None:
    run = Template("run", "{{ question }}!")
    assert template_for(ask(), run) is run
    assert template_for(ask(prompt="dense"), run) == load_template("dense")
    assert (
        template_for(ask(), "auto").name == "open" and template_for(CHOICE, "auto").name == "multiple_choice"
    )
    assert template_for(CHOICE, "yes_no").name == "yes_no"
    with pytest.raises(ConfigError, match="no template 'nope'"):
        template_for(ask(), "nope")


def test_a_questions_own_prompt_is_taken_as_it_is() -> None:
    own = template_for(ask(prompt=" Say {{ question }} {% x "), "auto")
    assert own.name == "prompt" and own.render(ask()) == "Say {{ question }} {% x"
    with pytest.raises(ConfigError, match="empty prompt"):
        template_for(ask(prompt="  "), "auto").render(ask())
