"""What is asked for, and how often."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loadtests
from loadtests.mix import Mix, load_mix
from loadtests.shapes import Burst, Constant, Steps
from raycache.protocol.bodies import ImagesBody

MIX = Path(loadtests.__file__).with_name("mix.yaml")


def test_every_entry_of_the_shipped_mix_is_a_request_the_service_takes():
    for entry in load_mix(MIX).entries:
        ImagesBody.model_validate(entry.request | {"seed": 0, "stream": entry.stream})


def test_entries_are_drawn_by_weight():
    mix, rng = load_mix(MIX), random.Random(0)
    counts = Counter(mix.draw(rng).kind for _ in range(20_000))
    total = sum(entry.weight for entry in mix.entries)
    for kind, entry in enumerate(mix.entries):
        assert counts[kind] / 20_000 == pytest.approx(entry.weight / total, abs=0.02)


def test_seeds_repeat():
    mix, rng = load_mix(MIX), random.Random(0)
    assert {mix.draw(rng).seed for _ in range(500)} == set(range(mix.seeds))


def test_kinds_say_what_makes_them_cheap_or_dear():
    kinds = load_mix(MIX).kinds
    assert kinds[0] == "128x128, 12 steps"
    assert kinds[2] == "192x192, 12 steps, FBCache"
    assert kinds[4:] == ["128x128, 10 steps, 2 images", "128x128, 16 steps, stream"]


def test_kinds_that_ask_for_the_same_are_told_apart():
    alike = {"weight": 1, "request": {"prompt": "x", "size": "64x64", "cache": {"type": "none"}}}
    other = {"weight": 1, "request": {"prompt": "x", "size": "64x64", "preset": "fast"}}
    kinds = Mix.model_validate({"entries": [alike, other, alike]}).kinds
    assert kinds == ["64x64, no cache (entry 1)", "64x64, fast", "64x64, no cache (entry 3)"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("entries: []", "at least 1"),
        ("entries: [{weight: 0, request: {prompt: x, size: 64x64}}]", "greater than 0"),
        ("entries: [{weight: 1, request: {prompt: x}}]", "size"),
        ("entries: [{wieght: 1, request: {prompt: x, size: 64x64}}]", "wieght"),
    ],
)
def test_a_bad_mix_is_named(tmp_path, text, word):
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=word) as caught:
        load_mix(path)
    assert str(path) in str(caught.value)


def _at(shape, time: float):
    shape.get_run_time = lambda: time
    return shape.tick()


def test_constant():
    assert _at(Constant(5, 60), 59.9)[0] == 5
    assert _at(Constant(5, 60), 60) is None


def test_steps_climb_until_the_goal_is_missed():
    windows = []

    def missed(window: float) -> bool:
        windows.append(window)
        return len(windows) > 2

    shape = Steps(4, seconds=100, hold=10, missed=missed)
    assert _at(shape, 0)[0] == 4
    assert _at(shape, 10.5)[0] == 8
    assert _at(shape, 29.9)[0] == 12
    assert _at(shape, 30.1) is None
    assert windows == [10, 10, 10]


@given(st.floats(0, 99.9))
def test_a_burst_lies_inside_its_period(time):
    users = _at(Burst(4, seconds=100, factor=10, period=50, burst=10), time)[0]
    assert users == (40 if 20 < time % 50 < 30 else 4 if not 20 <= time % 50 <= 30 else users)
