"""The tables and the plot of docs/capacity.md: published times against the model, its predictions, and waiting times.

    python -m benchmarks.capacity [--per-minute 12 --goal 20] [--doc]

Generates no images and needs no GPU: arithmetic, and a few minutes of simulation. With ``--doc`` each table replaces
the one between its two marks, ``<!-- table NAME -->``.
"""

from __future__ import annotations

from collections.abc import Iterator

import typer

from benchmarks.capacity_model import FLUX_DEV_1024, L20, errors, fit, predicted, seconds
from benchmarks.places import doc_option, place
from benchmarks.published import ROWS, SOURCES, Row
from benchmarks.report import Table
from benchmarks.settings_under import CACHES, KERNELS, Span, psnr, span
from benchmarks.waiting import answered_p95, gangs_needed, gangs_that_hold

__all__ = ["by_arithmetic", "replaced"]

#: The time to beat, and how far off the model may be on rows that it was not fitted on.
_GOAL_S, _WITHIN = 3.90, 0.10
_RANKS = (1, 2, 4)


def main(
    per_minute: float = typer.Option(12.0, min=0.01, help="images requested per minute"),
    goal: float = typer.Option(20.0, min=0.1, help="seconds within which 95 % must be answered"),
    doc: bool = doc_option(),
) -> None:
    """Print the tables."""
    tables = {**by_arithmetic(), "plan": _plan(per_minute, goal), "scheduler": _beside_the_scheduler()}
    for table in tables.values():
        table.show()
    if doc:
        page = place("capacity.md", doc)
        page.write_text(replaced(page.read_text(), tables))
    # Imported here, because the tables alone do not need matplotlib.
    from benchmarks.capacity_plot import draw

    draw(place("images/capacity.png", doc), _GOAL_S, _WITHIN)


def by_arithmetic() -> dict[str, Table]:
    """The tables that need no simulation, by the names of their marks."""
    held = [row for row in ROWS if not row.fitted]
    within = sum(abs(error) <= _WITHIN for error in errors(held))
    return {
        "sources": Table("", ("source", "version"), [(one.name, f"[{one.version}]({one.address})") for one in SOURCES]),
        "constants": Table("", ("fitted on", "rows", "serial, s", "collective, µs"), list(_constants())),
        "fitted": Table("Used for the fit", _COLUMNS, [_compared(row) for row in ROWS if row.fitted]),
        "held": Table(
            f"Held out: {within} of {len(held)} within {_WITHIN:.0%}", _COLUMNS, [_compared(row) for row in held]
        ),
        "settings": Table("", ("kernels", "cache", "computed", "1 GPU", "2", "4", "dB"), list(_settings())),
    }


def replaced(text: str, tables: dict[str, Table]) -> str:
    """The page with each table between its marks.

    Raises:
        ValueError: a table's mark does not appear exactly twice.
    """
    for name, table in tables.items():
        mark = f"<!-- table {name} -->"
        if text.count(mark) != 2:
            raise ValueError(f"the page must have {mark} before and after the table; found {text.count(mark)} times")
        before, _, behind = text.split(mark)
        text = f"{before}{mark}\n{table.markdown()}{mark}{behind}"
    return text


_COLUMNS = ("source", "what", "published on 1 GPU, s", "published, s", "model, s", "error", "")


def _compared(row: Row) -> tuple[str, ...]:
    alone = f"{row.cached_alone_s:.2f} with it" if row.cached_alone_s is not None else f"{row.alone_s:.2f}"
    [error] = errors([row])
    missed = "" if abs(error) <= _WITHIN else "**missed**"
    remark = "; ".join(part for part in (missed, row.remark) if part)
    model_s = predicted(row)
    return (row.source.name, row.what, alone, f"{row.published_s:.2f}", f"{model_s:.2f}", f"{error:+.1%}", remark)


def _constants() -> Iterator[tuple[str, ...]]:
    """The fitted constants, and what fewer rows would give: how well the two constants can be separated."""
    fitted = [row for row in ROWS if row.fitted]
    alone = [row for row in fitted if row.ranks == 1]
    ways = {
        "all of them": fitted,
        "without those of one GPU": [row for row in fitted if row.ranks > 1],
        "without those of four GPUs": [row for row in fitted if row.ranks < 4],
        "one source only (CONTEXT_PARALLEL.md)": [row for row in fitted if row.source is fitted[0].source],
        "the other only (0.2.2)": [row for row in fitted if row.source is alone[0].source],
    }
    for name, rows in ways.items():
        serial_s, call_s = fit(rows)
        yield name, str(len(rows)), f"{serial_s:.2f}", f"{call_s * 1e6:.0f}"


def _settings() -> Iterator[tuple[str, ...]]:
    for kernels in KERNELS:
        for cache in CACHES:
            decibels = psnr(cache.share)
            beyond = "-" if not cache.cached_steps else "> 35.2"
            spans = (_shown(span(kernels, cache, ranks)) for ranks in _RANKS)
            shown = beyond if decibels is None else f"{decibels:.1f}"
            yield kernels.name, cache.name, f"{cache.share:.0%}", *spans, shown


def _shown(one: Span) -> str:
    """Bold where even the upper bound is below the goal, in italics where only the prediction is."""
    text = f"{one.seconds:.2f} ({one.least:.2f} - {one.most:.2f})"
    if one.most < _GOAL_S:
        return f"**{text}**"
    return f"*{text}*" if one.seconds < _GOAL_S else text


def _plan(per_minute: float, goal_s: float) -> Table:
    """Gangs of one, two and four ranks for a rate and a goal, with compiled kernels and 60 % of blocks computed."""
    rows = []
    for ranks in _RANKS:
        each = seconds(FLUX_DEV_1024, L20, ranks, computed=0.6, factor=KERNELS[1].middle)
        best, real = gangs_needed(per_minute, goal_s, each), gangs_that_hold(per_minute, goal_s, each)
        answered = "-" if real is None else f"{answered_p95(per_minute / 60, each, real):.1f}"
        counts = ("never" if count is None else f"{count} ({count * ranks} GPUs)" for count in (best, real))
        rows.append((str(ranks), f"{each:.2f}", f"{60 / each * 4 / ranks:.1f}", *counts, answered))
    head = ("ranks", "seconds per image", "images per minute on 4 GPUs", "gangs, one queue", "gangs, Serve's router")
    title = f"{per_minute:g} images per minute, 95 % within {goal_s:g} s; bfloat16, compiled, 60 % of blocks computed"
    return Table(title, (*head, "95 % within, s, simulated"), rows)


def _beside_the_scheduler() -> Table:
    from benchmarks.capacity_scheduler import KINDS, compared

    rows = [row for name, kinds in KINDS.items() for load in (0.5, 0.8) for row in compared(name, kinds, load)]
    columns = (
        "jobs of one gang",
        "load",
        "formula",
        "in order of arrival",
        "step scheduler",
        "with shared calls",
    )
    return Table("95 % answered within, seconds: the same 3,000 jobs each time, simulated", columns, rows)


if __name__ == "__main__":
    typer.run(main)
