"""The one section of the GPU benchmark that starts Ray, rehearsed on two gloo ranks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Found
from benchmarks.gpu.running import command_of

ROOT = Path(__file__).parents[2]


def test_a_killed_rank_is_replaced_and_each_stage_has_its_seconds(tmp_path: Path):
    """In a process of its own: it brings a Ray of its own."""
    (tmp_path / "facts.json").write_text(Facts().to_json())
    command = command_of("rebuild", Plan("cpu", small=True), tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    found = Found.read(tmp_path / "rebuild.found.json")
    assert (ended.returncode, found.failed) == (0, []), ended.stderr[-3000:]
    (row,) = found.tables["Rebuild of a gang"]
    for column in ("first start, s", "processes, s", "warm-up, s", "total, s", "image after, s"):
        assert row[column] > 0, json.dumps(row)
    assert row["total, s"] >= row["detected, s"] + row["processes, s"] + row["warm-up, s"]
