"""Any jobs on one transformer, at any time: what each decides and draws is what it does alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.demo.noise import build_noise_model
from raycache.worker.stepper import Stepper
from tests.helpers.flux_pipe import load
from tests.helpers.tiny_flux import decisions
from tests.helpers.traffic import alone, drive, pipes_of, traffic

PROPERTY = settings(max_examples=12, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> FluxPipeline:
    folder: Path = tmp_path_factory.mktemp("noise") / "model"
    return load(build_noise_model(folder, layers=1, single_layers=3))


@pytest.mark.slow
def test_every_job_is_as_alone(pipe: FluxPipeline):
    pipes, met = pipes_of(pipe), set[str]()

    @given(st.integers(0, 2**32))
    @PROPERTY
    def holds(seed: int) -> None:
        rng = random.Random(seed)
        jobs = traffic(rng, rng.randint(2, 5))
        ended, most = drive(Stepper(pipe), pipes, jobs, rng)
        met.add(f"{most} in a call")
        for job in jobs:
            if (one := ended.get(job.name)) is None:
                met.add("dropped")
                continue
            assert one.error is None
            expected, report = alone(pipes, job)
            torch.testing.assert_close(one.result, expected, atol=1e-4, rtol=1e-4)
            for row in range(job.images):
                decided = decisions(report, row)
                assert decisions(one.report, row) == decided
                met.update((job.task, job.options.type, *("saved" for d in decided if d[0] or d[2])))
        assert not pipe.transformer._forward_pre_hooks

    holds()
    assert {"text", "image", "cfg", "DBCache", "FBCache", "DBPrune", "none", "dropped", "saved"} <= met
    assert met & {"3 in a call", "4 in a call", "5 in a call"}, "it must not hold because nothing ever met"
