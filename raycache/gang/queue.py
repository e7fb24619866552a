"""Jobs that wait for a gang: handed in by any thread, taken out by the gang's own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from raycache.gang.states import JobState
from raycache.protocol.job import DeadlineExceeded, Job, JobCancelled, JobOutput, Progress

__all__ = ["JobHandle", "JobQueue"]


class JobHandle:
    """A submitted job. ``future`` ends with a :class:`JobOutput` or one of the exceptions of ``raycache.protocol.job``.

    Attributes:
        deadline: ``time.monotonic()`` after which the job is over, or None.
        reason: why it shall be aborted, or None.
    """

    def __init__(self, job: Job, deadline: float | None, on_progress: Callable[[Progress], None] | None) -> None:
        self.job, self.deadline, self._on_progress = job, deadline, on_progress
        self.future: Future[JobOutput] = Future()
        self.reason: str | None = None
        self._state, self._told = JobState.QUEUED, 0
        self._lock = threading.Lock()

    def abort(self, reason: str) -> None:
        """Thread-safe. A queued job ends at once, a running one at its next step, on all ranks."""
        with self._lock:
            self.reason = self.reason or reason
            if self._state is not JobState.RUNNING:
                self.end(JobCancelled(self.reason))

    def start(self) -> bool:
        """The gang takes it up; False if it is over already."""
        with self._lock:
            self._state = JobState.RUNNING
            return not self.future.done()

    def pause(self) -> None:
        """It met a fault and waits for new ranks: an abort ends it at once again."""
        with self._lock:
            self._state = JobState.WAITING_FOR_RANKS

    def late(self, now: float) -> bool:
        """Whether its deadline has passed at ``now``, in seconds of ``time.monotonic()``."""
        return self.deadline is not None and now >= self.deadline

    def unwanted(self) -> bool:
        """Whether it shall stop: aborted, or late."""
        return self.reason is not None or self.late(time.monotonic())

    def tell(self, events: list[Progress]) -> None:
        """Pass progress on. A job drawn again does not tell its first steps twice."""
        for event in events:
            if self._on_progress is not None and event.step > self._told:
                self._told = event.step
                self._on_progress(event)

    def end(self, outcome: JobOutput | Exception) -> None:
        """The answer; only the first counts."""
        with suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def end_if_unwanted(self) -> Exception | None:
        """End it if nobody wants its picture any more; why, if so."""
        outcome: Exception | None = None
        if self.reason is not None:
            outcome = JobCancelled(self.reason)
        elif self.late(time.monotonic()):
            outcome = DeadlineExceeded(f"the deadline of job {self.job.id} passed")
        if outcome is not None:
            self.end(outcome)
        return outcome


class JobQueue:
    """First in, first out. Bounded by admission, not here."""

    def __init__(self) -> None:
        self._queue: queue.Queue[JobHandle | None] = queue.Queue()
        self._waiting: list[JobHandle] = []
        self._taken: set[JobHandle] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, handle: JobHandle) -> bool:
        """Queue it; False once closed."""
        with self._lock:
            if self._closed:
                return False
            self._waiting.append(handle)
        self._queue.put(handle)
        return True

    def get(self, timeout_s: float) -> JobHandle | None:
        """The next job; None after :meth:`stop`.

        Raises:
            queue.Empty: nothing came within ``timeout_s`` seconds.
        """
        while True:
            handle = self._queue.get(timeout=timeout_s)
            if handle is None:
                return None
            with self._lock:
                if handle not in self._taken:
                    self._waiting.remove(handle)
                    return handle
                self._taken.remove(handle)

    def take(self, handle: JobHandle) -> bool:
        """Take this one out of its turn; False if it was taken already."""
        with self._lock:
            if handle not in self._waiting:
                return False
            self._waiting.remove(handle)
            self._taken.add(handle)
            return True

    def stop(self) -> None:
        """Make :meth:`get` return None when what is queued now has been taken."""
        self._queue.put(None)

    def close(self) -> list[JobHandle]:
        """Take nothing more; whoever still waits is handed back."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, []
        return left

    def waiting(self) -> list[JobHandle]:
        """Those whose turn has not come and that are not over."""
        with self._lock:
            return [handle for handle in self._waiting if not handle.future.done()]

    def drop_late(self) -> None:
        """Jobs whose deadline passed end now, not when their turn comes."""
        now = time.monotonic()
        for handle in self.waiting():
            if handle.late(now):
                handle.end_if_unwanted()
