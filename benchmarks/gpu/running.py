"""Runs a section as a process: ends it at its time limit, and keeps its results in any case. Without torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Found

__all__ = ["Outcome", "Status", "command_of", "facts_of", "run_section"]

Status = Literal["done", "with failures", "skipped", "failed", "out of time", "not started"]
_ROOT = Path(__file__).resolve().parents[2]
#: Seconds that a section has to end after SIGTERM.
_GRACE_S = 5.0
_LOG_LINES = 15


@dataclass
class Outcome:
    """The outcome of a section.

    Attributes:
        seconds: its duration; limit_s: its time limit.
        why: the reason if it is not done.
        made: date and time, as ``YYYY-MM-DD HH:MM``; plan, machine: of its run, to check whether it fits another.
    """

    name: str
    status: Status
    seconds: float
    limit_s: float
    why: str = ""
    made: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    machine: list[str] = field(default_factory=list)
    found: Found = field(default_factory=Found)

    def fits(self, plan: Plan, facts: Facts) -> bool:
        """Whether its figures may be shown together with those of another run."""
        return self.plan == plan.to_dict() and self.machine == facts.signature()

    def write(self, folder: Path) -> None:
        """Write it for a later run."""
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path, name: str) -> Self | None:
        """The outcome of an earlier run; None if there is none."""
        path = folder / f"{name}.json"
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        values["found"] = Found(**values["found"])
        return cls(**values)


def facts_of(device: str) -> Facts:
    """Facts about the machine, collected by another process.

    Raises:
        RuntimeError: torch cannot be imported, or crashes when it looks for GPUs.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.facts", device]
    asked = subprocess.run(command, cwd=_ROOT, env=_environment(), capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise RuntimeError(f"cannot look for GPUs:\n{asked.stderr.strip()[-2000:]}")
    return Facts.from_json(asked.stdout.strip().splitlines()[-1])  # libraries may print before it


def command_of(name: str, plan: Plan, folder: Path) -> list[str]:
    """The command that runs a section whose facts are in ``folder``."""
    given = [name, json.dumps(plan.to_dict()), str(folder / "facts.json"), str(folder / f"{name}.found.json")]
    return [sys.executable, "-m", "benchmarks.gpu.child", *given]


def run_section(
    name: str,
    command: Sequence[str],
    folder: Path,
    limit_s: float,
    tell: Callable[[Found, float], None] = lambda found, seconds: None,
) -> Outcome:
    """Run a section to its end, or to its time limit.

    Args:
        command: writes its results to ``NAME.found.json`` in ``folder``; its output goes to ``NAME.log`` there.
        tell: called once a second with the results and the seconds so far.

    Returns:
        The outcome with everything that it had written, however it ended.
    """
    path, log = folder / f"{name}.found.json", folder / f"{name}.log"
    path.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        # In its own process session, so that it and all its ranks are ended together.
        process = subprocess.Popen(
            command, cwd=_ROOT, env=_environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = _waited(process, began + limit_s, lambda: tell(Found.read(path), time.monotonic() - began))
        finally:
            _end(process)
    found = Found.read(path)
    status, why = _status(code, found, limit_s, log)
    made = time.strftime("%Y-%m-%d %H:%M")
    return Outcome(name, status, time.monotonic() - began, limit_s, why, made, found=found)


def _environment() -> dict[str, str]:
    """The environment of a section: the repository can be imported, libraries send no statistics and log little."""
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | quiet | {"PYTHONPATH": path}


def _waited(process: subprocess.Popen[bytes], deadline: float, tell: Callable[[], None]) -> int | None:
    """Its exit code; None if it was still running at ``deadline``, a time of ``time.monotonic``."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.wait(min(1.0, left))
        except subprocess.TimeoutExpired:
            tell()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all processes that it started, with SIGTERM first, so that ranks and Ray can clean up."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):  # remaining processes, if any
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _status(code: int | None, found: Found, limit_s: float, log: Path) -> tuple[Status, str]:
    if code is None:
        return "out of time", f"ended after {limit_s:.0f} s; what it had measured by then is kept"
    if code != 0:
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "failed", f"{ended}: {lines[-1].strip()[:300] if lines else 'it printed nothing'}"
    if found.failed:
        return "with failures", f"{len(found.failed)} of its parts failed"
    if found.skipped and not found.rows:
        return "skipped", found.skipped[0][1]
    return "done", ""
