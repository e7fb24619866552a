"""The quality plot: which rows are points of one line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.quality_plot import draw_plot, method
from benchmarks.quality_settings import settings
from benchmarks.quality_table import OURS, PEER, SAME, Row


def row(who: str, setting: str, share: float = 0.5) -> Row:
    return Row(
        who, setting, share=share, **{f.name: 1.0 for f in fields(Row) if f.type == "float" and f.name != "share"}
    )


def test_a_line_joins_the_settings_of_one_method() -> None:
    names = {method(row(OURS, setting.name)) for setting in settings()}
    published = {"FBCache", "DBCache F3B3", "DBCache F3B3 partial Bn", "DBCache F4B4", "DBCache F3B6", "DBPrune"}
    presets = names - published - {f"{name} + forecast" for name in published}
    assert names >= published
    assert presets <= {"ForecastCache", "BudgetCache"}


@pytest.mark.slow
def test_the_peer_is_plotted_beside_ours_of_the_same_captions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    plotted = Axes.plot

    def plot(axes: Axes, x: list[float], y: list[float], **style: object) -> object:
        drawn[str(style["label"])] = x
        return plotted(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    shares = {(OURS, 0.61): 60, (SAME, 0.6): 60, (PEER, 0.59): 60, (OURS, 0.4): 40}
    rows = [row(who, f"FBCache at {at} %", share) for (who, share), at in shares.items()]
    draw_plot([*rows, row(OURS, "FBCache at 60 % + forecast", 0.58), row(OURS, "uncached", 1.0)], tmp_path / "plot.png")
    assert drawn == {"FBCache": [0.4, 0.6], "cache-dit, FBCache": [0.59], "FBCache + forecast": [0.58]}
