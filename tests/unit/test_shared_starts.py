"""A start that fails is tried once more; one that fails again ends the tests that need it, at once, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.starting import StartError, started

ROOT = Path(__file__).parents[2]

SUITE = """
import time
import pytest
from tests.helpers.starting import started

tries = []

@pytest.fixture(scope="session")
def base():
    def start():
        tries.append(time.sleep(0.5))
        if len(tries) <= FAILURES:
            raise TimeoutError(f"slow start {len(tries)}")
        return "base"
    with started("the base", start, lambda: None) as thing:
        yield thing

@pytest.fixture(scope="session")
def service(base):
    return base + " and service"

@pytest.fixture(scope="module")
def client(service):
    return service

def test_first(service):
    assert service == "base and service"

@pytest.mark.parametrize("again", range(5))
def test_dependents(client, again):
    assert client

def test_of_its_own():
    assert len(tries) <= 2
"""


def _outcome(tmp_path: Path, failures: int) -> str:
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE.replace("FAILURES", str(failures)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(suite)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=environment)
    return run.stdout


def test_one_slow_start_costs_nothing_but_time(tmp_path):
    output = _outcome(tmp_path, failures=1)
    assert "7 passed, 1 warning" in output, output
    assert "the base did not start, once more: TimeoutError after 0 s: slow start 1" in output or "after 1 s" in output


def test_two_end_those_who_need_it_and_nobody_else(tmp_path):
    """Six fail, each with both reasons and without a start of their own (0.5 s each, twice in all)."""
    output = _outcome(tmp_path, failures=9)
    assert "1 passed, 1 warning, 6 errors" in output, output
    assert output.count("slow start 1; then TimeoutError") >= 6
    assert "slow start 3" not in output


def test_each_failed_start_is_cleared_up_and_the_good_one_at_the_end():
    story: list[str] = []

    def start() -> int:
        story.append("start")
        if len(story) == 1:
            raise RuntimeError("no")
        return 7

    with (
        pytest.warns(UserWarning, match="it did not start, once more: RuntimeError after 0 s: no"),
        started("it", start, lambda: story.append("stop")) as thing,
    ):
        story.append(f"use {thing}")
    assert story == ["start", "stop", "start", "use 7", "stop"]


def test_a_start_that_cannot_be_cleared_up_is_tried_again_all_the_same():
    def start() -> None:
        raise RuntimeError("no start")

    def stop() -> None:
        raise OSError("no stop")

    with (
        pytest.warns(UserWarning, match="could not be cleared up|once more"),
        pytest.raises(StartError, match="no start; then RuntimeError"),
        started("it", start, stop),
    ):
        pass


def test_a_timeout_of_pytest_is_a_start_that_failed():
    """pytest-timeout ends what hangs by failing the test that is running; `Failed` is no Exception."""

    def start() -> None:
        pytest.fail("Timeout >300.0s")

    with (
        pytest.warns(UserWarning, match="once more"),
        pytest.raises(StartError, match="Timeout >300"),
        started("it", start, lambda: None),
    ):
        pass


def test_an_error_of_a_test_is_no_failed_start():
    starts: list[int] = []
    with pytest.raises(KeyError), started("it", lambda: starts.append(1), lambda: None):
        raise KeyError
    assert starts == [1]
