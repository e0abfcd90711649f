from __future__ import annotations

from typing import Any

import pytest

from echoprune.answer_settings import AnswerSettings
from echoprune.errors import ConfigError


@pytest.mark.parametrize(
    "field",
    [
        {"budget": "none"},
        {"relevance": "most"},
        {"query": "video"},
        {"first": "free"},
        {"echo_weight": -1.0},
        {"correspondence_weight": float("nan")},
        {"batch": 0},
        {"max_new_tokens": 0},
    ],
)
def test_settings_refuse_what_means_nothing(field: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        AnswerSettings(**field)
