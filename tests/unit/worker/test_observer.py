"""The observer that the environment names is found and told in a rank, here one without Ray around it."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycache.demo.noise import build_noise_model
from raycache.protocol.heartbeat import Phase
from raycache.protocol.job import Job
from raycache.settings import AppSettings
from raycache.testing.planned_faults import PlannedFault, enable_planned_faults
from raycache.worker.observer import VARIABLE, Observer, observer_of
from raycache.worker.rank import Rank
from tests.helpers.jobs import make_job
from tests.helpers.ticks import draw


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("noise") / "model", layers=1, single_layers=1)


@pytest.fixture
def rank(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Rank]]:
    """A rank as its actor makes it, alone in its gang; what it changes in this process is put back."""
    logger = logging.getLogger("raycache")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    monkeypatch.delenv(VARIABLE, raising=False)

    def make() -> Rank:
        settings = AppSettings.model_validate(
            {
                "model": {"path": str(model), "dtype": "float32"},
                "parallel": {"ranks_per_replica": 1, "device": "cpu", "threads_per_rank": 1},
            }
        )
        made = Rank(settings, 0, str(tmp_path / "stacks"))
        made.load(str(model), "noise")
        return made

    yield make
    faulthandler.unregister(signal.SIGUSR1)
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def faulty(rank: Callable[[], Rank], monkeypatch: pytest.MonkeyPatch) -> Rank:
    """Set as tests and benchmarks set it."""
    monkeypatch.setenv(VARIABLE, "")  # and put back what is there
    enable_planned_faults()
    return rank()


def job(name: str, prompt: str = "a red circle", **changes: Any) -> Job:
    return make_job(name, prompt=prompt, steps=3, **changes)


class Told(Observer):
    """Notes what it is told, and where."""

    told: list[tuple[Any, ...]]

    def __init__(self, rank: int = 0) -> None:
        super().__init__(rank)
        Told.told = [(rank, os.getpid())]

    def entered(self, job: Job, phase: Phase) -> None:
        self.told.append((job.id, phase))

    def step_ends(self, job: Job, step: int, latents: torch.Tensor) -> torch.Tensor | None:
        self.told.append((job.id, step, latents.isfinite().all().item()))
        return None


def test_a_rank_tells_whom_the_environment_names(rank: Callable[[], Rank], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, f"{__name__}:Told")
    draw(rank(), {job("a"): 0})
    steps = [place for step in range(3) for place in (("a", "denoise"), ("a", step, True))]
    assert Told.told == [(0, os.getpid()), ("a", "encode"), *steps, ("a", "decode")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "phase", "step"),
    [
        (PlannedFault(kind="raise", at="encode"), "encode", 0),
        (PlannedFault(kind="raise", step=1), "denoise", 1),
        (PlannedFault(kind="oom", step=2), "denoise", 2),
        (PlannedFault(kind="raise", at="decode"), "decode", 3),
    ],
    ids=["encoding", "a step", "the last step", "decoding"],
)
def test_an_error_is_raised_where_it_is_planned(faulty: Rank, plan: PlannedFault, phase: Phase, step: int):
    drawn = draw(faulty, {job("bad", plan.prompt()): 0, job("good"): 0})
    (failure,) = drawn.failures
    assert (failure.jobs, failure.phase, failure.step) == (("bad",), phase, step)
    assert failure.message.endswith("on purpose")
    assert list(drawn.outputs) == ["good"]


@pytest.mark.parametrize(("kind", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_a_rank_signals_itself_once(
    faulty: Rank, kind: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("raycache.testing.planned_faults.os.kill", lambda *signaled: sent.append(signaled))
    plan = PlannedFault.model_validate({"kind": kind, "step": 1, "once": str(tmp_path / "happened")})
    for name in ("first", "again"):
        assert draw(faulty, {job(name, plan.prompt()): 0}).outputs
    assert sent == [(os.getpid(), number)]


def test_a_rank_sleeps_until_it_may_wake(faulty: Rank, tmp_path: Path):
    plan = PlannedFault(kind="sleep", step=1, seconds=0.5)
    began = time.monotonic()
    draw(faulty, {job("sleeps", plan.prompt()): 0})
    assert time.monotonic() - began >= 0.5
    awake = tmp_path / "awake"
    awake.touch()
    plan = plan.model_copy(update={"seconds": 3600, "until": str(awake)})
    assert draw(faulty, {job("wakes", plan.prompt()): 0}).outputs


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # what is drawn of them, where numpy says so
def test_latents_turn_into_nan(faulty: Rank):
    nan = draw(faulty, {job("nan", PlannedFault(kind="nan", step=1).prompt()): 0}).outputs["nan"]
    fine = draw(faulty, {job("fine"): 0}).outputs["fine"]
    assert np.ptp(nan.images) == 0 < np.ptp(fine.images)


def test_a_plan_for_another_rank_is_none_for_this_one(faulty: Rank, rank: Callable[[], Rank]):
    plan = PlannedFault(kind="raise", rank=1, step=1)
    assert draw(faulty, {job("a", plan.prompt()): 0}).outputs


def test_a_plan_is_a_prompt_like_any_other_where_nothing_is_named(rank: Callable[[], Rank]):
    assert draw(rank(), {job("a", PlannedFault(kind="raise").prompt()): 0}).outputs
    assert type(observer_of(3)) is Observer


@pytest.mark.parametrize(
    "path", ["no.such.module:Name", "raycache.worker.rank:Nobody", "raycache.worker.rank:Rank", ":"]
)
def test_who_names_no_observer_is_told(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, path)
    with pytest.raises(ValueError, match=f"{VARIABLE}={path}"):
        observer_of(0)
