"""One report of all sections: Markdown, JSON and plots. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.plots import draw_all
from benchmarks.gpu.recorder import Cell
from benchmarks.gpu.running import Outcome
from benchmarks.gpu.sections import SECTIONS
from benchmarks.report import Table

__all__ = ["write_report"]


def write_report(out: Path, plan: Plan, facts: Facts, outcomes: Sequence[Outcome]) -> None:
    """Write ``report.md``, ``report.json`` and the plots into ``out``.

    Args:
        outcomes: of this run and earlier ones; those that do not fit this run are named and left out.
    """
    mine = [outcome for outcome in outcomes if outcome.fits(plan, facts)]
    others = [outcome.name for outcome in outcomes if not outcome.fits(plan, facts)]
    values = {"plan": plan.to_dict(), "facts": asdict(facts), "sections": {one.name: asdict(one) for one in mine}}
    (out / "report.json").write_text(json.dumps(values, indent=1) + "\n")
    plots = draw_all({one.name: one.found for one in mine}, out)
    lines = [*_head(plan, facts, mine)]
    if others:
        lines.append(f"Not shown, because they are of another kind of run or another machine: {', '.join(others)}.\n")
    for outcome in mine:
        lines += _section(outcome, plots.get(outcome.name, []))
    (out / "report.md").write_text("\n".join(lines))


def _head(plan: Plan, facts: Facts, outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "# Results on a GPU\n" if not plan.small else "# A trial run on a tiny model: its figures mean nothing\n"
    options = [f"--{name}" for name in ("quick", "small") if getattr(plan, name)]
    options += ["--device cpu"] if plan.device == "cpu" else []
    options += [f"--ranks {plan.ranks}"] if plan.ranks else []
    yield f"Written by `{' '.join(['python -m benchmarks.gpu', *options])}`; all figures are also in `report.json`.\n"
    shape = plan.shape
    yield (
        f"Model: {shape.doubles} + {shape.singles} blocks of width {shape.width}, random weights, {shape.dtype}, "
        f"{shape.tokens} + {shape.text} tokens, {shape.steps} steps.\n"
    )
    rows = [
        (f"GPU {number}", f"{one.name}, {one.total / 2**30:.1f} GiB ({one.free / 2**30:.1f} free), "
         f"compute capability {one.capability[0]}.{one.capability[1]}")
        for number, one in enumerate(facts.devices)
    ]  # fmt: skip
    rows.append(("CPU", f"{facts.cpu}, {facts.cores} cores"))
    rows += [(name, version) for name, version in facts.versions.items() if version]
    yield Table("", ("machine", ""), rows).markdown()
    summary = [
        (f"[{SECTIONS[one.name].title}](#{one.name})", one.status, f"{one.seconds:.0f} of {one.limit_s:.0f}",
         one.made or "-", one.why or "-")
        for one in outcomes
    ]  # fmt: skip
    yield Table("", ("section", "status", "seconds", "when", "why"), summary).markdown()


def _section(outcome: Outcome, plots: Sequence[str]) -> Iterator[str]:
    found = outcome.found
    yield f'<a id="{outcome.name}"></a>\n\n## {SECTIONS[outcome.name].title}\n'
    if outcome.status not in ("done", "skipped"):
        yield f"**{outcome.status}**: {outcome.why}. Its log is `sections/{outcome.name}.log`.\n"
    yield from (f"{note}\n" for note in found.notes)
    for title, rows in found.tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[_shown(row.get(column)) for column in columns] for row in rows]
        yield Table(title, columns, cells).markdown()
    yield from (f"![{outcome.name}]({name})\n" for name in plots)
    for heading, entries in (("Skipped", found.skipped), ("Failed", found.failed)):
        if entries:
            yield f"{heading}:\n"
            yield "".join(f"- {what}: {why}\n" for what, why in entries)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
