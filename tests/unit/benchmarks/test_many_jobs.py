"""The arithmetic, the kept values and the plot of benchmarks.many_jobs; no gang."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.crowd import mixed_steps, small_mix
from benchmarks.many_jobs import MIX
from benchmarks.report import quantile, spread
from benchmarks.scheduler_costs import between_calls_s
from benchmarks.timeline import Bar, Line, bars_of, draw
from benchmarks.ways import FAIR, FIFO, Row, in_turns, kept, mean_rows
from raycache.protocol.job import JobOutput
from raycache.protocol.tick import Called, TickReport

ROOT = Path(__file__).parents[3]


def output(decode_s: float) -> JobOutput:
    return JobOutput(np.zeros((1, 8, 8, 3), np.uint8), None, 0.5, 1.0, decode_s)


TICKS = [
    (10.0, TickReport(0, started_s={"a": 1.0}, calls=[Called(("a",), 2.0, (1.0,))])),
    (14.0, TickReport(1, started_s={"b": 0.5}, calls=[Called(("a", "b"), 3.0, (0.25, 1.0))])),
    (17.0, TickReport(2, calls=[Called(("b",), 1.0, (0.25,))], outputs={"a": output(0.5)})),
]
LINES = [Line("b", "the second", "two", 11.0, 19.0), Line("a", "the first", "one", 6.5, 17.0)]


def test_a_spread_is_the_median_and_the_ends():
    assert spread([]) == "-"
    assert spread([2.0]) == "2"
    assert spread([3.0, 1.0, 2.0]) == "2 (1 - 3)"


def test_a_quantile_is_one_of_the_values():
    assert quantile([5.0], 0.95) == 5.0
    assert quantile(list(range(100)), 0.95) == 95
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_ratios_are_those_within_a_round():
    """The medians of both are equal, and fair is never equal to fifo."""
    row = Row("what", "s")
    for fifo, fair in ((1.0, 2.0), (2.0, 4.0), (4.0, 1.0)):
        row.add({FIFO: fifo, FAIR: fair})
    assert row.cells() == ["what", "s", "2 (1 - 4)", "2 (1 - 4)", "2 (0.25 - 2)"]


def test_a_row_that_only_one_way_has_shows_no_ratio():
    row = Row("what", "s")
    row.add({FAIR: 1.0})
    assert row.cells()[2:] == ["-", "1", "-"]


def test_who_is_first_changes():
    names = [list(pair) for _, pair in in_turns({FIFO: "x", FAIR: "y"}, 3)]
    assert names == [["x", "y"], ["y", "x"], ["x", "y"]]


def test_values_of_other_parts_stay(tmp_path: Path):
    path = tmp_path / "new" / "values.json"
    assert kept(path, []) == []
    assert not path.exists(), "nothing was measured"
    first, second = Row("a", "s", {FIFO: [1.0]}), Row("b", "s", {FAIR: [2.0, 3.0]})
    kept(path, [first, second])
    again = Row("a", "s", {FIFO: [9.0]})
    assert kept(path, [again]) == [again, second]
    assert kept(path, []) == [again, second]


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "values.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"values\.json must hold rows"):
        kept(path, [Row("a", "s")])
    assert path.read_text() == "[1, 2]"


def test_rows_in_a_call():
    assert mean_rows(TICKS) == pytest.approx(4 / 3)
    assert mean_rows([]) == 0.0


def test_between_calls_is_what_reports_are_apart_less_the_call():
    """Of ticks that encode or decode nobody knows what is the scheduler's; the first has none before it."""
    assert between_calls_s(TICKS) == []
    ticks = [*TICKS, (18.25, TickReport(3, calls=[Called(("b",), 1.0, (1.0,))]))]
    assert between_calls_s(ticks) == [pytest.approx(0.25)]


def test_both_ways_are_asked_for_the_same():
    assert small_mix(ROOT / MIX, 40) == small_mix(ROOT / MIX, 40)
    assert {request["size"] for request in small_mix(ROOT / MIX, 40)} == {"64x64"}
    asked = mixed_steps(40)
    assert asked == mixed_steps(40)
    assert len({request["num_inference_steps"] for request in asked}) > 2
    assert len({request["guidance_scale"] for request in asked}) > 2


def test_a_tick_ends_when_its_report_is_there():
    bars = bars_of(TICKS)
    assert Counter(bar.phase for bar in bars) == {"encode": 2, "call": 4, "decode": 1}
    assert bars[:2] == [Bar("a", 7.0, 1.0, "encode"), Bar("a", 8.0, 2.0, "call", 1.0, ("a",))]
    both = [bar for bar in bars if bar.joined]
    assert [(bar.job, bar.begin, bar.seconds, bar.share) for bar in both] == [
        ("a", 11.0, 3.0, 0.25),
        ("b", 11.0, 3.0, 1.0),
    ]
    assert bars[-1] == Bar("a", 16.5, 0.5, "decode")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.slow
def test_the_image_shows_bars_links_and_what_was_reused(tmp_path: Path):
    drawn = bars_of(TICKS)
    draw(LINES, drawn, whole := tmp_path / "sub" / "whole.png", "title")
    draw(LINES, [], empty := tmp_path / "empty.png", "title")
    apart = [Bar(bar.job, bar.begin, bar.seconds, bar.phase, bar.share, (bar.job,)) for bar in drawn]
    draw(LINES, apart, alone := tmp_path / "alone.png", "title")
    full = [Bar(bar.job, bar.begin, bar.seconds, bar.phase, 1.0, bar.members) for bar in drawn]
    draw(LINES, full, dark := tmp_path / "dark.png", "title")
    shown = {path.stem: pixels(path) for path in (whole, empty, alone, dark)}
    assert shown["whole"].shape == shown["empty"].shape
    assert shown["whole"].min() < 60, "there is something on it"
    coloured = {name: int((np.ptp(image, axis=2) > 60).sum()) for name, image in shown.items()}
    assert coloured["whole"] > coloured["empty"] + 1000
    assert shown["dark"].sum() < shown["whole"].sum(), "reused blocks are lighter"
    dark_pixels = {name: int((image.max(axis=2) < 60).sum()) for name, image in shown.items()}
    assert dark_pixels["whole"] > dark_pixels["alone"], "joined calls are outlined and linked"


def test_a_timeline_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one job"):
        draw([], [], tmp_path / "none.png", "title")
    with pytest.raises(ValueError, match=r"no line: \['c'\]"):
        draw(LINES, [Bar("c", 0.0, 1.0, "call")], tmp_path / "none.png", "title")
