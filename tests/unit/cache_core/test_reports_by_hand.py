"""Reports written by hand: totals, JSON and the table for people, whatever a model would have decided."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cache_core import cache_session
from cache_core.consensus import Consensus
from cache_core.report import CacheReport, ImageDecision, StepRecord
from cache_core.summary import format_summary
from tests.helpers.tiny_flux import Job, draw

BLOCKS = 30


def _report(*steps: tuple[str, list[ImageDecision]], **totals: Any) -> CacheReport:
    report = CacheReport("DBPrune", {"warmup_steps": 1}, BLOCKS, **totals)
    taken: dict[str, int] = {}
    for branch, images in steps:
        report.steps.append(StepRecord(taken.get(branch, 0), branch, images))
        taken[branch] = taken.get(branch, 0) + 1
    return report


def _computed(blocks: int = BLOCKS) -> ImageDecision:
    return ImageDecision(computed_blocks=blocks)


def _pruned(count: int) -> ImageDecision:
    return ImageDecision(pruned_blocks=list(range(count)), computed_blocks=BLOCKS - count, reason="below")


def _cached(blocks: int) -> ImageDecision:
    return ImageDecision(cached=True, computed_blocks=blocks, reason="below")


def test_branches_of_fewer_images_count_for_the_images_they_have():
    report = _report(("both", [_computed(), _cached(10)]), ("one", [_cached(20)]), ("both", [_cached(5), _computed()]))
    assert report.cached_steps == [2, 1]
    assert report.computed_block_fraction == [55 / 90, 40 / 60]
    totals = report.to_dict()["totals"]
    assert totals["computed_block_fraction"] == [0.611111, 0.666667]


def test_totals_are_those_of_the_report():
    totals = _report(("", [_computed()]), collectives=41, non_finite=3).to_dict()["totals"]
    assert (totals["collectives"], totals["non_finite"], totals["steps"]) == (41, 3, 1)


def test_json_is_a_copy():
    decision = _pruned(2)
    decision.differences[3] = (None, 0.1)
    report = _report(("", [decision]))
    written = report.to_dict(detail=True)
    image = written["steps"][0]["images"][0]
    assert image["differences"] == {3: [None, 0.1]}
    image["pruned_blocks"].append(7)
    image["differences"][3].append(1)
    written["options"]["warmup_steps"] = 9
    assert report.to_dict(detail=True)["steps"][0]["images"][0]["pruned_blocks"] == [0, 1]
    assert decision.differences == {3: (None, 0.1)}
    assert report.options == {"warmup_steps": 1}
    assert "differences" not in report.to_dict()["steps"][0]["images"][0]


@pytest.mark.parametrize(("count", "digit"), [(0, "."), (1, "0"), (3, "1"), (15, "5"), (29, "9"), (30, "9")])
def test_a_digit_is_the_tenths_of_its_blocks_that_were_pruned(count: int, digit: str):
    table = format_summary({"transformer": _report(("b", [_computed()]), ("b", [_pruned(count)]))})
    assert table.splitlines()[-1].split()[-1] == f".{digit}"


def test_the_table_has_a_line_for_each_image_and_branch_that_has_it():
    report = _report(
        ("both", [_computed(), _pruned(15)]),
        ("one", [_computed()]),
        ("both", [_cached(6), _pruned(0)]),
        ("one", [_cached(3)]),
        ("one", [_cached(3)]),
        collectives=4,
        non_finite=1,
    )
    head, columns, *lines = format_summary({"transformer": report}).splitlines()
    assert head == "transformer: DBPrune, 5 steps of 30 blocks, 4 collectives, 1 non-finite"
    assert columns.split() == ["image", "branch", "cached", "computed", "steps"]
    assert [line.split() for line in lines] == [
        ["0", "both", "1", "60.0%", ".#"],
        ["0", "one", "2", "40.0%", ".##"],
        ["1", "both", "1", "75.0%", "5."],
    ]


def test_no_report_no_table():
    assert format_summary({}) == "no cached call yet"


def test_messages_between_ranks_are_counted_as_they_are_sent(flux: torch.nn.Module, monkeypatch: pytest.MonkeyPatch):
    """The consensus counts over its life; the report has the number so far, also while the job runs."""

    def agree(self: Any, sums: Any, abort: bool, checksum: int, device: Any, width: int) -> Any:
        self.collectives, self.wait_s = self.collectives + 1, self.wait_s + 0.5
        return [None if pair is None else (1.0, 2.0) for pair in sums], abort

    monkeypatch.setattr(Consensus, "agree", agree)
    with cache_session(flux, {"type": "none"}) as report:
        draw(flux, Job(steps=3))
        assert (report.collectives, report.collective_wait_s) == (3, 1.5)
        assert report.computed_block_fraction == [1.0]
