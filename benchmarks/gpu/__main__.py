"""All measurements for a machine with 1 to 8 GPUs, in one command and one report.

    python -m benchmarks.gpu [--quick] [--only images --only ranks] [--resume] [--doc | --out FOLDER]
    python -m benchmarks.gpu --device cpu --small      # a rehearsal: runs all the code, its figures mean nothing

What does not fit (memory, number of GPUs, compute capability) is skipped, and the report says why.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Found
from benchmarks.gpu.report import write_report
from benchmarks.gpu.running import Outcome, command_of, facts_of, run_section
from benchmarks.gpu.sections import SECTIONS
from benchmarks.places import doc_option, place

__all__ = ["main", "measure"]

#: Minutes for ``--quick``, all sections together.
_QUICK = 8.0
_REHEARSALS = Path("runs/gpu")


def main(
    out: Path | None = typer.Option(None, help="folder of the report"),
    doc: bool = doc_option(),
    only: list[str] = typer.Option([], help=f"a section to run; repeat for more: {', '.join(SECTIONS)}"),
    skip: list[str] = typer.Option([], help="a section to leave out; repeat for more"),
    quick: bool = typer.Option(False, help="one round, fewer variants: about eight minutes on one H100"),
    minutes: float = typer.Option(0.0, min=0.0, help="end after this many minutes; default: no limit, 8 with --quick"),
    resume: bool = typer.Option(
        False, help="keep finished sections of an earlier run of the same kind on this machine"
    ),
    ranks: int = typer.Option(0, min=0, max=8, help="at most this many ranks; 0 = one for each GPU"),
    model: str = typer.Option("", help="folder of a FLUX model whose gang is rebuilt; default: random weights"),
    device: Literal["cuda", "cpu"] = typer.Option("cuda", help="cpu requires --small"),
    small: bool = typer.Option(False, help="a tiny model: a trial run of the code"),
) -> None:
    """Run all sections, each in its own process, and write the report."""
    if device == "cpu" and not small:
        raise typer.BadParameter("a CPU takes hours for one image of FLUX.1-dev: add --small", param_hint="--device")
    if doc and small:
        raise typer.BadParameter("a trial run measures nothing on a GPU: leave --small out", param_hint="--doc")
    if unknown := sorted({*only, *skip} - SECTIONS.keys()):
        raise typer.BadParameter(f"there is no section {unknown[0]!r}: {', '.join(SECTIONS)}", param_hint="--only")
    if model and not Path(model, "model_index.json").is_file():
        raise typer.BadParameter(f"{model} has no model_index.json: name a folder of a pipeline", param_hint="--model")
    console = Console()
    facts = facts_of(device)
    if facts.problem:
        console.print(f"{facts.problem}. A trial run without one: --device cpu --small", markup=False)
        raise typer.Exit(2)
    names = [name for name in SECTIONS if (not only or name in only) and name not in skip]
    limit = minutes or (_QUICK if quick else float("inf"))
    plan = Plan(device, small, quick, ranks, str(Path(model).resolve()) if model else "")
    out = out or (_REHEARSALS if small else place("gpu", doc))
    report = measure(plan, facts, names, out, resume=resume, seconds=60 * limit, console=console)
    console.print(str(report), markup=False)


def measure(
    plan: Plan, facts: Facts, names: list[str], out: Path, *, resume: bool, seconds: float, console: Console
) -> Path:
    """Run the sections called ``names``; the report is rewritten after each.

    Args:
        resume: do not run finished sections again.
        seconds: for all together; later sections are not started.

    Returns:
        The report's path.
    """
    folder = out / "sections"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.json").write_text(facts.to_json())
    end = time.monotonic() + seconds
    bar = BarColumn()
    with Progress(TextColumn("{task.description}"), bar, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            earlier = Outcome.read(folder, name)
            kept = resume and earlier is not None and earlier.status in ("done", "skipped")
            if not (kept and earlier is not None and earlier.fits(plan, facts)):
                outcome = _outcome(name, plan, folder, end - time.monotonic(), progress, task)
                outcome.plan, outcome.machine = plan.to_dict(), facts.signature()
                outcome.write(folder)
                console.print(f"{name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.why}".rstrip(), markup=False)
            progress.advance(task)
            write_report(out, plan, facts, _all(folder))
    return out / "report.md"


def _outcome(name: str, plan: Plan, folder: Path, left: float, progress: Progress, task: Any) -> Outcome:
    section = SECTIONS[name]
    limit = section.quick_s if plan.quick or plan.small else section.limit_s
    if left <= 0:
        return Outcome(name, "not started", 0, limit, "no time was left for it")

    def tell(found: Found, seconds: float) -> None:
        progress.update(task, description=f"{name}: {found.rows} rows, {seconds:.0f} of {min(limit, left):.0f} s")

    progress.update(task, description=f"{name}: starts")
    return run_section(name, command_of(name, plan, folder), folder, min(limit, left), tell)


def _all(folder: Path) -> list[Outcome]:
    return [outcome for name in SECTIONS if (outcome := Outcome.read(folder, name)) is not None]


if __name__ == "__main__":
    typer.run(main)
