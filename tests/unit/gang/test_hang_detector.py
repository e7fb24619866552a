"""Which ranks hang, told without ranks: time and waits for a CPU are numbers that a test sets."""

from __future__ import annotations

from collections import defaultdict

import pytest

from raycache.gang.hang_detector import HangDetector
from raycache.protocol.heartbeat import Heartbeat, Phase

FLOOR_S, STEP_S = 5.0, 8.0


def heartbeat(rank: int, step: int = 0, phase: Phase = "denoise", *jobs: str, calls: int = 0) -> Heartbeat:
    return Heartbeat(100 + rank, "node", "cpu", [], jobs or ("1",), phase, step, calls, 0, 0, 0.0)


@pytest.fixture
def cpu_wait() -> dict[int, float]:
    """Seconds each process has waited for a CPU."""
    return defaultdict(float)


@pytest.fixture
def detector(cpu_wait: dict[int, float]) -> HangDetector:
    """Two ranks that have loaded at 10 s, and got a job there."""
    detector = HangDetector(2, FLOOR_S, lambda pid: cpu_wait[pid], 0.0)
    detector.loaded([heartbeat(0), heartbeat(1)], 10.0)
    detector.work_sent(10.0)
    return detector


def answer(detector: HangDetector, now: float, *steps: int) -> None:
    """Every rank answers at ``now`` and tells its step."""
    for rank, step in enumerate(steps):
        detector.heard(rank, heartbeat(rank, step), now)


def test_a_rank_that_does_not_answer_hangs_whatever_the_other_does(detector: HangDetector):
    detector.heard(0, heartbeat(0, 1), 15.5)
    assert detector.hang(15.0, None) is None, "exactly the time-out is allowed"
    assert detector.hang(15.5, None) == "rank 1 (pid 101, denoise, step 0) has not answered for 5.5 s"
    assert detector.ages(16.0) == [0.5, 6.0]


def test_standing_still_hangs_only_while_there_is_a_job(detector: HangDetector):
    answer(detector, 18.5, 0, 0)
    assert detector.hang(18.0, STEP_S) is None
    assert detector.hang(18.5, STEP_S) == "rank 0 (pid 100, denoise, step 0) has made no progress for 8.5 s"
    assert detector.hang(18.5, None) is None, "idle ranks have nothing to show"


def test_a_rank_that_waits_for_one_that_advances_does_not_hang(detector: HangDetector):
    answer(detector, 17.0, 0, 1)
    answer(detector, 24.0, 0, 1)
    assert detector.hang(24.0, STEP_S) is None
    answer(detector, 26.0, 0, 1)
    message = detector.hang(26.0, STEP_S)
    assert message == "rank 0 (pid 100, denoise, step 0) has made no progress for 16.0 s", "the one that stopped first"


@pytest.mark.parametrize(
    "now",
    [heartbeat(0, 1), heartbeat(0, 0, "decode"), heartbeat(0, 0, "denoise", "2"), heartbeat(0, calls=1)],
    ids=["step", "phase", "job", "call"],
)
def test_each_change_of_place_is_progress(detector: HangDetector, now: Heartbeat):
    detector.heard(0, now, 17.0)
    answer_of_the_other = heartbeat(1)
    detector.heard(1, answer_of_the_other, 20.0)
    detector.heard(0, now, 20.0)
    assert detector.hang(20.0, STEP_S) is None
    assert detector.ranks[0].advanced_at == 17.0


def test_seconds_without_a_cpu_do_not_count(detector: HangDetector, cpu_wait: dict[int, float]):
    answer(detector, 14.0, 0, 0)
    cpu_wait[101] = 4.0
    assert detector.hang(21.0, None) is None, "7 s of silence, 4 of them without a CPU"
    answer(detector, 21.0, 0, 0)
    assert detector.hang(21.5, STEP_S) is None, "11.5 s of standstill, 4 of them without a CPU"
    answer(detector, 24.0, 0, 0)
    assert detector.hang(24.0, STEP_S) is not None


def test_waits_before_the_last_progress_do_not_count(detector: HangDetector, cpu_wait: dict[int, float]):
    cpu_wait[100] = cpu_wait[101] = 50.0
    answer(detector, 12.0, 1, 1)
    answer(detector, 20.5, 1, 1)
    assert detector.hang(20.5, STEP_S) is not None
    detector.work_sent(20.5)
    assert detector.hang(20.5, STEP_S) is None, "a new job gets time of its own"


def test_ranks_without_a_cpu_do_not_get_for_ever(detector: HangDetector, cpu_wait: dict[int, float]):
    cpu_wait[100] = cpu_wait[101] = 1e6
    assert detector.hang(10.0 + 6 * FLOOR_S, None) is None
    assert detector.hang(10.1 + 6 * FLOOR_S, None) is not None


def test_loading_starts_the_clocks_anew():
    detector = HangDetector(1, FLOOR_S, lambda pid: 0.0, 0.0)
    detector.introduce([heartbeat(0, phase="loading")])
    assert detector.ages(600.0) == [600.0]
    detector.loaded([heartbeat(0, phase="idle")], 600.0)
    assert detector.ages(600.0) == [0.0]
    assert detector.hang(604.0, STEP_S) is None


def test_waits_before_the_job_do_not_count(detector: HangDetector, cpu_wait: dict[int, float]):
    cpu_wait[100] = cpu_wait[101] = 50.0
    answer(detector, 12.0, 0, 0)
    detector.work_sent(12.0)
    answer(detector, 20.5, 0, 0)
    assert detector.hang(20.5, STEP_S) is not None
