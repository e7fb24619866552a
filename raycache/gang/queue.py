"""Jobs of a gang: submitted by any thread, started and answered by the gang's thread."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Literal

from raycache.gang.states import HandleState
from raycache.protocol.job import Job, JobOutput, Progress
from raycache.protocol.job_errors import DeadlineExceeded, JobCancelled

__all__ = ["JobHandle", "JobQueue"]


class JobHandle:
    """A submitted job. ``future`` ends with a :class:`JobOutput` or one of the exceptions of ``raycache.protocol.job``.

    Attributes:
        arrived, begun: ``time.monotonic()``; ``begun`` is None before it was sent to ranks.
        deadline: ``time.monotonic()`` after which the job ends, or None.
        caller, weight: its caller, and that caller's weight, for fair shares.
        reason: why it must be aborted, or None.
        faults: number of times ranks broke while it was active, by whether it ran with others or alone.
    """

    def __init__(
        self,
        job: Job,
        deadline: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        caller: str = "",
        weight: float = 1.0,
    ) -> None:
        self.job, self.deadline, self._on_progress = job, deadline, on_progress
        self.caller, self.weight = caller, weight
        self.arrived = time.monotonic()
        self.begun: float | None = None
        self.faults = Counter[Literal["shared", "alone"]]()
        self.future: Future[JobOutput] = Future()
        self.reason: str | None = None
        self._state, self._told = HandleState.QUEUED, 0
        self._lock = threading.Lock()

    def abort(self, reason: str) -> None:
        """Thread-safe. A queued job ends immediately, a running one with the next tick, on all ranks."""
        with self._lock:
            self.reason = self.reason or reason
            if self._state is not HandleState.RUNNING:
                self.end(JobCancelled(self.reason))

    @property
    def running(self) -> bool:
        """Whether the ranks have it."""
        return self._state is HandleState.RUNNING and not self.future.done()

    def start(self) -> bool:
        """Mark it as sent to the ranks; False if it has ended already."""
        with self._lock:
            self._state, self.begun = HandleState.RUNNING, time.monotonic()
            return not self.future.done()

    def pause(self) -> None:
        """It waits for new ranks after a fault: an abort ends it immediately again."""
        with self._lock:
            self._state = HandleState.WAITING_FOR_RANKS

    def late(self, now: float) -> bool:
        """Whether its deadline has passed at ``now``, in seconds of ``time.monotonic()``."""
        return self.deadline is not None and now >= self.deadline

    def unwanted(self) -> bool:
        """Whether it must stop: aborted, or late."""
        return self.reason is not None or self.late(time.monotonic())

    def tell(self, events: list[Progress]) -> None:
        """Pass progress on. A job that is rerun does not report its first steps twice."""
        for event in events:
            if self._on_progress is not None and event.step > self._told:
                self._told = event.step
                self._on_progress(event)

    def end(self, outcome: JobOutput | Exception) -> None:
        """Set the outcome; only the first counts."""
        with suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def end_if_unwanted(self) -> Exception | None:
        """End it if it was aborted or is late; return why, if so."""
        outcome: Exception | None = None
        if self.reason is not None:
            outcome = JobCancelled(self.reason)
        elif self.late(time.monotonic()):
            outcome = DeadlineExceeded(f"the deadline of job {self.job.id} passed")
        if outcome is not None:
            self.end(outcome)
        return outcome


class JobQueue:
    """All unfinished jobs, in order of arrival. Admission limits their number, not the queue."""

    def __init__(self) -> None:
        self._handles: list[JobHandle] = []
        self._changed = threading.Condition()
        self._stopped = self._closed = False

    def __len__(self) -> int:
        """Number of jobs that wait for ranks."""
        return len(self.waiting())

    @property
    def stopped(self) -> bool:
        """Whether no more jobs will be added."""
        return self._stopped

    def put(self, handle: JobHandle) -> bool:
        """Add a job; False once closed.

        Raises:
            ValueError: another unfinished job has its id.
        """
        with self._changed:
            if self._closed:
                return False
            if any(other.job.id == handle.job.id for other in self._handles):
                raise ValueError(f"job {handle.job.id!r} is already in the queue: ids must be unique")
            self._handles.append(handle)
            self._changed.notify_all()
        # Removed however it ends, also by another thread; the gang's thread need not check.
        handle.future.add_done_callback(lambda _: self._gone(handle))
        return True

    def open(self) -> list[JobHandle]:
        """All unfinished jobs."""
        with self._changed:
            return list(self._handles)

    def waiting(self) -> list[JobHandle]:
        """Unfinished jobs that no rank has."""
        return [handle for handle in self.open() if not handle.running]

    def wait(self, timeout_s: float) -> None:
        """Return when there is a job, when the queue is stopped, or after ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._handles or self._stopped, timeout_s)

    def stop(self) -> None:
        """Accept no more jobs than are queued now."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> list[JobHandle]:
        """Accept no more jobs; return the unfinished ones."""
        with self._changed:
            self._closed = True
        return self.open()

    def drop_late(self) -> None:
        """End waiting jobs whose deadline has passed now, instead of when their turn comes."""
        now = time.monotonic()
        for handle in self.waiting():
            if handle.late(now):
                handle.end_if_unwanted()

    def _gone(self, handle: JobHandle) -> None:
        with self._changed:
            if handle in self._handles:
                self._handles.remove(handle)
