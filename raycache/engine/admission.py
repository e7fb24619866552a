"""Who may wait for the gang: a bounded queue, counted in jobs and in predicted seconds of work.

Counting jobs alone is not enough: four steps at 256x256 and fifty at 2048x2048 differ a thousandfold. Seconds are
learned from what the gang has drawn, the warm-up included (:mod:`raycache.gang.costs`).
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial

from raycache.engine.line import Limits, Line, Place
from raycache.gang.costs import Costs, Work
from raycache.protocol.errors import RequestError, invalid, unavailable
from raycache.settings import Policy

__all__ = ["Admission", "Ticket"]

#: Weight of the newest batch in the moving mean.
_NEWEST = 0.3
#: A job that takes longer than predicted is expected to go on for this share of what it has taken.
_OVERDUE = 0.1
#: Before any job was finished, only the warm-up has spoken, whose draws may take twice what later ones do.
_WARM_UP_TIMES = 2.0


@dataclass(eq=False)
class Ticket(Place):
    """A job's place in the queue."""

    work: Work = field(kw_only=True)


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
        self._line = Line()
        self._head_since = 0.0

    def admit(
        self,
        work: Work,
        timeout_s: float,
        recovery_s: float = 0.0,
        *,
        key: str | None = None,
        mark: Hashable = None,
    ) -> Ticket:
        """A place in the queue; give it back with :meth:`release`.

        Args:
            recovery_s: seconds until the gang will have new ranks, where it has lost its own.
            key: whose limits count, where there are keys.
            mark: of the client and what it asks, to know it again when it comes back.

        Raises:
            RequestError: 429 with the seconds after which this job gets in; 503 where another engine may be in time;
                400 when no waiting can help, because the job alone takes longer than is allowed.
        """
        with self._lock:
            now, own = self._clock(), self._costs.seconds(work) or 0.0
            self._refuse_long(work, own, timeout_s)
            ticket = Ticket(own * (self._together or 1.0), key, work=work)
            queue = self._queue(now, recovery_s)
            refusal = self._refusal(ticket, own, queue, now, timeout_s, recovery_s, mark)
            if refusal is not None:
                patience_s = max(timeout_s, own) - (own - ticket.seconds)
                how = {"turns": refusal.code != "key_limit", "firm": refusal.code != "gang_restarting"}
                refusal.retry_after_s = self._promise(ticket, mark, queue, now, patience_s, **how)
                raise refusal
            if not self._tickets:
                self._head_since = now
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

    def again_in(self, ticket: Ticket, timeout_s: float, recovery_s: float, mark: Hashable = None) -> float:
        """Seconds after which the job of ``ticket``, which was lost, gets in when it is sent again."""
        with self._lock:
            now = self._clock()
            place = Ticket(ticket.seconds, ticket.key, work=ticket.work)
            queue = [(held, at) for held, at in self._queue(now, recovery_s) if held is not ticket]
            return self._promise(place, mark, queue, now, max(timeout_s, place.seconds), firm=False)

    def load(self, recovery_s: float = 0.0) -> tuple[int, bool, float]:
        """Jobs waiting, whether one runs, predicted seconds until a new job would start."""
        with self._lock:
            held, now = len(self._tickets), self._clock()
            return max(0, held - 1), held > 0, self._wait(now, recovery_s)

    def _wait(self, now: float, recovery_s: float) -> float:
        if not self._tickets:
            return recovery_s
        head, *rest = self._tickets
        return self._left(head, now, recovery_s) + sum(ticket.seconds for ticket in rest)

    def _left(self, head: Ticket, now: float, recovery_s: float) -> float:
        """Seconds until the running job is done. One that lost its ranks is drawn from its beginning."""
        if recovery_s:
            self._head_since = now + recovery_s
        return max(0.0, head.seconds - (now - self._head_since))

    def _queue(self, now: float, recovery_s: float) -> list[tuple[Place, float]]:
        """All places, and when each will have left."""
        queue: list[tuple[Place, float]] = []
        at = now
        for ticket in self._tickets:
            if not queue:
                at += max(self._left(ticket, now, recovery_s), _OVERDUE * (now - self._head_since))
            else:
                at += ticket.seconds
            queue.append((ticket, at))
        if recovery_s and not queue:
            queue.append((Place(0.0), now + recovery_s))  # nobody can be drawn before
        return queue

    def _limits(self) -> Limits:
        policy, limits = self.policy, self.policy.limits
        return Limits(
            policy.max_queued_requests + 1,
            policy.max_queued_seconds,
            limits.max_jobs_per_key or math.inf,
            limits.max_queued_seconds_per_key or math.inf,
        )

    def _promise(
        self,
        ticket: Ticket,
        mark: Hashable,
        queue: list[tuple[Place, float]],
        now: float,
        patience_s: float,
        **how: bool,
    ) -> float:
        unsure = min(0.5, self._costs.error)
        return self._line.promise(ticket, mark, queue, now, self._limits(), patience_s=patience_s, unsure=unsure, **how)

    def _refuse_long(self, work: Work, own: float, timeout_s: float) -> None:
        # Refused for good only on the fastest run ever seen: a mean spoilt by one slow job would never be put right.
        if (fastest := self._costs.fastest(work)) > timeout_s:
            reason = f"this job takes at least {fastest:.1f} s by itself, and {timeout_s:g} s are allowed"
            raise invalid("timeout_s", reason, [math.ceil(own)], "deadline_too_short")
        most = self.policy.max_job_seconds * (1.0 if self._costs.sure else _WARM_UP_TIMES)
        # One that was drawn once may have been disturbed, and gets a second try.
        count, _ = self._costs.finished(work)
        if min(own, {0: own, 1: 0.0}.get(count, fastest)) > most:
            reason = f"this job takes about {own:.0f} s by itself, and at most {most:g} s are allowed here"
            raise invalid(None, f"{reason}; {self._fitting(work, most)}", code="job_too_long")

    def _fitting(self, work: Work, most: float) -> str:
        """What of a job that takes too long would not."""

        def exceeds(images: int, steps: int) -> bool:
            return (self._costs.seconds(replace(work, images=images, steps=steps)) or 0.0) > most

        ways = []
        for images in sorted({work.images, 1}, reverse=True):
            # The more steps the longer: the first number that does not fit.
            steps = bisect_left(range(1, work.steps + 1), True, key=partial(exceeds, images))
            fields = [f"n={images}"] * (images < work.images) + [f"num_inference_steps={steps}"] * (steps < work.steps)
            ways += [" with ".join(fields)] if steps else []
        return " or ".join(ways) + " would fit" if ways else "ask for a smaller size"

    def _refusal(
        self,
        ticket: Ticket,
        own: float,
        queue: list[tuple[Place, float]],
        now: float,
        timeout_s: float,
        recovery_s: float,
        mark: Hashable,
    ) -> RequestError | None:
        """Why this job does not get in now."""
        wait, limits = self._wait(now, recovery_s), self._limits()
        if recovery_s and wait + own > timeout_s:
            message = f"new ranks need about {recovery_s:.0f} s after a fault, and {timeout_s:g} s are allowed"
            return unavailable(message, recovery_s, "gang_restarting")
        if wait and wait + own > timeout_s:
            message = f"about {wait:.1f} s of work is queued, so this job cannot be done in {timeout_s:g} s"
            return RequestError(429, message, "timeout_s", "deadline_unreachable")
        mine = [held.seconds for held in self._tickets if ticket.key is not None and held.key == ticket.key]
        if mine and limits.exceeds_key(len(mine), sum(mine) + ticket.seconds):
            message = (
                f"this key has {len(mine)} jobs of about {sum(mine):.0f} s here and asks for {ticket.seconds:.0f} s; "
                f"a key may have {limits.key_jobs:g} jobs and {limits.key_seconds:g} s"
            )
            return RequestError(429, message, None, "key_limit")
        if self._line.claim(mark, now):
            return None  # a prediction may have been wrong by a little, and the promise is kept
        if len(self._tickets) >= limits.jobs:
            message = f"{len(self._tickets) - 1} jobs wait already, at most {limits.jobs - 1:g} may"
            return RequestError(429, message, None, "queue_full")
        if self._tickets and wait + ticket.seconds > limits.seconds:
            message = (
                f"about {wait:.0f} s of work is queued and this job adds {own:.0f} s; "
                f"at most {limits.seconds:g} s may queue"
            )
            return RequestError(429, message, None, "queue_full")
        # An idle gang waits for nobody: whoever was told to come back finds one job more before it at most.
        if self._tickets and self._line.harms(ticket, queue, now, limits):
            message = "the places that are free are kept for clients that were told to come back"
            return RequestError(429, message, None, "queue_full")
        return None
