"""What LTX-2 makes besides frames reaches the job's output, from whichever rank decodes the video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raycache.gang.agreement import agreed
from raycache.models.videos import LTX2Family
from raycache.protocol.tick import Tick
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.tiny_models import tiny_job, tiny_pipe


@pytest.mark.slow
def test_the_sound_comes_from_the_rank_that_decodes():
    pipe = tiny_pipe("ltx2")
    device = torch.device("cpu")
    runners = [JobRunner(RankContext(pipe, LTX2Family(), rank, device, 64, 2), None) for rank in range(2)]
    job = tiny_job("ltx2", "text-to-video", seeds=(7,), steps=2)
    jobs = [replace(job, id=name) for name in ("one", "two")]  # rows go to the ranks in turn
    done, number, reports = set[str](), 0, []
    while done < {"one", "two"}:
        start = tuple(jobs) if number == 0 else ()
        calls = tuple((one.id,) for one in jobs if one.id not in done)
        reports = [runner.tick(Tick(number, number - 1, start=start, calls=calls)) for runner in runners]
        done |= set(reports[0].done)
        number += 1
    reports = [runner.tick(Tick(number, number - 1, end=("one", "two"))) for runner in runners]
    assert [set(report.sounds) for report in reports] == [{"one"}, {"two"}]
    outputs = agreed(reports).outputs
    frames = outputs["one"].images.shape[1]
    for output in outputs.values():
        samples, rate = output.sound.samples, output.sound.rate
        assert (samples.shape[1], samples.dtype, rate) == (2, np.float32, 24_000)
        assert np.abs(samples).max() <= 1
        assert samples.std() > 0
        assert abs(len(samples) / rate - frames / 24) < 0.2
    np.testing.assert_array_equal(outputs["one"].sound.samples, outputs["two"].sound.samples)
