"""Images are decoded by the ranks in turn, beside the next tick where that may be; a failure ends its job only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from raycache.demo.noise import build_noise_model
from raycache.gang.agreement import agreed
from raycache.gang.worker_group import Fault
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import Job
from raycache.protocol.tick import Tick, TickReport
from raycache.worker.job_runner import JobRunner
from raycache.worker.observer import Observer
from tests.helpers.flux_pipe import load
from tests.helpers.jobs import make_job
from tests.helpers.one_rank import CACHE, Failing, job, runner_of
from tests.helpers.ticks import draw


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> FluxPipeline:
    return load(build_noise_model(tmp_path_factory.mktemp("noise") / "model", layers=1, single_layers=2))


def spread(runners: list[JobRunner], jobs: dict[Job, int]) -> list[TickReport]:
    """What all say when they decode ``jobs`` in one tick. Each draws them whole, as after a call without a group."""
    reports = []
    for runner in runners:
        number = 0
        names, done = tuple(job.id for job in jobs), set[str]()
        while done < set(names):
            start = tuple(jobs) if number == 0 else ()
            left = tuple(name for name in names if name not in done)
            done |= set(runner.tick(Tick(number, number - 1, start=start, calls=(left,))).done)
            number += 1
        reports.append(runner.tick(Tick(number, number - 1, end=names)))
    return reports


@pytest.mark.slow
def test_rows_are_decoded_by_the_ranks_in_turn(pipe: FluxPipeline):
    jobs = {
        make_job("a", seeds=(7, 8, 9), steps=3, cache=CACHE): 0,
        job("b", 3, 3): 0,
        make_job("c", seeds=(4, 5), steps=3, cache=CACHE): 0,
    }
    reports = spread([runner_of(pipe, rank, world=2) for rank in range(2)], jobs)
    rows = [{(name, row) for name, images in report.decoded.items() for row in images} for report in reports]
    assert rows == [{("a", 0), ("a", 2), ("c", 0)}, {("a", 1), ("b", 0), ("c", 1)}]
    outputs = agreed(reports).outputs
    (alone,) = spread([runner_of(pipe)], jobs)
    expected = agreed([alone]).outputs
    for one in jobs:
        np.testing.assert_array_equal(outputs[one.id].images, expected[one.id].images)
        assert len(outputs[one.id].images) == len(one.images)
        assert outputs[one.id].images.std() > 5
        assert outputs[one.id].decode_s == max(report.decode_s.get(one.id, 0.0) for report in reports) > 0


def test_a_rank_that_cannot_decode_its_row_ends_that_job_only(pipe: FluxPipeline):
    runners = [runner_of(pipe, rank, Failing("a", "decode") if rank else None, world=2) for rank in range(2)]
    told = agreed(spread(runners, {make_job("a", seeds=(7, 8), steps=3, cache=CACHE): 0, job("b", 3, 3): 0}))
    assert [(failure.jobs, failure.phase) for failure in told.failures] == [(("a",), "decode")]
    assert list(told.outputs) == ["b"]
    assert all(runner.tick(Tick(9, 8)) == TickReport(9) for runner in runners), "no rank stands still for it"


def test_a_group_that_breaks_while_tiles_are_handed_over_is_no_fault_of_the_job():
    failure = Failure("group", ("a",), "decode", 3, "DistNetworkError", "connection closed", "")
    with pytest.raises(Fault, match="connection closed"):
        agreed([TickReport(4), TickReport(4, failures=[failure])])


def test_images_are_decoded_beside_the_next_tick(pipe: FluxPipeline):
    """What a tick begins is told by the next that is carried out, whether there is anything else to do or not."""
    runner = runner_of(pipe, overlaps=True)
    runner.tick(Tick(0, start=(job("a", steps=1), job("b", 1, 6)), calls=(("a", "b"),)))
    began = runner.tick(Tick(1, 0, calls=(("b",),), end=("a",)))
    assert (began.decoding, began.outputs, began.decoded) == (["a"], {}, {})
    assert [event.step for event in began.progress.get("a", [])] == []
    told = runner.tick(Tick(2, 1, calls=(("b",),), end=("a",)))
    assert (told.decoding, list(told.outputs)) == ([], ["a"]), "it ends once"
    expected = draw(runner_of(pipe), {job("a", steps=1): 0}).outputs["a"]
    np.testing.assert_array_equal(agreed([told]).outputs["a"].images, expected.images)
    runner.tick(Tick(3, 2, abort=("b",)))


def test_what_cannot_be_decoded_is_told_with_the_next_tick_and_stops_nothing(pipe: FluxPipeline):
    runner = runner_of(pipe, observer=Failing("a", "decode"), overlaps=True)
    runner.tick(Tick(0, start=(job("a", steps=1), job("b", 1, 2)), calls=(("a", "b"),)))
    began = runner.tick(Tick(1, 0, calls=(("b",),), end=("a",)))
    assert (began.decoding, began.failures, began.done) == (["a"], [], ["b"])
    told = runner.tick(Tick(2, 1, end=("b",)))
    assert [(failure.jobs, failure.phase, failure.type) for failure in told.failures] == [
        (("a",), "decode", "RuntimeError")
    ]
    assert list(runner.tick(Tick(3, 1)).outputs) == ["b"], "not skipped, though the gang does not know of it"


def test_images_are_not_lost_where_ticks_are_skipped(pipe: FluxPipeline):
    runner = runner_of(pipe, observer=Failing("bad", "denoise", step=1), overlaps=True)
    runner.tick(Tick(0, start=(job("a", steps=1), job("bad", 1, 5)), calls=(("a", "bad"),)))
    broken = runner.tick(Tick(1, 0, calls=(("bad",),), end=("a",)))
    assert (broken.decoding, len(broken.failures)) == ([], 1), "broken off before it began"
    assert runner.tick(Tick(2, 0, end=("a",))).skipped
    assert runner.tick(Tick(3, 1, end=("a",))).decoding == ["a"]
    assert list(runner.tick(Tick(4, 3)).outputs) == ["a"]


def test_a_tick_that_breaks_off_does_not_wait_for_images(pipe: FluxPipeline):
    """Other ranks have none to wait for: this one would be late with the news."""
    runner = runner_of(pipe, observer=Failing("bad", "denoise", step=2), overlaps=True)
    runner.tick(Tick(0, start=(job("a", steps=1), job("bad", 1, 5)), calls=(("a", "bad"),)))
    assert runner.tick(Tick(1, 0, calls=(("bad",),), end=("a",))).decoding == ["a"]
    broken = runner.tick(Tick(2, 1, calls=(("bad",),)))
    assert (len(broken.failures), broken.decoding, broken.outputs) == (1, ["a"], {})
    assert list(runner.tick(Tick(3, 2)).outputs) == ["a"]


def test_what_finds_no_memory_beside_a_call_is_decoded_after_it(pipe: FluxPipeline):
    class Full(Observer):
        tries = 0

        def entered(self, job: Job, phase: str) -> None:
            if phase == "decode":
                self.tries += 1
                if self.tries == 1:
                    raise torch.OutOfMemoryError("on purpose")

    observer = Full()
    runner = runner_of(pipe, observer=observer, overlaps=True)
    runner.tick(Tick(0, start=(job("a", steps=1),), calls=(("a",),)))
    runner.tick(Tick(1, 0, end=("a",)))
    told = runner.tick(Tick(2, 1))
    assert (list(told.outputs), told.failures, observer.tries) == (["a"], [], 2)
