"""Whose jobs share an account, and what it weighs."""

from __future__ import annotations

import pytest

from raycache.engine.callers import caller_of
from raycache.limits import LimitSettings

LIMITS = LimitSettings.model_validate({"keys": {"team blue": {"weight": 2.0, "max_priority": "high"}}})


@pytest.mark.parametrize(
    ("key", "priority", "weight"),
    [
        (None, "normal", 1.0),
        (None, "high", 4.0),
        ("team red", "normal", 1.0),
        ("team red", "low", 0.25),
        ("team blue", "low", 0.5),
        ("team blue", "normal", 2.0),
        ("team blue", "high", 8.0),
    ],
)
def test_weights(key, priority, weight):
    assert caller_of(LIMITS, key, priority).weight == weight


def test_each_priority_of_each_key_is_an_account_of_its_own():
    asked = [
        (key, priority) for key in (None, "team red", "low", "team red low") for priority in ("low", "normal", "high")
    ]
    assert len({caller_of(LIMITS, *each).account for each in asked}) == len(asked)
