"""One life of a gang's ranks: spawned, joined, loaded, warmed up, and drawing until they meet a fault."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raycache.gang.costs import Costs, work_of
from raycache.gang.step_timeouts import StepTimeouts
from raycache.gang.warmup import WarmUp, warm_ups
from raycache.gang.worker_group import HEARTBEAT_S, Fault, WorkerGroup
from raycache.logs import about
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import (
    GangStartError,
    Job,
    JobCancelled,
    JobFailed,
    JobOutput,
    ModelFacts,
    ModelSource,
    Progress,
)
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings

__all__ = ["Incarnation"]

_logger = logging.getLogger("raycache.gang")

#: Seconds that ranks in lockstep get to raise the same error, before it counts as one rank's own.
_GRACE_S = 1.0


class Incarnation:
    """Used by the gang's thread only, but for :meth:`ranks`.

    Args:
        settings: the application's.
        placement_group: reserved for the gang; None = anywhere.
        first_bundle: where the gang's bundles begin in it.
        name: of the gang, for logs.
        tick: called about every :data:`HEARTBEAT_S` while ranks load or draw.
        costs: what the gang has learned in earlier lives, and learns in this one.
    """

    def __init__(
        self,
        settings: AppSettings,
        placement_group: Any,
        first_bundle: int,
        name: str,
        tick: Callable[[], None],
        costs: Costs | None = None,
    ) -> None:
        self._settings, self._name, self._tick = settings, name, tick
        self._costs = Costs() if costs is None else costs
        self._actors = WorkerGroup(settings, placement_group, first_bundle, name)
        # Its own: new ranks may compile everything again.
        self.timeouts = StepTimeouts(settings.reliability, self._costs, compiles=settings.model.compile)
        self._warmup_s = 0.0

    def assemble(self, source: ModelSource | None, timeout_s: float) -> tuple[ModelSource, ModelFacts]:
        """Join the ranks, load the model, draw the declared warm-up shapes.

        Args:
            source: what was loaded in an earlier life; None = ask.
            timeout_s: until the model must be loaded.

        Raises:
            GangStartError: why, and what to change.
        """
        source, facts = self._actors.load(source, self._tick, timeout_s)
        began = time.monotonic()
        self._costs.meet(facts)
        for warm_up in warm_ups(self._settings, facts, probe=not self._costs.known):
            self._warm_up(warm_up)
        self._actors.settle(self._tick)
        self._warmup_s = time.monotonic() - began
        return source, facts

    @property
    def stages(self) -> dict[str, float]:
        """Seconds that :meth:`assemble` took, by stage."""
        return {**self._actors.stages, "warm-up": self._warmup_s}

    def draw(
        self,
        job: Job,
        tell: Callable[[list[Progress]], None],
        unwanted: Callable[[], bool],
        *,
        warm_up: WarmUp | None = None,
    ) -> JobOutput | Exception:
        """Draw ``job`` on all ranks, and learn what it cost.

        Args:
            tell: gets each step's progress once.
            unwanted: asked about every :data:`HEARTBEAT_S`; once True, all ranks stop at their next step.
            warm_up: why it is drawn, if nobody asked for it.

        Returns:
            The pictures, JobCancelled if the ranks stopped, or JobFailed if all met the same error.

        Raises:
            Fault: these ranks are of no more use.
        """
        actors, began, cold = self._actors, time.monotonic(), warm_up is not None
        self.timeouts.begin()
        pending = actors.generate(job)
        first = actors.detector.ranks[0]
        results: dict[int, Any] = {}
        failed_at: float | None = None
        aborted = False
        while pending:
            done, _ = ray.wait(list(pending), timeout=HEARTBEAT_S / 2)
            for ref in done:
                rank = pending.pop(ref)
                try:
                    results[rank] = ray.get(ref)
                except DEATHS as error:
                    raise Fault("death", f"rank {rank} died in job {job.id} ({type(error).__name__})") from None
                except RayTaskError as error:
                    raise Fault("error", f"rank {rank}: {error.cause}") from None
                if isinstance(results[rank], Failure):
                    failed_at = failed_at or time.monotonic()
            failure = next((r for r in results.values() if isinstance(r, Failure)), None)
            if pending and failure and failed_at and time.monotonic() - failed_at > self._grace(failure):
                raise Fault("error", f"{failure} (on {len(results)} of {len(results) + len(pending)} ranks)")
            events = actors.poll(self.timeouts.seconds(job, first.known.phase, cold=cold))
            if (heartbeat := first.known).job == job.id:
                self.timeouts.learn(job, heartbeat.step)
            tell(events)
            self._tick()
            if not aborted and unwanted():
                aborted = True
                actors.abort(job.id)
        failures = [result for result in results.values() if isinstance(result, Failure)]
        if failures:
            return _judge(job, failures, len(results))
        output, rest = results[0]
        self.timeouts.finished(job, output.denoise_s)
        if warm_up is None or warm_up.teaches:
            self._costs.learn(work_of(job), output, wall_s=time.monotonic() - began, cold=cold)
        tell(actors.last_news())
        tell(rest)
        return output

    def idle(self) -> None:
        """Look after the ranks while there is nothing to draw.

        Raises:
            Fault: a rank died or does not answer.
        """
        self._actors.poll(None)

    def end(self, *, stacks: bool = False) -> None:
        """Kill all ranks and wait until they are gone; with ``stacks`` their Python stacks go to the log first."""
        if stacks:
            self._actors.dump_stacks()
        self._actors.kill()

    def ranks(self) -> list[dict[str, Any]]:
        """Each rank's last heartbeat, and its age in seconds. Thread-safe, calls no rank."""
        ranks, detector = [], self._actors.detector
        for rank, (progress, age) in enumerate(zip(detector.ranks, detector.ages(time.monotonic()), strict=True)):
            known = {} if progress.heartbeat is None else asdict(progress.heartbeat)
            known.pop("events", None)
            ranks.append({"rank": rank, **known, "age_s": round(age, 3)})
        return ranks

    def _warm_up(self, warm_up: WarmUp) -> None:
        job = warm_up.job
        try:
            outcome = self.draw(job, lambda events: None, lambda: False, warm_up=warm_up)
        except Fault as fault:
            outcome = fault
        if isinstance(outcome, Exception):
            size = f"{job.width}x{job.height}"
            raise GangStartError(f"gang {self._name} could not draw its warm-up picture {size}: {outcome}")

    def _grace(self, failure: Failure) -> float:
        """Seconds the other ranks get to raise the same: until their first collective they may be far apart."""
        lockstep = failure.phase == "denoise" and failure.step > 0
        return _GRACE_S if lockstep else self._settings.reliability.watchdog_floor_s


def _judge(job: Job, failures: list[Failure], ranks: int) -> Exception:
    """Every rank answered, some with a failure: the job's error if all agree, else a fault of the gang."""
    first = failures[0]
    alike = len(failures) == ranks and len({failure.place for failure in failures}) == 1
    # Rank 0 decodes alone: the others are done and wait for nothing.
    if first.kind == "group" or not (alike or first.phase == "decode"):
        raise Fault("error", "; ".join(dict.fromkeys(str(failure) for failure in failures)))
    if first.kind == "aborted":
        return JobCancelled(first.message)
    _logger.error("Job %s failed:\n%s", job.id, first.trace, extra=about(job))
    return JobFailed(str(first))
