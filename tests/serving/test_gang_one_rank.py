"""Errors that one rank meets alone: harmless in the decoder, a fault of the gang where the others wait for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

import raycache.actors
import raycache.rank
from raycache.gang import Gang, JobFailed
from raycache.job import Job
from raycache.rank import Failure, Rank
from tests.serving import test_gang_one_rank as this_module
from tests.serving.test_gang_draws import CACHE, job


class FaultyRank(Rank):
    """Does what the prompt says."""

    def generate(self, job: Job) -> Any:
        decode = raycache.rank.decode
        if job.prompt == "decode fails":
            raycache.rank.decode = _out_of_memory
        try:
            return super().generate(job)
        finally:
            raycache.rank.decode = decode

    def _step_done(self, job: Job, report: Any, step: int, state: dict[str, Any]) -> dict[str, Any]:
        if step == 2 and self._rank == 1:
            if job.prompt == "rank 1 raises":
                _out_of_memory()
            if job.prompt == "rank 1 raises once" and not os.path.exists(job.id):
                open(job.id, "w").close()
                _out_of_memory()
        return super()._step_done(job, report, step, state)


def _out_of_memory(*_: Any) -> Any:
    raise MemoryError("on purpose")


@pytest.fixture(scope="module")
def gang(local_ray, gang_settings) -> Iterator[Gang]:
    cloudpickle.register_pickle_by_value(this_module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raycache.actors, "Rank", this_module.FaultyRank)
        gang = Gang(gang_settings(warmup=[{"size": "64x64"}], cache=CACHE.model_dump()), name="one-rank")
        gang.start()
        yield gang
        gang.shutdown()
    cloudpickle.unregister_pickle_by_value(this_module)


@pytest.fixture(scope="module")
def reference(gang: Gang) -> np.ndarray:
    return gang.submit(job()).future.result(60).images


def test_the_declared_shape_is_warm(gang: Gang):
    assert gang._life.patience.seconds(job(), "denoise") == 5.0


def test_a_failing_decoder_ends_the_job_only(gang: Gang, reference: np.ndarray):
    with pytest.raises(JobFailed, match="MemoryError: on purpose"):
        gang.submit(job(prompt="decode fails")).future.result(60)
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)
    assert gang.status().restarts == 0


def test_one_raising_rank_is_replaced_with_the_others_and_the_job_drawn_again(gang, reference, tmp_path):
    wanted = job()
    wanted = Job(**{**vars(wanted), "id": str(tmp_path / "raised"), "prompt": "rank 1 raises once"})
    began = time.monotonic()
    output = gang.submit(wanted).future.result(90)
    assert output.images.shape == reference.shape
    assert os.path.exists(wanted.id)
    assert gang.status().restarts == 1
    assert "on 1 of 2 ranks" in gang.status().faults[-1]
    assert time.monotonic() - began < 80
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)


def test_a_job_that_breaks_every_gang_is_not_drawn_for_ever(gang: Gang, reference: np.ndarray):
    before = gang.status().restarts
    handle = gang.submit(job(prompt="rank 1 raises"))
    with pytest.raises(JobFailed, match=r"on purpose.*drawn 2 times"):
        handle.future.result(120)
    np.testing.assert_array_equal(gang.submit(job()).future.result(90).images, reference)
    assert gang.status().restarts == before + 2


def test_same_error_in_different_places_is_no_agreement():
    """Ranks that stopped at different collectives would answer each other's next ones."""
    first, second = (Failure("error", "denoise", step, "MemoryError", "on purpose", "") for step in (2, 3))
    assert first.place != second.place
