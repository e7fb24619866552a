"""Many jobs together, step by step, against one after the other: identical gangs, measured in turns.

    python -m benchmarks.many_jobs [--ranks 2] [--quick] [--only PART] [--doc] [--out TABLE.md] [--keep VALUES.json]

``fifo`` runs one job after the other and joins no calls; ``fair`` is the default setting. Both gangs use the model of
the config, without HTTP. Cells are medians over the rounds (least - most); the last column is the median of the ratios
within a round. With ``--keep`` values are written to a JSON file as soon as they are known, and a later run of other
parts adds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import track

from benchmarks import crowd, scheduler_costs
from benchmarks.places import doc_option, place
from benchmarks.report import machine, show_table
from benchmarks.serving import settings_of
from benchmarks.timeline import bars_of, draw
from benchmarks.ways import FAIR, FIFO, Amounts, Both, Row, Way, kept, mean_rows, ways

COLUMNS = ["what", "unit", "fifo", "fair", "fair / fifo"]
COSTS = ["size", "images in a call", "expected after the warm-up, s", "measured, s", "expected / measured"]
MIX = Path("loadtests/mix_small.yaml")
_QUICK = Amounts(rounds=1, jobs=10, long_steps=8, flood=6)
_Part = Callable[[Both, Amounts], list[Row]]
PARTS: dict[str, _Part] = {
    "small": lambda both, amounts: crowd.throughput(both, amounts, "small mix", crowd.small_mix(MIX, amounts.jobs)),
    "steps": lambda both, amounts: crowd.throughput(both, amounts, "mixed steps", crowd.mixed_steps(amounts.jobs)),
    "head": crowd.head_of_line,
    "flood": crowd.flood,
    "overhead": scheduler_costs.overhead,
    "plan": scheduler_costs.planning,
}
EXTRAS = ("costs", "timeline")


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    ranks: int = typer.Option(2, min=1, help="of each gang"),
    rounds: int | None = typer.Option(None, min=1, help="of each measurement; default 5, and 1 with --quick"),
    quick: bool = typer.Option(False, help="small numbers, to see that it works"),
    only: list[str] = typer.Option([], help=f"only these parts: {', '.join((*PARTS, *EXTRAS))}; repeat for more"),
    image: Path | None = typer.Option(None, help="plot the timeline into this file"),
    doc: bool = doc_option(),
    keep: Path | None = typer.Option(None, help="write the values here as JSON, together with those of other parts"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the tables and plot the timeline."""
    if unknown := set(only) - {*PARTS, *EXTRAS}:
        raise typer.BadParameter(f"{sorted(unknown)} must be among {', '.join((*PARTS, *EXTRAS))}", param_hint="--only")
    chosen = only or [*EXTRAS[:1], *PARTS, *EXTRAS[1:]]
    amounts = _QUICK if quick else Amounts()
    if rounds is not None:
        amounts = Amounts(rounds, amounts.clients, amounts.jobs, amounts.long_steps, amounts.flood)
    parallel = {"ranks_per_replica": ranks}
    # Other work on this machine must not look like a hang.
    settings = settings_of(config, False, parallel=parallel, reliability={"watchdog_floor_s": 60.0})
    rows: list[Row] = kept(keep, [])
    names = (FIFO, FAIR) if set(chosen) & PARTS.keys() else (FAIR,)
    with ways(settings, names) as both:
        # First, because they are compared with what the warm-up taught.
        if "costs" in chosen:
            costs = scheduler_costs.learned_costs(both[FAIR], str(settings.warmup[0].size))
            show_table(f"Costs learned in the warm-up, {ranks} rank(s)", COSTS, costs, None)
        for name in track([part for part in PARTS if part in chosen], description=f"{ranks} rank(s)"):
            measured = PARTS[name](both, amounts)
            rows = kept(keep, measured) if keep is not None else [*rows, *measured]
            # Written as soon as it is known, so that a stopped run keeps its results.
            for row in measured:
                Console().print("  ".join(row.cells()))
        if "timeline" in chosen:
            _timeline(both[FAIR], ranks, image or place("images/timeline.png", doc))
    title = f"{config.name}, {ranks} rank(s), {amounts.rounds} round(s); {machine()}"
    if rows:
        show_table(title, COLUMNS, [row.cells() for row in rows], out)


def _timeline(way: Way, ranks: int, image: Path) -> None:
    lines, ticks = crowd.scene(way)
    title = f"Ten jobs of three callers on one gang (ranks: {ranks}); a bar is one call of the transformer"
    draw(lines, bars_of(ticks), image, title)
    Console().print(f"{image}: {mean_rows(ticks):.2f} jobs in a call on average")


if __name__ == "__main__":
    typer.run(main)
