"""Each way a rank can fail, in each stage: what was under way is drawn again, and every image is the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from raycache.gang.gang import Gang
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job_errors import JobFailed
from raycache.size import Size
from raycache.testing.planned_faults import PlannedFault
from tests.serving.conftest import job, wait_until


def test_the_declared_shape_is_warm(gang: Gang):
    assert gang._life.timeouts.seconds([job()], "denoise") == 2.0


STAGES = {"processes", "rendezvous", "import", "read", "copy", "split", "compile", "warm-up"}
#: Between steps, a rank dies in `test_service_faults.py`, and one is stopped in `test_gang_lives_on.py`.
FAULTS = {
    "death": [PlannedFault(kind="kill", rank=1, at="encode"), PlannedFault(kind="kill", rank=0, at="decode")],
    "hang": [PlannedFault(kind="sleep", rank=1, step=3)],
    "error": [PlannedFault(kind="oom", rank=1, step=4)],
}
CASES = [pytest.param(kind, plan, id=f"{plan.kind}-{plan.rank}-{plan.at}") for kind in FAULTS for plan in FAULTS[kind]]


@pytest.mark.parametrize(("kind", "plan"), CASES)
def test_a_fault_costs_no_job(gang: Gang, reference: np.ndarray, tmp_path: Path, kind: str, plan: PlannedFault):
    before = gang.status()
    once = tmp_path / "happened"
    faulty = job(prompt=plan.model_copy(update={"once": str(once)}).prompt())
    running, behind = gang.submit(faulty), gang.submit(job())
    drawn = running.future.result(150).images
    assert once.exists()
    np.testing.assert_array_equal(behind.future.result(60).images, reference)
    after = gang.status()
    assert after.restarts == before.restarts + 1
    assert after.retries - before.retries in (1, 2), "the one behind may have been begun, and is drawn again too"
    assert after.causes.get(kind, 0) == before.causes.get(kind, 0) + 1, after.faults[-1]
    recovery = after.last_recovery
    assert recovery.kind == kind
    assert recovery.killed_s < recovery.ready_s < recovery.image_s
    assert set(recovery.stages) == STAGES
    np.testing.assert_array_equal(gang.submit(faulty).future.result(60).images, drawn)
    assert not {rank["pid"] for rank in before.ranks} & {rank["pid"] for rank in after.ranks}


@pytest.mark.parametrize(("rank", "at"), [(1, "encode"), (0, "decode")])
def test_a_hang_in_a_size_never_drawn_is_seen_as_soon_as_any(gang: Gang, tmp_path: Path, rank: int, at: str):
    """Its work is predicted from the sizes that the warm-up drew."""
    plan = PlannedFault(kind="sleep", rank=rank, at=at, once=str(tmp_path / "happened"))
    size = Size(128, 96 if at == "encode" else 160)
    running = gang.submit(job(prompt=plan.prompt(), size=str(size)))
    wait_until((tmp_path / "happened").exists)
    restarts = gang.status().restarts
    assert wait_until(lambda: gang.status().restarts > restarts) < 10.0
    assert gang.status().faults[-1].startswith("hang")
    assert running.future.result(150).images.shape == (1, size.height, size.width, 3)


def test_death_of_a_rank_that_has_nothing_left_to_do(gang: Gang, reference: np.ndarray):
    """Rank 0 decodes alone; what it draws is still good, but nobody waits for ranks of which one is gone."""
    before = gang.status().restarts
    handle = gang.submit(job(prompt=PlannedFault(kind="sleep", at="decode", seconds=1.5).prompt()))
    wait_until(lambda: gang.status().ranks[0].get("phase") == "decode")
    os.kill(gang.status().ranks[1]["pid"], signal.SIGKILL)
    assert handle.future.result(120).images.shape == reference.shape
    wait_until(lambda: gang.status().restarts == before + 1 and gang.status().ready, 120)
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)


@pytest.mark.parametrize("kind", ["raise", "oom"])
def test_an_error_where_rank_0_is_alone_ends_the_job_only(gang: Gang, reference: np.ndarray, kind: str):
    before = gang.status().restarts
    with pytest.raises(JobFailed, match="on purpose"):
        gang.submit(job(prompt=PlannedFault(kind=kind, at="decode").prompt())).future.result(60)
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)
    assert gang.status().restarts == before


@pytest.mark.parametrize("rank", [0, 1])
def test_numbers_that_are_none_stay_in_their_job(gang: Gang, reference: np.ndarray, rank: int):
    before = gang.status().restarts
    output = gang.submit(job(prompt=PlannedFault(kind="nan", rank=rank, step=2).prompt())).future.result(60)
    assert output.report["totals"]["non_finite"] > 0
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)
    assert gang.status().restarts == before


def test_a_job_that_breaks_every_gang_is_not_drawn_for_ever(gang: Gang, reference: np.ndarray):
    before = gang.status().restarts
    handle = gang.submit(job(prompt=PlannedFault(kind="raise", rank=1, step=2).prompt()))
    with pytest.raises(JobFailed, match=r"on purpose.*tried 2 times"):
        handle.future.result(180)
    np.testing.assert_array_equal(gang.submit(job()).future.result(120).images, reference)
    assert gang.status().restarts == before + 2


def test_same_error_in_different_places_is_no_agreement():
    """Ranks that stopped at different collectives would answer each other's next ones."""
    first, second = (Failure("error", ("1",), "denoise", step, "MemoryError", "on purpose", "") for step in (2, 3))
    assert first.place != second.place
