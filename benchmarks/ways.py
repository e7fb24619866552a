"""Two gangs that differ in how they schedule, on one Ray, for benchmarks that use them in turns; and what came of it.

A gang that has nothing to do costs next to nothing, so both stay loaded, and what is compared was measured minutes
apart on the same machine.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import spread
from raycache.gang.gang import Gang
from raycache.gang.queue import JobHandle
from raycache.protocol.job import Job
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.tick import TickReport
from raycache.settings import AppSettings

__all__ = ["FAIR", "FIFO", "NO_CACHE", "TIMEOUT_S", "Amounts", "Both", "Recorder", "Row", "Ticks", "Way"]
__all__ += ["in_turns", "kept", "mean_rows", "ways"]

FIFO, FAIR = "fifo", "fair"
NO_CACHE = {"type": "none"}
#: Longer than anything that is measured.
TIMEOUT_S = 900.0
#: ``time.monotonic()`` at which each tick's report was there, and the report.
Ticks = list[tuple[float, TickReport]]
_SCHEDULING: dict[str, dict[str, object]] = {
    FIFO: {"scheduling": "fifo", "max_rows": 1},
    FAIR: {"scheduling": "fair"},
}


class Recorder:
    """Remembers each tick; called by the gang's thread."""

    def __init__(self) -> None:
        self._ticks: Ticks = []

    def __call__(self, report: TickReport) -> None:
        """A tick is done."""
        self._ticks.append((time.monotonic(), report))

    def take(self) -> Ticks:
        """All since it was asked last."""
        ticks, self._ticks = self._ticks, []
        return ticks


class Way:
    """One of the gangs.

    Attributes:
        name: of its scheduling.
        gang: ready.
        recorder: of its ticks.
    """

    def __init__(self, name: str, gang: Gang, recorder: Recorder, settings: AppSettings) -> None:
        self.name, self.gang, self.recorder = name, gang, recorder
        self._settings, self._numbers = settings, itertools.count()

    def job(self, *, seeds: Sequence[int] = (7,), **asked: Any) -> Job:
        """What a request with these fields is to the gang; ``size`` and ``num_inference_steps`` must be among them."""
        request = GenerationRequest.model_validate({"prompt": "a red circle", **asked})
        width, height = (int(part) for part in str(request.size).split("x"))
        assert request.num_inference_steps is not None
        guidance = request.guidance_scale
        return Job(
            id=f"{self.name}-{next(self._numbers)}",
            prompt=request.prompt,
            width=width,
            height=height,
            seeds=tuple(seeds),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=self._settings.defaults.guidance_scale if guidance is None else guidance,
            cache=self._settings.cache if request.cache is None else request.cache,
        )

    def submit(self, job: Job, caller: str = "") -> JobHandle:
        """Queue it."""
        return self.gang.submit(job, caller=caller)

    def draw_s(self, job: Job, caller: str = "") -> float:
        """Seconds from handing ``job`` in until it is there."""
        began = time.monotonic()
        self.submit(job, caller).future.result(TIMEOUT_S)
        return time.monotonic() - began


#: By name.
Both = Mapping[str, Way]


@contextlib.contextmanager
def ways(settings: AppSettings, names: Sequence[str] = (FIFO, FAIR)) -> Iterator[dict[str, Way]]:
    """The gangs, ready, by name. Ray is this process's own and ends with the block."""
    import ray

    # Logical CPUs: the gangs must be placed whatever the machine has.
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            made = {}
            for name in names:
                parallel = settings.parallel.model_copy(update=_SCHEDULING[name])
                own = settings.model_copy(update={"parallel": parallel})
                gang = Gang(own, name=f"bench-{name}", on_tick=(recorder := Recorder()))
                stack.callback(gang.shutdown)
                gang.start()
                made[name] = Way(name, gang, recorder, own)
            yield made
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Amounts:
    """How much is drawn.

    Attributes:
        rounds: of each measurement, in turns.
        clients, jobs: of a closed loop: clients at once, and jobs of all of them together.
        long_steps: of the job that others come upon.
        flood: jobs that one caller submits at once.
    """

    rounds: int = 5
    clients: int = 8
    jobs: int = 32
    long_steps: int = 50
    flood: int = 32


def in_turns(both: Both, rounds: int) -> Iterator[tuple[int, Sequence[Way]]]:
    """The ways of each round; who is first changes, so that a machine that gets slower favours nobody."""
    for number in range(rounds):
        pair = [both[FIFO], both[FAIR]]
        yield number, pair[:: 1 if number % 2 == 0 else -1]


@dataclass
class Row:
    """One thing that was measured on both gangs, once a round.

    Attributes:
        what, unit: of the values.
        values: by name of the way, in order of the rounds.
    """

    what: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Those of one round."""
        for way, value in values.items():
            self.values.setdefault(way, []).append(value)

    def cells(self) -> list[str]:
        """What, unit, fifo, fair, and fair beside fifo of the same round; a dash where a way has none."""
        fifo, fair = self.values.get(FIFO, []), self.values.get(FAIR, [])
        ratios = [a / b for a, b in zip(fair, fifo, strict=False) if b > 0]
        return [self.what, self.unit, spread(fifo), spread(fair), spread(ratios)]


def mean_rows(ticks: Ticks) -> float:
    """Jobs in a call, over all calls; 0 where none was made."""
    counts = [len(call.jobs) for _, report in ticks for call in report.calls]
    return statistics.fmean(counts) if counts else 0.0


def kept(path: Path | None, new: Sequence[Row]) -> list[Row]:
    """The rows in the JSON file and the new ones, which replace those of the same name; the file has them then.

    Raises:
        ValueError: the file is there, and is not what this wrote.
    """
    if path is None:
        return list(new)
    rows: dict[str, Row] = {}
    if path.exists():
        try:
            rows = {row["what"]: Row(**row) for row in json.loads(path.read_text())["rows"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must hold rows of this benchmark ({error!r}); name another file") from None
    rows |= {row.what: row for row in new}
    if not new:
        return list(rows.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": [asdict(row) for row in rows.values()]}, indent=1) + "\n")
    return list(rows.values())
