"""Admission to the queue of a gang: bounded in jobs and in predicted seconds of work.

Counting jobs alone is not enough: four steps at 256x256 and fifty at 2048x2048 differ a thousandfold. The
gang's own schedule predicts when each job will be done (:mod:`raycache.engine.prediction`), with costs learned from its
finished jobs, including the warm-up (:mod:`raycache.gang.costs`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from raycache.engine.callers import caller_of
from raycache.engine.line import Limits, Line, Place
from raycache.engine.prediction import Prediction, Predictions, moved
from raycache.engine.too_long import refuse_long
from raycache.gang.costs import Costs, Work
from raycache.gang.outlook import Outlook
from raycache.gang.schedule import JobState
from raycache.gang.simulator import Forecast
from raycache.limits import Priority
from raycache.policy import Policy
from raycache.protocol.errors import RequestError, unavailable

__all__ = ["Admission", "Load", "Ticket"]

#: Predictions that are only reported, not used for decisions, may be this many seconds old.
_OLD_S = 0.2
#: Maximum number of clients told to come back that are considered when searching for a time.
_EXPECTED = 16
#: The id of a hypothetical job; it sorts after all others that arrive at the same time.
_PROBE = "~"


@dataclass(eq=False)
class Ticket(Place):
    """A job's place in the queue."""

    job: JobState = field(kw_only=True)


@dataclass(frozen=True)
class Load:
    """The load of an engine.

    Attributes:
        queued: jobs that have not started.
        running: jobs that have; at least one if there are any jobs.
        wait_s: predicted seconds by which a job with the default settings that came now would be done later than if
            it came alone. In order of arrival that is when it would start.
        backlog_s: predicted seconds until all are done.
    """

    queued: int
    running: int
    wait_s: float
    backlog_s: float


class Admission:
    """The queue in front of one gang. Thread-safe; releasing a place never waits for a prediction.

    Args:
        policy: the limits in force.
        costs: the learned costs of jobs; updated by the gang.
        outlook: returns the progress of the gang's jobs; called repeatedly.
        clock: seconds, monotonic, as in the outlook.
    """

    def __init__(
        self,
        policy: Policy,
        costs: Costs,
        outlook: Callable[[], Outlook],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy, self._costs, self._outlook, self._clock = policy, costs, outlook, clock
        self._lock = threading.Lock()  # of all but the tickets
        self._tickets: dict[str, Ticket] = {}  # by job; only single operations, and copied before iteration
        self._line = Line()
        self._predictions = Predictions(costs, outlook)
        self._probed: tuple[Prediction, Prediction] | None = None  # without and with a hypothetical job

    def admit(
        self,
        id: str,
        work: Work,
        timeout_s: float,
        *,
        key: str | None = None,
        priority: Priority = "normal",
        mark: Hashable = None,
    ) -> Ticket:
        """A place in the queue for job ``id``; return it with :meth:`release`.

        Args:
            timeout_s: seconds after which the job ends.
            key: the key whose limits apply, if there are keys.
            priority: priority of the request, which the key may use.
            mark: identifies the client and its request, to recognize it when it comes back.

        Raises:
            RequestError: 429 with the seconds after which this job will be admitted; 503 if another engine may be in
                time; 400 if waiting cannot help, because the job alone takes longer than is allowed.
        """
        with self._lock:
            now, own = self._clock(), self._costs.seconds(work) or 0.0
            refuse_long(work, timeout_s, self._costs, self.policy)
            caller = caller_of(self.policy.limits, key, priority)
            times = {"arrived": now, "deadline": now + timeout_s}
            job = self._costs.job_state(id, work, caller=caller.account, weight=caller.weight, **times)
            ticket = Ticket(own, key, job=job)
            held = dict(self._tickets)
            jobs = {each: place.job for each, place in held.items()}
            asked = _Asked(held, self._predictions.of(jobs, now), now)
            if (refusal := self._refusal(ticket, asked, mark)) is not None:
                refusal.retry_after_s = self._told(refusal.code, ticket, mark, asked)
                raise refusal
            if asked.told is not None:
                self._predictions.keep(asked.told, {**jobs, id: job}, now)
            self._tickets[id] = ticket
            return ticket

    def release(self, ticket: Ticket) -> None:
        """The job has left the gang."""
        self._tickets.pop(ticket.job.id, None)

    def again_in(self, ticket: Ticket, timeout_s: float, mark: Hashable = None) -> float:
        """Seconds after which the lost job of ``ticket`` will be admitted if it is sent again."""
        with self._lock:
            now, held = self._clock(), dict(self._tickets)
            held.pop(ticket.job.id, None)
            base = self._predictions.of({id: place.job for id, place in held.items()}, now)
            return self._promise(ticket, mark, _Asked(held, base, now), patience_s=timeout_s, firm=False)

    def load(self) -> Load:
        """The load, and its effect on a new job."""
        with self._lock:
            now, base = self._clock(), self._lately()
            held = len(self._tickets)
            started = sum(not job.waiting for job in base.jobs.values())
            running = min(held, max(1, started))
            wait_s = self._wait_s(base, now) if held else base.outlook.ready_in_s
            return Load(held - running, running, wait_s, base.backlog_s(now))

    def left_s(self, id: str) -> float | None:
        """Predicted seconds until the answer to job ``id``; None if it is unknown."""
        if not self._costs.known:
            return None
        with self._lock:
            end = self._lately().ends(now := self._clock()).get(id)
            return None if end is None else max(0.0, end - now)

    def ahead(self, id: str) -> int:
        """Jobs that should start before job ``id``; 0 once it has started."""
        with self._lock:
            base = self._lately()
            turns = {id: (_start(base.forecasts[id]), job.arrived) for id, job in base.jobs.items() if job.waiting}
            return sum(turn < turns[id] for turn in turns.values()) if id in turns else 0

    def _lately(self) -> Prediction:
        jobs = {id: place.job for id, place in dict(self._tickets).items()}
        return self._predictions.of(jobs, self._clock(), older_s=_OLD_S)

    def _wait_s(self, base: Prediction, now: float) -> float:
        """Seconds by which the present jobs delay one that arrives now."""
        defaults = self.policy.defaults
        work = Work(defaults.size, 1, defaults.num_inference_steps, self.policy.cache)
        probe = self._costs.job_state(_PROBE, work, arrived=now, deadline=math.inf, caller="")
        if self._probed is None or self._probed[0] is not base:
            self._probed = base, self._predictions.with_jobs(base, [probe])
        return max(0.0, self._probed[1].ends(now)[_PROBE] - now - (self._costs.seconds(work) or 0.0))

    def _limits(self, outlook: Outlook) -> Limits:
        policy, limits = self.policy, self.policy.limits
        return Limits(
            policy.max_queued_requests + outlook.rules.max_active,
            policy.max_queued_seconds,
            limits.max_jobs_per_key or math.inf,
            limits.max_queued_seconds_per_key or math.inf,
        )

    def _told(self, code: str | None, ticket: Ticket, mark: Hashable, asked: _Asked) -> float:
        """Predicted seconds until the job can be admitted; its place is then kept."""
        how: dict[str, Any] = {"turns": code != "key_limit", "firm": code != "gang_restarting"}
        patience_s = max(ticket.job.deadline - asked.now, ticket.seconds)
        if code == "deadline_unreachable" and asked.base.outlook.rules.scheduling != "fifo":
            expected = [moved(place.job, at) for place, at in self._line.expected() if isinstance(place, Ticket)]
            base = self._predictions.with_jobs(asked.base, expected[:_EXPECTED]) if expected else asked.base
            how["least_s"] = self._predictions.in_time_after(ticket.job, base, asked.now, patience_s)
        else:
            how["patience_s"] = patience_s
        return self._promise(ticket, mark, asked, **how)

    def _promise(
        self, ticket: Ticket, mark: Hashable, asked: _Asked, *, patience_s: float = math.inf, **how: Any
    ) -> float:
        how.update(patience_s=max(patience_s, ticket.seconds), unsure=min(0.5, self._costs.error))
        return self._line.promise(ticket, mark, asked.queue(), asked.now, self._limits(asked.base.outlook), **how)

    def _refusal(self, ticket: Ticket, asked: _Asked, mark: Hashable) -> RequestError | None:
        """The reason not to admit this job now, or None."""
        held, base, now, limits = asked.held, asked.base, asked.now, self._limits(asked.base.outlook)
        mine = [place.seconds for place in held.values() if ticket.key is not None and place.key == ticket.key]
        if mine and limits.exceeds_key(len(mine), sum(mine) + ticket.seconds):
            message = (
                f"this key has {len(mine)} jobs of about {sum(mine):.0f} s here and asks for {ticket.seconds:.0f} s; "
                f"a key may have {limits.key_jobs:g} jobs and {limits.key_seconds:g} s"
            )
            return RequestError(429, message, None, "key_limit")
        ready_in_s = base.outlook.ready_in_s
        full = len(held) >= limits.jobs and not self._line.owes(mark, now)
        if (held and not full) or ready_in_s:
            asked.told = self._predictions.with_jobs(base, [ticket.job])
            if (late := self._late(ticket, asked)) is not None:
                return late
        if not full and self._line.claim(mark, now):
            return None  # the prediction may have been slightly wrong; the promise is kept
        if full:
            message = f"{len(held) - base.outlook.rules.max_active} jobs are waiting already, at most "
            return RequestError(429, f"{message}{self.policy.max_queued_requests} may", None, "queue_full")
        if held and asked.told is not None and asked.told.backlog_s(now) > limits.seconds:
            message = (
                f"about {base.backlog_s(now):.0f} s of work is queued and this job adds {ticket.seconds:.0f} s; "
                f"at most {limits.seconds:g} s may queue"
            )
            return RequestError(429, message, None, "queue_full")
        # An idle gang waits for no client: one that was told to come back finds at most one other job before it.
        if held and self._line.harms(ticket, asked.queue(), now, limits):
            message = "the free places are kept for clients that were told to come back"
            return RequestError(429, message, None, "queue_full")
        return None

    def _late(self, ticket: Ticket, asked: _Asked) -> RequestError | None:
        """The refusal if deadlines would be missed with this job, or None."""
        assert asked.told is not None  # predicted before
        base, now, ready_in_s = asked.base, asked.now, asked.base.outlook.ready_in_s
        timeout_s, wait = ticket.job.deadline - now, base.backlog_s(now)
        late = not asked.told.in_time(ticket.job.id, now)
        if late and ready_in_s:
            message = f"new ranks need about {ready_in_s:.0f} s after a fault, and {timeout_s:g} s are allowed"
            return unavailable(message, ready_in_s, "gang_restarting")
        if late and wait:
            message = f"about {wait:.1f} s of work is queued, so this job cannot be done in {timeout_s:g} s"
            return RequestError(429, message, "timeout_s", "deadline_unreachable")
        if base.outlook.rules.scheduling != "fifo" and (spoilt := base.spoilt(asked.told, now)):
            message = f"to finish in {timeout_s:g} s, this job would make {len(spoilt)} others miss their deadlines"
            return RequestError(429, message, "timeout_s", "deadline_unreachable")
        return None


def _start(told: Forecast) -> float:
    return math.inf if told.start is None else told.start


@dataclass
class _Asked:
    """A request for a place: the present holders, their prediction, and that with one more job."""

    held: dict[str, Ticket]
    base: Prediction
    now: float
    told: Prediction | None = None

    def queue(self) -> list[tuple[Place, float]]:
        """All places, and when each will have left."""
        ends, ready_in_s = self.base.ends(self.now), self.base.outlook.ready_in_s
        queue: list[tuple[Place, float]] = [(place, ends.get(id, self.now)) for id, place in self.held.items()]
        if ready_in_s and not queue:
            queue.append((Place(0.0), self.now + ready_in_s))  # no job can run before
        return sorted(queue, key=lambda one: one[1])
