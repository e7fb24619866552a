"""Who may wait for the gang: a bounded queue, counted in jobs and in predicted seconds of work.

Counting jobs alone is not enough: four steps at 256x256 and fifty at 2048x2048 differ a thousandfold. Seconds are
learned from what the gang has drawn, the warm-up included (:mod:`raycache.costs`).
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from raycache.costs import Costs, Work
from raycache.errors import RequestError, invalid, unavailable
from raycache.settings import Policy

#: Weight of the newest batch in the moving mean.
_NEWEST = 0.3


@dataclass(eq=False)
class Ticket:
    """A job's place in the queue."""

    work: Work
    seconds: float


class Admission:
    """The queue in front of one gang, which runs one job at a time in order of arrival. Thread-safe.

    Args:
        policy: the limits in force.
        costs: what jobs take; the gang teaches it.
        clock: seconds, monotonic.
    """

    def __init__(self, policy: Policy, costs: Costs, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy, self._costs = policy, costs
        self._together: float | None = None  # what a job costs the gang in its batch, beside what it costs alone
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets: OrderedDict[Ticket, None] = OrderedDict()
        self._head_since = 0.0

    def admit(self, work: Work, timeout_s: float, mending_s: float = 0.0) -> Ticket:
        """A place in the queue; give it back with :meth:`release`.

        Args:
            mending_s: seconds until the gang will have new ranks, where it has lost its own.

        Raises:
            RequestError: 429 with the seconds after which there is room; 503 where another engine may be in time; 400
                when no waiting can help, because the job alone takes longer than its deadline allows.
        """
        with self._lock:
            own = self._costs.seconds(work) or 0.0
            wait = self._wait()
            self._refuse_late(self._costs.fastest(work), own, wait, timeout_s)
            if mending_s and mending_s + wait + own > timeout_s:
                message = f"new ranks need about {mending_s:.0f} s after a fault, and {timeout_s:g} s are allowed"
                raise unavailable(message, mending_s, "gang_restarting")
            self._refuse_overload(own, wait)
            ticket = Ticket(work, own * (self._together or 1.0))
            if not self._tickets:
                self._head_since = self._clock()
            self._tickets[ticket] = None
            return ticket

    def release(self, ticket: Ticket, seconds: float | None = None) -> None:
        """The job has left the gang. ``seconds``: its part of the gang's time, if it was drawn with others."""
        with self._lock:
            was_head = next(iter(self._tickets), None) is ticket
            self._tickets.pop(ticket, None)
            if was_head:
                self._head_since = self._clock()
            if seconds is not None and (alone := self._costs.seconds(ticket.work)):
                now = seconds / alone
                self._together = now if self._together is None else self._together + _NEWEST * (now - self._together)

    def load(self) -> tuple[int, bool, float]:
        """Jobs waiting, whether one runs, predicted seconds until a new job would start."""
        with self._lock:
            held = len(self._tickets)
            return max(0, held - 1), held > 0, self._wait()

    def _wait(self) -> float:
        if not self._tickets:
            return 0.0
        head, *rest = self._tickets
        return max(0.0, head.seconds - (self._clock() - self._head_since)) + sum(ticket.seconds for ticket in rest)

    def _refuse_late(self, fastest: float, own: float, wait: float, timeout_s: float) -> None:
        # Refused for good only on the fastest run ever seen: a mean spoilt by one slow job would never be put right.
        if fastest > timeout_s:
            reason = f"this job takes at least {fastest:.1f} s by itself, and {timeout_s:g} s are allowed"
            raise invalid("timeout_s", reason, [math.ceil(own)], "deadline_too_short")
        if wait and wait + own > timeout_s:
            message = f"about {wait:.1f} s of work is queued, so this job cannot be done in {timeout_s:g} s"
            raise RequestError(429, message, "timeout_s", "deadline_unreachable", min(wait, wait + own - timeout_s))

    def _refuse_overload(self, own: float, wait: float) -> None:
        policy = self.policy
        if len(self._tickets) > policy.max_queued_requests:
            message = f"{len(self._tickets) - 1} jobs wait already, at most {policy.max_queued_requests} may"
            # Room for one comes when the running job ends.
            head = next(iter(self._tickets))
            left = max(0.0, head.seconds - (self._clock() - self._head_since))
            raise RequestError(429, message, None, "queue_full", left or 1.0)
        if self._tickets and wait + own > policy.max_queued_seconds:
            limit = policy.max_queued_seconds
            message = (
                f"about {wait:.0f} s of work is queued and this job adds {own:.0f} s; at most {limit:g} s may queue"
            )
            raise RequestError(429, message, None, "queue_full", wait + own - limit)
