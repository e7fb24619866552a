"""Several nodes: a gang never straddles them, and a node that dies takes nothing with it but its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(workers: None, tiny_model: Path) -> dict[str, Any]:
    """What :mod:`tests.helpers.cluster_story` saw."""
    story = [sys.executable, "-m", "tests.helpers.cluster_story", str(tiny_model)]
    run = subprocess.run(story, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


pytestmark = pytest.mark.timeout(600)


def test_each_node_holds_a_whole_gang(seen: dict[str, Any]):
    assert sorted(seen["nodes"]) == sorted([[seen["large"]], [seen["small"]]])


def test_a_gang_never_straddles_nodes(seen: dict[str, Any]):
    assert seen["gpus_left"] == 2, "enough GPUs for a third gang, one on each node"
    assert not seen["third_gang_placed"]


def test_a_node_dies_and_every_job_is_answered(seen: dict[str, Any]):
    assert seen["answers"] == seen["asked"] >= 2
    assert seen["alike"]


def test_the_living_node_never_notices(seen: dict[str, Any]):
    assert seen["after_death"] == [[seen["large"]]]
    assert seen["untouched"]
    assert seen["same_ranks"]


def test_the_engine_comes_back_when_the_other_node_has_room(seen: dict[str, Any]):
    assert seen["without_room"] == 1
    assert seen["after_room"] == [[seen["large"]], [seen["large"]]]
