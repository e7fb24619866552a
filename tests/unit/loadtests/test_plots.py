"""What the plots of a report show, by matplotlib's own objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from loadtests import plots
from loadtests.records import Record


@pytest.fixture(scope="module")
def panels() -> Iterator[list[Any]]:
    """The four panels over time and the plot of shares, of a run of 40 s with two faults and two steps."""
    done = [Record(0, 0, float(t), sent=float(t), ended=t + 2.0, outcome="done", queue=1.0) for t in range(38)]
    results = {
        "seconds": 40.0,
        "goodput": {"deadline": 7.5},
        "faults": [{"at": 10.0, "what": "SIGKILL"}, {"at": 25.5, "what": "SIGKILL"}],
        "steps": [{"start": 0.0, "seconds": 20.0, "rate": 1.0}, {"start": 20.0, "seconds": 20.0, "rate": 3.0}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_svg", lambda figure: figure)
        (_, tall), (_, low) = plots.figures([*done, Record(0, 0, 5.0, ended=6.0, outcome="refused")], results)
    yield [*tall.axes, *low.axes]
    import matplotlib.pyplot as plt

    plt.close(tall)
    plt.close(low)


def labelled(axes: Any) -> dict[str, Any]:
    handles, names = axes.get_legend_handles_labels()
    return dict(zip(names, handles, strict=True))


def test_faults_are_lines_in_every_panel_named_above_the_first(panels):
    for axes in panels[:4]:
        red = [line.get_xdata()[0] for line in axes.get_lines() if line.get_color() == "tab:red"]
        assert red == [10.0, 25.5]
    assert [(text.get_text(), text.xy[0]) for text in panels[0].texts] == [("fault 1", 10.0), ("fault 2", 25.5)]
    assert not any(axes.texts for axes in panels[1:4])


def test_the_intended_rate_is_beside_the_offered_and_the_answered_one(panels):
    lines = labelled(panels[0])
    assert set(lines) == {"offered", "answered", "intended"}
    data = lines["intended"].get_data()
    assert (list(data.values), list(data.edges)) == ([1.0, 3.0], [0.0, 20.0, 40.0])


def test_latencies_stand_by_outcome_below_or_above_the_deadline(panels):
    lines = labelled(panels[2])
    assert list(lines["deadline"].get_ydata()) == [7.5, 7.5]
    points = lines["one request, refused"].get_offsets()
    assert np.asarray(points).tolist() == [[5.0, 1.0]]


def test_the_queue_and_the_shares_are_those_of_the_records(panels):
    in_progress = labelled(panels[1])["in progress"]
    assert max(in_progress.get_ydata()) == 3  # two images at a time, and the refused request
    answered = labelled(panels[4])["answered"]
    assert (answered.get_xdata()[0], answered.get_ydata()[-1]) == (2.0, 1.0)
