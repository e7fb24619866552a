"""The process of one section: python -m benchmarks.gpu.child SECTION PLAN FACTS FOUND, the last two being files."""

from __future__ import annotations

import json
import pkgutil
import sys
from pathlib import Path

from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.sections import SECTIONS, Section

__all__ = ["run"]


def run(section: Section, plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Measure, or record why this machine cannot."""
    import torch

    torch.set_grad_enabled(False)
    if plan.device == "cpu":
        torch.set_num_threads(1)
    if why := _unfit(section, plan, facts):
        recorder.skip(section.title, why)
        return
    pkgutil.resolve_name(f"benchmarks.gpu.{section.entry}")(plan, facts, recorder)


def _unfit(section: Section, plan: Plan, facts: Facts) -> str:
    if "ranks" in section.needs and len(plan.worlds(len(facts.devices))) < 2:
        most = f", and --ranks {plan.ranks} allowed no more" if plan.ranks else ""
        return f"needs 2 GPUs or more, this machine has {len(facts.devices)}{most}"
    if "model" in section.needs:
        from benchmarks.gpu.models import unfit

        return unfit(plan, facts)
    return ""


if __name__ == "__main__":
    name, given, machine, path = sys.argv[1:]
    run(SECTIONS[name], Plan(**json.loads(given)), Facts.from_json(Path(machine).read_text()), Recorder(Path(path)))
