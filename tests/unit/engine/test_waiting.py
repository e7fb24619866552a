"""Arrivals against the real admission with a clock of their own: who waits as long as it was told gets in."""

from __future__ import annotations

import contextlib
import itertools
import random
from functools import partial
from typing import Any

import pytest

from raycache.gang.costs import Work
from raycache.gang.schedule import Rules
from raycache.protocol.errors import RequestError
from tests.helpers.waiting import FIFO, LONG, SHORT, Unsure, World


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False], ids=["all alike", "each another"])
@pytest.mark.parametrize("step_s", [0.002, 0.05, 0.1, 1.0])
def test_a_burst_over_the_queue_gets_in_when_told(step_s: float, same: bool):
    """All sixteen come at once; four find room, and no second refusal follows the first."""
    world = World(step_s=step_s)
    for number in range(16):
        world.at(0.0, lambda number=number: world.arrive("a" if same else str(number), SHORT))
    world.run(1e5)
    assert len(world.told) == 12
    assert world.twice == []
    assert world.most == 4, "nobody had to be let in beyond the limit"
    # Nor is anybody told to wait much longer than the work before it takes.
    assert max(after for after, _ in world.told) <= 1.5 * 16 * 10 * step_s + 5


@pytest.mark.slow
@pytest.mark.parametrize("error", [0.1, 0.3, 0.5])
@pytest.mark.parametrize(
    ("policy", "limits"),
    [
        ({"max_queued_requests": 0}, {}),
        ({"max_queued_requests": 1}, {}),
        ({"max_queued_requests": 30, "max_queued_seconds": 10.0}, {}),
        ({"max_queued_requests": 30}, {"max_jobs_per_key": 1}),
    ],
    ids=["no queue", "short queue", "few seconds", "one a key"],
)
def test_what_is_not_sure_is_told_with_one_margin_however_many_wait(
    policy: dict[str, Any], limits: dict[str, Any], error: float
):
    """Margins grew upon margins: the last of twenty-four was told days instead of minutes."""
    world = World(policy=policy, limits=limits)
    world.costs = world.admission._costs = Unsure(world.costs, error)
    for number in range(24):
        world.at(0.0, lambda number=number: world.arrive(str(number), LONG, key="one", timeout_s=1e6))
    world.run(0.0)
    assert len(world.told) >= 20
    assert max(after for after, _ in world.told) <= (1 + error) * 24 * 5 + 24, "each is told a whole second"
    world.run(1e5)
    assert world.twice == []


@pytest.mark.parametrize("rebuild_s", [5.0, 23.0, 60.0])
def test_while_ranks_are_rebuilt(rebuild_s: float):
    """It was 1 s whatever the rebuild takes, and none of twelve got in."""
    world = World(rebuilt_at=rebuild_s, said_s=rebuild_s)
    for number in range(16):
        world.at(0.3 * number, lambda number=number: world.arrive(str(number), SHORT))
    world.run(1e5)
    assert len(world.told) == 12
    assert world.twice == []
    assert world.most == 4
    assert min(after for after, _ in world.told) > rebuild_s - 5


def test_a_rebuild_that_takes_half_as_long_again_breaks_no_promise():
    world = World(rebuilt_at=30.0, said_s=20.0)
    for number in range(16):
        world.at(0.3 * number, lambda number=number: world.arrive(str(number), SHORT))
    world.run(1e5)
    assert world.twice == []


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_crowd_that_keeps_coming(noise: float):
    """One and a half times what the gang can draw, of short and long jobs, for ten minutes."""
    world = World(noise=noise, policy={"max_queued_requests": 8, "max_queued_seconds": 40.0})
    luck, at = random.Random(5), 0.0
    for number in itertools.count():
        at += luck.expovariate(1.5 / 3.0)
        if at > 600:
            break
        work = luck.choice([SHORT, LONG])
        world.at(at, lambda number=number, work=work: world.arrive(str(number), work))
    world.run(1e5)
    first = [after for after, tries in world.told if not tries]
    assert len(first) > 50
    assert len(world.twice) <= 0.05 * len(first)
    # Promises that came due early, and those of minutes, for which no place was kept, go beyond the limit.
    assert world.most <= (9 if not noise else 18)
    # 300 s of work came in too much, and nobody waits for much more.
    assert max(first) <= 500
    if not noise:
        assert world.twice == []


def test_a_deadline_is_told_when_it_can_be_met():
    world = World(policy={"max_queued_requests": 30})
    for number in range(5):
        world.at(0.0, lambda number=number: world.arrive(f"long {number}", LONG))
    world.at(0.5, lambda: world.arrive("hasty", SHORT, timeout_s=8.0))
    world.run(0.5)
    ((after, _),) = world.told
    # 24.5 s of work are before it, it takes 1 s, and 8 s are allowed; the step under way counts as all to be done.
    assert 17.5 <= after <= 20
    world.run(1e5)
    assert world.twice == []


def test_limits_of_a_key_are_its_own():
    world = World(policy={"max_queued_requests": 30}, limits={"max_jobs_per_key": 2, "max_queued_seconds_per_key": 8.0})
    for number in range(4):
        world.at(0.0, lambda number=number: world.arrive(str(number), SHORT, key="greedy"))
    world.at(0.0, lambda: world.arrive("long", LONG, key="heavy"))
    world.at(0.1, lambda: world.arrive("long too", LONG, key="heavy"))
    world.at(0.2, lambda: world.arrive("modest", SHORT, key="modest"))
    world.at(0.2, lambda: world.arrive("nobody", SHORT))
    world.run(0.3)
    assert len(world.told) == 3
    assert [(ticket.key, ticket.job.calls) for ticket in world.queue] == [
        ("greedy", 10), ("greedy", 10), ("heavy", 50), ("modest", 10), (None, 10)
    ]  # fmt: skip
    world.run(1e5)
    assert world.twice == []


def test_a_client_that_comes_too_early_waits_no_less_and_steals_nothing():
    world = World()
    for number in range(8):
        world.at(0.0, lambda number=number: world.arrive(str(number), SHORT))
    early = [0.2 * number for number in range(1, 60)]
    for at in early:
        world.at(at, lambda: refused(world, "pushy"))
    world.run(1e5)
    assert world.twice == []


def refused(world: World, name: str) -> None:
    """A client that asks again and again, and leaves as soon as it is let in."""
    with contextlib.suppress(RequestError):
        world.admission.release(world.admit(name, SHORT))


def test_places_kept_for_clients_that_never_come_are_free_again():
    world = World()
    for number in range(8):
        world.at(0.0, lambda number=number: world.arrive(str(number), SHORT))
    world.run(0.0)
    world._events = [event for event in world._events if event[0] < 1.5]  # nobody comes back
    world.run(1.5)
    world.now = 100.0
    for ticket in world.queue:
        world.admission.release(ticket)
    for number in range(4):
        world.admit(f"new {number}", SHORT)


def promised_nobody(world: World, timeout_s: float = 300.0) -> None:
    """Twelve were told to come again who are never heard of any more, and whoever was let in is done."""
    held = []
    for number in range(16):
        with contextlib.suppress(RequestError):
            held.append(world.admit(f"gone {number}", SHORT, timeout_s))
    for ticket in held:
        world.admission.release(ticket)


@pytest.mark.parametrize("at", [0.0, 4.0, 6.0, 12.0])
@pytest.mark.parametrize("work", [SHORT, LONG], ids=["short", "long"])
def test_an_idle_gang_draws_whoever_is_there(work: Work, at: float):
    world = World()
    promised_nobody(world)
    world.now = at
    world.admit("here", work)
    if work is LONG:
        with pytest.raises(RequestError, match="kept for clients"):
            world.admit("one more", work)


def test_whom_another_engine_may_draw_no_place_is_kept_for():
    """The ingress asks one when an engine has lost its ranks; whether it did, the first is never told."""
    world = World(rebuilt_at=5.0, said_s=5.0)
    promised_nobody(world, timeout_s=5.0)
    world.rebuilt_at = 0.0
    for number in range(4):
        world.admit(f"here {number}", LONG)


def test_nobody_is_refused_for_the_sake_of_clients_that_were_told_to_wait_for_minutes():
    """Those that do come back get in all the same."""
    world = World(step_s=30.0, policy={"max_queued_seconds": 1e6})
    promised_nobody(world, timeout_s=1e6)
    for number in range(4):
        world.admit(f"here {number}", LONG, 1e6)
    world.now = 2000.0
    with pytest.raises(RequestError):
        world.admit("stranger", SHORT, 1e6)
    told = [promise for promise in world.admission._line._promises if promise.at <= world.now <= promise.until]
    for promise in told:
        world.admission.admit(f"{promise.at} {promise.mark}", SHORT, 1e6, mark=promise.mark)
    assert told


FAIR = [Rules(max_active=3), Rules(max_active=3, max_rows=1)]
CALLERS = ["a", "b", None]


@pytest.mark.slow
@pytest.mark.parametrize("works", [[SHORT], [SHORT, LONG]], ids=["alike", "short and long"])
@pytest.mark.parametrize("rules", FAIR, ids=["joined", "alone"])
def test_many_jobs_at_once_of_several_callers(rules: Rules, works: list[Work]):
    """Jobs take 15 % more or less than predicted; all twelve that find no room get in when told."""
    world = World(rules=rules, noise=0.15, policy={"max_queued_requests": 1})
    for number in range(16):
        work, key = works[number % len(works)], CALLERS[number % 3]
        world.at(0.0, lambda number=number, work=work, key=key: world.arrive(str(number), work, key=key))
    world.run(1e5)
    assert len(world.told) == 12
    assert world.twice == []
    assert world.missed == []
    assert world.most <= 8, "four may be there; some come that were told to, while others have got in their way"
    total_s = sum(works[number % len(works)].steps * 0.1 for number in range(16))
    assert max(after for after, _ in world.told) <= 1.5 * total_s + 5


@pytest.mark.slow
@pytest.mark.parametrize(("works", "allowed_s"), [([SHORT], 6.35), ([SHORT, LONG], 25.7)], ids=["alike", "mixed"])
def test_deadlines_of_many_jobs_at_once(works: list[Work], allowed_s: float):
    """Four times as much as can be done in time comes at once: they get in when told."""
    first = again = missed = jobs = 0
    for seed, rules in itertools.product(range(2), [*FAIR, Rules(), FIFO]):
        world = World(rules=rules, noise=0.15, policy={"max_queued_requests": 30})
        world.luck = random.Random(seed)
        for number in range(24):
            work, key = works[number % len(works)], CALLERS[number % 3]
            come = partial(world.arrive, str(number), work, key=key, timeout_s=allowed_s)
            world.at(0.0, come)
        world.run(1e5)
        first += sum(not tries for _, tries in world.told)
        again += sum(tries == 1 for _, tries in world.told)
        missed, jobs = missed + len(world.missed), jobs + 24
        total_s = sum(works[number % len(works)].steps * 0.1 for number in range(24))
        assert max(after for after, _ in world.told) <= total_s + 5
    assert first > 60
    assert again <= 0.1 * first
    assert missed <= 0.15 * jobs, "no more than in order of arrival"
