"""How long requests wait for a gang, and how many gangs a goal needs: an approximation, and a simulation.

The formula assumes that requests arrive at random (Poisson), that any free gang takes the one that has waited longest,
and that a gang runs one after the other. `benchmarks.capacity` compares it with Serve's router and the engine's own
scheduler.
"""

from __future__ import annotations

import math
import random
from collections import deque

__all__ = ["answered_p95", "gangs_needed", "gangs_that_hold", "wait_p95"]


def wait_p95(per_second: float, service_s: float, gangs: int, variation: float = 0.0) -> float:
    """Seconds that 95 % of requests wait at most.

    Erlang's C gives the share that waits at all. Those requests wait ``(1 + v^2) S / (2 c (1 - rho))`` on average
    (exact for one gang, and for exponential service times), and an exponential tail is assumed: ``ln(20 C)`` times the
    mean of those that wait, zero if fewer than 5 % wait.

    Args:
        per_second: arrivals; service_s: mean seconds of a request on a gang; gangs: their number.
        variation: standard deviation of service times over their mean; 0 if all are equal.

    Returns:
        Seconds; infinity if the gangs cannot keep up.
    """
    load = per_second * service_s / gangs
    if load >= 1:
        return math.inf
    waiting = _erlang_c(per_second * service_s, gangs)
    if waiting <= 0.05:
        return 0.0
    of_those_who_wait = (1 + variation**2) * service_s / (2 * gangs * (1 - load))
    return math.log(20 * waiting) * of_those_who_wait


def _erlang_c(offered: float, gangs: int) -> float:
    """Share of requests that find every gang busy; ``offered`` is arrivals times service time, below ``gangs``."""
    lost = 1.0  # Erlang's B, gang by gang
    for k in range(1, gangs + 1):
        lost = offered * lost / (k + offered * lost)
    return lost / (1 - offered / gangs * (1 - lost))


def gangs_needed(per_minute: float, goal_s: float, service_s: float) -> int | None:
    """Gangs that answer 95 % of ``per_minute`` equal images within ``goal_s``; None if one image takes longer."""
    if service_s >= goal_s:
        return None
    gangs = 1
    while service_s + wait_p95(per_minute / 60, service_s, gangs) > goal_s:
        gangs += 1
    return gangs


def answered_p95(
    per_second: float, service_s: float, gangs: int, *, one_queue: bool = False, requests: int = 20_000, seed: int = 0
) -> float:
    """Seconds within which 95 % of equal requests are answered, by a simulation of ``requests`` of them.

    Args:
        one_queue: any free gang takes the oldest, as the formula assumes. Otherwise each gang has its own queue and a
            request joins the shorter of two random ones, as in Ray Serve's router.

    The first twentieth of the requests is not counted.
    """
    rng = random.Random(seed)
    free_at = [0.0] * gangs  # when each gang has finished its queue
    ends: list[deque[float]] = [deque() for _ in range(gangs)]
    now, took = 0.0, []
    for _ in range(requests):
        now += rng.expovariate(per_second)
        if one_queue or gangs == 1:
            gang = min(range(gangs), key=free_at.__getitem__)
        else:
            first = int(gangs * rng.random())
            second = (first + 1 + int((gangs - 1) * rng.random())) % gangs  # a different one
            for each in (first, second):
                while ends[each] and ends[each][0] <= now:
                    ends[each].popleft()
            gang = first if len(ends[first]) <= len(ends[second]) else second
        free_at[gang] = max(now, free_at[gang]) + service_s
        ends[gang].append(free_at[gang])
        took.append(free_at[gang] - now)
    counted = sorted(took[requests // 20 :])
    return counted[int(0.95 * len(counted))]


def gangs_that_hold(per_minute: float, goal_s: float, service_s: float) -> int | None:
    """Like `gangs_needed`, but behind Serve's router, by simulation; None if one image takes longer than the goal."""
    gangs = gangs_needed(per_minute, goal_s, service_s)
    if gangs is None:
        return None
    while answered_p95(per_minute / 60, service_s, gangs) > goal_s:
        gangs += 1
    return gangs
