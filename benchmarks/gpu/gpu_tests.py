"""Section *tests*: what is correct on a CPU must be correct on a GPU; runs tests/gpu with pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder

__all__ = ["measure"]

_ROOT = Path(__file__).resolve().parents[2]


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """A row for each test that ran; tests that pytest skipped are recorded with the reason."""
    report = recorder.path.with_name("tests.junit.xml")
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # This process does not use CUDA, so that the tests have the GPUs to themselves.
    ended = subprocess.run(command, cwd=_ROOT, env=os.environ | {"RAYCACHE_TEST_DEVICE": plan.device}, check=False)
    if not report.exists():
        recorder.fail("tests/gpu", f"pytest ended with code {ended.returncode} and without a report; see the log")
        return
    for case in ElementTree.parse(report).iter("testcase"):
        _note(case, recorder)


def _note(case: ElementTree.Element, recorder: Recorder) -> None:
    name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
    if (skipped := case.find("skipped")) is not None:
        recorder.skip(name, skipped.get("message", "no reason"))
        return
    wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
    if wrong is not None:
        recorder.fail(name, wrong.get("message", "no message").splitlines()[0][:300])
    recorder.add("Tests", test=name, outcome="passed" if wrong is None else "FAILED", s=float(case.get("time", 0)))
