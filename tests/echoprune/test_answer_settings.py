from __future__ import annotations

from typing import Any

import pytest

from echoprune.answer_settings import AnswerSettings
from echoprune.errors import ConfigError
from echoprune.policies import POLICIES


@pytest.mark.parametrize(
    "field",
    [
        {"budget": "none"},
        {"relevance": "most"},
        {"query": "video"},
        {"first": "free"},
        {"policy": "best"},
        {"echo_weight": -1.0},
        {"correspondence_weight": float("nan")},
        {"batch": 0},
        {"max_new_tokens": 0},
        {"engine": "quick"},
    ],
)
def test_settings_refuse_what_means_nothing(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        AnswerSettings(**field)


def test_the_default_policy_is_anchored() -> None:
    assert AnswerSettings() == AnswerSettings(policy="anchored", first="auto")
    digests = {AnswerSettings(policy=name).digest for name in POLICIES}
    assert len(digests) == len(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"first": "share"}, "--first is share"),
        ({"first": "whole"}, "--first is whole"),
        ({"echo_weight": 0.5}, "--echo-weight is 0.5"),
        ({"correspondence_weight": 0.0}, "--correspondence-weight is 0.0"),
        ({"relevance": "softmax"}, "--relevance is softmax"),
        ({"relevance": "off"}, ""),
        ({"query": "question+options"}, ""),
    ],
)
def test_options_that_a_policy_would_ignore_are_refused(name: str, field: dict[str, Any], says: str) -> None:
    taking = ["echoprune"] if "weight" in says else ["anchored", "echoprune"]
    if says and name not in taking:
        with pytest.raises(
            ConfigError, match=rf"{says}, which --policy {name} does not use.*\({', '.join(taking)}\)"
        ):
            AnswerSettings(policy=name, **field)
    else:
        assert AnswerSettings(policy=name, **field).policy == name


def test_answers_that_name_no_engine_have_the_librarys() -> None:
    """Answers of before there was another keep their digest: the same run goes on where it was."""
    assert "engine" not in AnswerSettings().named()
    assert AnswerSettings(engine="fast").named()["engine"] == "fast"
    assert AnswerSettings(engine="fast").digest != AnswerSettings().digest


def test_an_unknown_policy_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--policy is 'best'; give one of " + ", ".join(POLICIES)):
        AnswerSettings(policy="best")
