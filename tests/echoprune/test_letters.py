from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.letters import answer_letter, is_correct, letter, parse_choice
from echoprune.question import Question

FOUR = ("a red car", "Vitamin C", "The man walks away.", "12")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        ("a", "A"),
        (" (B) ", "B"),
        ("B.", "B"),
        ("[D]", "D"),
        ("**C**", "C"),
        ("$\\boxed{C}$", "C"),
        ("\\boxed{\\text{D}}", "D"),
        ("Answer: C", "C"),
        ("answer: c", "C"),
        ("Answer: C\n\nB was my first thought.", None),
        ("ANSWER\uff1a\uff22", "B"),
        ("The answer is D", "D"),
        ("The answer is (D).", "D"),
        ("The correct answer is: **B**", "B"),
        ("The correct answer is option B.", "B"),
        ("The best option is C.", "C"),
        ("Option B", "B"),
        ("I would choose option B.", "B"),
        ("The correct choice: (A) a red car", "A"),
        ("A. a red car", "A"),
        ("A) a red car", "A"),
        ("A: a red car", "A"),
        ("A\na red car is seen", "A"),
        ("b) vitamin c", "B"),
        ("C The man walks away.", "C"),
        ("A a red car", "A"),
        ("B because the label says so", "B"),
        ("B. Vitamin C", "B"),
        ("B. Because vitamin C is on the label", "B"),
        ("B. Because of plan C", None),
        ("a red car", "A"),
        ("A red car.", "A"),
        ("THE MAN WALKS AWAY", "C"),
        ("12", "D"),
        ("The answer is the man walks away.", "C"),
        ("The answer is a red car", "A"),
        ("The answer is B because the label says so.", "B"),
        ("Option A shows a car, which is wrong. The answer is B.", "B"),
        ("<think>Could be A or D.</think>\nB", "B"),
        ("A man walks", None),
        ("A man walks and I see option B.", "B"),
        ("The answer is a man", None),
        ("The answer is A man", None),
        ("The answer is B, not C.", None),
        ("The answer is either B or C", None),
        ("Answer: A or B", None),
        ("The answer is not B.", None),
        ("I do not think that the answer is B.", None),
        ("Option B is wrong.", None),
        ("A or B", None),
        ("A, B", None),
        ("A and C", None),
        ("A. Vitamin C", None),
        ("A: B", None),
        ("(A) or (B)", None),
        ("E", None),
        ("The answer is E.", None),
        ("E. a red car", None),
        ("B is the correct answer.", "B"),
        ("A is correct", "A"),
        ("B is not correct", None),
        ("B is red, A is blue", None),
        ("Bananas", None),
        ("Definitely.", None),
        ("Could be anything", None),
        ("I", None),
        ("", None),
        ("   ", None),
        ("...", None),
    ],
)
def test_tricky_cases(text: str, expected: str | None) -> None:
    assert parse_choice(text, FOUR) == expected


def test_texts_that_cannot_be_told_apart_are_unsure() -> None:
    assert parse_choice("Red!", ("red", "Red.", "blue")) is None
    assert parse_choice("red", ("red", "Red.", "blue")) == "A"
    assert parse_choice("C++", ("C", "C++")) == "B"
    assert parse_choice("C#", ("Java", "C#", "C")) == "B"
    assert parse_choice("-5", ("5", "-5")) == "B"
    assert parse_choice("<", (">", "<")) == "B"
    assert parse_choice("A", ()) is None


def test_a_letter_means_the_option_not_its_text() -> None:
    assert parse_choice("B", ("B", "A")) == "B"
    assert answer_letter("A", ("B", "A")) == "A"
    assert parse_choice("x", ("x", "y")) == "A"


words = st.text("bcdfghjklmnpqrstuvwxyz", min_size=3, max_size=8).filter(lambda w: w not in {"not", "nor"})
some_options = st.lists(words, min_size=2, max_size=26, unique=True)
FRAMES = (
    "{}", "({})", "{}.", "{})", "{}:", " {}\n", "**{}**", "Answer: {}", "answer: ({}).", "The answer is {}.",
    "The correct answer is option {}", "Option {}", "Choice {}.", "My choice is {}.", "{}. {text}", "({}) {text}",
    "Answer: {}. {text}", "{text}", "The answer is {text}.",
)  # fmt: skip


@given(some_options, st.data())
def test_a_clear_choice_is_found(options: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    said = data.draw(st.sampled_from(FRAMES)).format(letter(index), text=options[index])
    assert parse_choice(said, options) == letter(index)
    assert answer_letter(letter(index), options) == answer_letter(options[index], options) == letter(index)


@given(some_options, st.data())
def test_two_letters_are_unsure(options: list[str], data: st.DataObject) -> None:
    pair = data.draw(st.lists(st.integers(0, len(options) - 1), min_size=2, max_size=2, unique=True))
    frame = data.draw(
        st.sampled_from(("{} or {}", "{}, {}", "Answer: {} and {}", "({}) ({})", "Option {}, option {}"))
    )
    assert parse_choice(frame.format(*map(letter, pair)), options) is None


@given(st.text(), st.lists(st.text(), max_size=26))
def test_any_text_gives_a_letter_of_the_options_or_none(text: str, options: list[str]) -> None:
    assert parse_choice(text, options) in {None, *map(letter, range(len(options)))}
    assert answer_letter(text, options) in {None, *map(letter, range(len(options)))}


def test_letters_end_at_z() -> None:
    assert letter(0) == "A" and letter(25) == "Z"
    for index in (-1, 26):
        with pytest.raises(ValueError, match="options 0 to 25"):
            letter(index)


def ask(answer: str | None, options: tuple[str, ...] = ()) -> Question:
    return Question(question_id="1", video="v", question="?", options=options, answer=answer)


@pytest.mark.parametrize(
    ("answer", "parsed", "expected"),
    [
        ("B", "B", True),
        ("b", "B", True),
        ("(B)", "B", True),
        ("B. vitamin c", "B", True),
        ("vitamin c", "B", True),
        ("12", "D", True),
        ("B", "A", False),
        ("B", None, False),
        ("no such option", "A", False),
        ("no such option", None, False),
    ],
)
def test_multiple_choice_compares_letters(answer: str, parsed: str | None, expected: bool) -> None:
    assert is_correct(ask(answer, FOUR), parsed, "whatever") is expected


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("yes", "Yes, the man walks.", True),
        ("Yes.", "**yes**", True),
        ("no", "No.", True),
        ("no", "Nobody does.", False),
        ("yes", "No, but yes", False),
        ("no", "", False),
        ("A red car", " a  RED car. ", True),
        ("A red car", "The red car", False),
        ("C++", "c", True),
        ("!", "!", True),
        ("!", "?", False),
        ("x", "", False),
    ],
)
def test_open_answers(answer: str, text: str, expected: bool) -> None:
    assert is_correct(ask(answer), None, text) is expected


def test_without_answer_nothing_is_right_or_wrong() -> None:
    assert is_correct(ask(None), None, "Yes") is None
    assert is_correct(ask(None, FOUR), "A", "A") is None


@pytest.mark.parametrize(
    "part", ["a", "(", " ", "A ", "answer ", "answer is ", "option ", "B. ", "\n", "\\boxed{"]
)
def test_long_texts_are_read_at_once(part: str) -> None:
    began = time.perf_counter()
    parse_choice(part * 20_000, FOUR)
    is_correct(ask("yes"), None, part * 20_000)
    assert time.perf_counter() - began < 5.0


def test_a_letter_is_not_the_article_of_another_option() -> None:
    options = ["a red car", "a blue car", "no car"]
    assert parse_choice("A. blue car", options) is None
    assert parse_choice("a blue car", options) == "B"
    assert parse_choice("A. red car", options) == "A"
    assert parse_choice("A blue car.", options) == "B"
    assert parse_choice("A: blue", ["A: blue", "B: red"]) == "A"
