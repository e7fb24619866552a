"""One run: its users and their rate, the steps it reached, and the ranks it kills."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace

import gevent
import pytest

from loadtests import drive as driving
from loadtests import users
from loadtests.drive import Scenario, drive
from loadtests.mix import Mix
from loadtests.records import Record
from loadtests.shapes import Burst, Constant, Steps
from loadtests.users import Plan


@pytest.fixture
def plan() -> Plan:
    entry = {"weight": 1, "request": {"prompt": "x", "size": "64x64"}}
    return Plan(Mix.model_validate({"seeds": 1, "entries": [entry]}), rate_per_user=0.5)


@pytest.fixture(autouse=True)
def service(monkeypatch):
    """Every request is answered after a quarter of a second, without HTTP: sockets would block locust's loop here."""

    def send(client, ask, record: Record, recorder, began: float, **options) -> None:
        record.sent, record.outcome = time.monotonic() - began, "done"
        gevent.sleep(0.25)
        record.ended = time.monotonic() - began
        recorder.add(record)

    monkeypatch.setattr(users, "send", send)


def run(plan: Plan, scenario: Scenario, seconds: float = 0.8, **options) -> driving.Run:
    given = {"rate": 8.0, "users": 2, "deadline": 30.0, "kill": None} | options
    return drive("http://127.0.0.1:9", scenario, plan, seconds=seconds, **given)


def test_the_rate_is_shared_by_sources_and_the_run_ends_with_its_last_answer(plan: Plan):
    result = run(plan, Scenario.open)
    assert plan.users * plan.rate_per_user == pytest.approx(8.0)
    assert plan.users == 16
    assert plan.recorder.records
    assert not len(plan.under_way)
    assert result.offering >= 0.8
    assert result.length >= max(record.ended for record in plan.recorder.records)
    assert result.levels == result.faults == []


def test_a_low_rate_still_has_sources_that_mix(plan: Plan):
    run(plan, Scenario.open, rate=0.1)
    assert plan.users == 4
    assert plan.rate_per_user == 0.025


def test_clients_of_a_closed_loop_wait_for_their_answers(plan: Plan):
    run(plan, Scenario.closed, users=1)
    own = sorted(plan.recorder.records, key=lambda record: record.sent)
    assert plan.users == 1
    assert len(own) > 1
    assert all(first.ended <= second.sent for first, second in pairwise(own))


def test_steps_end_at_the_first_that_misses_the_goal(plan: Plan):
    """Every answer is late for a deadline of 0.1 s, so the first of six steps of a second is the last."""
    result = run(plan, Scenario.step, seconds=6.0, deadline=0.1)
    assert [(level.rate, level.whole) for level in result.levels] == [(8.0, True)]


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        (25.0, [True, True, False]),
        (29.5, [True, True, False]),
        (30.0, [True, True, True]),
        (31.0, [True, True, True]),
    ],
)
def test_a_step_is_whole_if_it_reached_its_planned_end(plan: Plan, end: float, whole: list[bool]):
    """Steps of 10 s start up to a second late, because locust asks once a second."""
    shape = Steps(4, seconds=60)
    shape.levels = [(0.1, 4), (10.9, 8), (20.9, 12)]
    levels = driving._levels(shape, plan, end)
    assert [level.whole for level in levels] == whole
    assert [(level.start, level.end) for level in levels] == [(0.1, 10.9), (10.9, 20.9), (20.9, end)]
    assert [level.rate for level in levels] == [2.0, 4.0, 6.0]


def test_a_short_step_that_was_broken_off_is_not_whole(plan: Plan):
    shape = Steps(4, seconds=9)
    shape.levels = [(0.0, 4), (2.0, 8)]
    assert [level.whole for level in driving._levels(shape, plan, 2.5)] == [True, False]


@pytest.mark.parametrize("seconds", [0.7, 1.0, 61.3, 119.9])
def test_the_last_step_ends_with_the_run(plan: Plan, seconds: float):
    """6 * (seconds / 6) may be more than seconds."""
    shape = Steps(4, seconds=seconds)
    shape.levels = [(5 * shape.hold + seconds / 100, 24)]
    assert driving._levels(shape, plan, seconds)[0].whole


def test_each_scenario_has_its_shape(plan: Plan):
    shapes = {scenario: type(driving._shape(scenario, plan, 4, 60.0, 5.0)) for scenario in Scenario}
    constant = dict.fromkeys((Scenario.open, Scenario.closed, Scenario.soak), Constant)
    assert shapes == constant | {Scenario.step: Steps, Scenario.burst: Burst}


def test_steps_look_at_what_ended_in_the_last_step_only(plan: Plan):
    """Late answers of the step before do not end the run again and again, and vice versa."""
    plan.began = time.monotonic() - 100.0
    early_late = [Record(0, 0, 0.0, ended=80.0, outcome="done")] * 5
    good = [Record(0, 0, 94.0, ended=95.0, outcome="done")] * 5
    plan.recorder.records = [*early_late, *good]
    assert not driving._missed(plan, 10.0, deadline=5.0)
    assert driving._missed(plan, 30.0, deadline=5.0)
    assert driving._missed(plan, 10.0, deadline=0.5)


class Killing:
    """Two engines of two ranks on a clock of their own; what happens at each kill is scripted."""

    def __init__(self, monkeypatch, sizes: tuple[int, int] = (2, 4), errors: tuple[Exception | None, ...] = ()) -> None:
        self.now, self.killed, self._errors = 0.0, [], iter(errors)
        monkeypatch.setattr(driving, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(driving, "gevent", SimpleNamespace(sleep=self._sleep))
        monkeypatch.setattr(driving, "sizes", lambda url: sizes)
        monkeypatch.setattr(driving, "kill_rank", self._kill)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _kill(self, url: str, rank: int, engine: int) -> None:
        if error := next(self._errors, None):
            raise error
        self.killed.append((engine, rank))

    def run(self, plan: Plan) -> list[dict]:
        plan.began, faults = 0.0, []
        driving._kill_ranks("", 10.0, 60.0, plan, faults)
        return faults


def test_every_rank_of_every_engine_is_killed_in_turn(monkeypatch, plan: Plan):
    killing = Killing(monkeypatch)
    faults = killing.run(plan)
    assert killing.killed == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]
    assert [fault["at"] for fault in faults] == [10, 20, 30, 40, 50]
    assert faults[3]["what"] == "SIGKILL of rank 1 of engine 1"


def test_one_engine_needs_no_number(monkeypatch, plan: Plan):
    assert Killing(monkeypatch, sizes=(1, 2)).run(plan)[1]["what"] == "SIGKILL of rank 1"


@pytest.mark.parametrize("error", [KeyError("pid"), IndexError(), ProcessLookupError(), TimeoutError()])
def test_a_rank_that_is_being_restarted_is_killed_the_next_time(monkeypatch, plan: Plan, error: Exception):
    killing = Killing(monkeypatch, errors=(error,))
    assert [fault["at"] for fault in killing.run(plan)] == [20, 30, 40, 50]
    assert killing.killed[0] == (0, 0)


def test_without_an_engine_nothing_is_killed(monkeypatch, plan: Plan):
    killing = Killing(monkeypatch, sizes=(0, 0))
    assert killing.run(plan) == killing.killed == []


def test_a_run_notes_its_faults(monkeypatch, plan: Plan):
    monkeypatch.setattr(driving, "sizes", lambda url: (1, 1))
    monkeypatch.setattr(driving, "kill_rank", lambda url, rank, engine: time.time())
    assert [fault["what"] for fault in run(plan, Scenario.soak, kill=0.5).faults] == ["SIGKILL of rank 0"]


def test_a_source_sends_while_earlier_requests_wait(plan: Plan):
    """Four sources of 20 per second; if each waited for its answers, they would send 16 in all."""
    plan.rate_per_user = 20.0
    run(plan, Scenario.open, rate=80.0)
    assert plan.users == 4
    assert len(plan.recorder.records) > 30


def test_a_late_source_catches_up(plan: Plan):
    """After 100 s in which it could not send, what was due is sent at once, with its intended time."""
    source = object.__new__(users.OpenLoop)
    source.plan, source.rng, source._next = plan, plan.next_source(), 0.0
    plan.began = time.monotonic() - 100.0
    assert [source.wait_time() for _ in range(5)] == [0.0] * 5
    assert 0.0 < source._next < 100.0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clients_that_hang_up_have_little_patience(monkeypatch, plan: Plan, share: float):
    seen = []
    monkeypatch.setattr(users, "send", lambda *rest, **options: seen.append(options))
    plan.abandonment = share
    client = object.__new__(users.ClosedLoop)
    client.plan, client.rng, client.client = plan, plan.next_source(), None
    for _ in range(20):
        client._ask(0.0)
    assert {options["leaves"] for options in seen} == {share == 1.0}
    assert all((options["patience"] <= plan.abandon_within) == (share == 1.0) for options in seen)
