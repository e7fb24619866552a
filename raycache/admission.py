"""Who may wait for the gang: a bounded queue, counted in jobs and in predicted seconds of work.

Counting jobs alone is not enough: four steps at 256x256 and fifty at 2048x2048 differ a thousandfold. Seconds are
learned from the gang's own finished jobs.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raycache.errors import RequestError, invalid, unavailable
from raycache.settings import Policy

_REMEMBERED = 512
#: Weight of the newest job; the mean follows a change of load within a few jobs.
_NEWEST = 0.3


@dataclass(frozen=True)
class Work:
    """What decides how long a job takes."""

    width: int
    height: int
    images: int
    steps: int
    cache: str

    @property
    def size(self) -> float:
        """Megapixel-steps."""
        return self.width * self.height * self.images * self.steps / 1e6


@dataclass
class _Seen:
    """What finished jobs of one kind took, in seconds."""

    count: int
    mean: float
    fastest: float


class Predictor:
    """Seconds a job keeps the gang busy: its own kind's moving mean, else scaled from other sizes and steps."""

    def __init__(self) -> None:
        self._exact: OrderedDict[Work, _Seen] = OrderedDict()
        self._rates: OrderedDict[str, _Seen] = OrderedDict()

    def learn(self, work: Work, seconds: float) -> None:
        """Take in a finished job; the least recently drawn kind is forgotten beyond 512."""
        _mix(self._exact, work, seconds)
        _mix(self._rates, work.cache, seconds / work.size)

    def seconds(self, work: Work) -> float | None:
        """Expected seconds; None before anything was drawn."""
        if work in self._exact:
            return self._exact[work].mean
        if not self._rates:
            return None
        rate = self._rates.get(work.cache) or max(self._rates.values(), key=lambda seen: seen.mean)
        return rate.mean * work.size

    def fastest(self, work: Work) -> float:
        """The fastest of at least two jobs of exactly this kind; 0 while there are fewer."""
        seen = self._exact.get(work)
        return seen.fastest if seen and seen.count > 1 else 0.0


def _mix(kinds: OrderedDict[Any, _Seen], kind: Work | str, seconds: float) -> None:
    seen = kinds.setdefault(kind, _Seen(0, seconds, seconds))
    seen.count += 1
    seen.mean += _NEWEST * (seconds - seen.mean)
    seen.fastest = min(seen.fastest, seconds)
    kinds.move_to_end(kind)
    if len(kinds) > _REMEMBERED:
        kinds.popitem(last=False)


@dataclass(eq=False)
class Ticket:
    """A job's place in the queue."""

    work: Work
    seconds: float


class Admission:
    """The queue in front of one gang, which runs one job at a time in order of arrival. Thread-safe.

    Args:
        policy: the limits in force.
        clock: seconds, monotonic.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self.predictor = Predictor()
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
            own = self.predictor.seconds(work) or 0.0
            wait = self._wait()
            self._refuse_late(self.predictor.fastest(work), own, wait, timeout_s)
            if mending_s and mending_s + wait + own > timeout_s:
                message = f"new ranks need about {mending_s:.0f} s after a fault, and {timeout_s:g} s are allowed"
                raise unavailable(message, mending_s, "gang_restarting")
            self._refuse_overload(own, wait)
            ticket = Ticket(work, own)
            if not self._tickets:
                self._head_since = self._clock()
            self._tickets[ticket] = None
            return ticket

    def release(self, ticket: Ticket, seconds: float | None = None) -> None:
        """The job has left the gang. ``seconds``: how long it kept the gang busy, if it was finished."""
        with self._lock:
            was_head = next(iter(self._tickets), None) is ticket
            self._tickets.pop(ticket, None)
            if was_head:
                self._head_since = self._clock()
            if seconds is not None:
                self.predictor.learn(ticket.work, seconds)

    def load(self) -> tuple[int, bool, float]:
        """Jobs waiting, whether one runs, predicted seconds until a new job would start."""
        with self._lock:
            held = len(self._tickets)
            return max(0, held - 1), held > 0, self._wait()

    def expected(self, ticket: Ticket) -> float | None:
        """Seconds that a job like this one takes; None before anything was learned."""
        with self._lock:
            return self.predictor.seconds(ticket.work)

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
