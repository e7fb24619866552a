"""Two gangs with different scheduling on one Ray, for benchmarks that use them in turns; and the rows of their results.

An idle gang costs almost nothing, so both stay loaded, and compared values are measured minutes apart on the same
machine.
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
from raycache.presets.auto import concrete
from raycache.protocol.job import Job, one_per_seed
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.tick import TickReport
from raycache.settings import AppSettings
from raycache.size import Size

__all__ = ["FAIR", "FIFO", "NO_CACHE", "TIMEOUT_S", "Amounts", "Both", "Recorder", "Row", "Ticks", "Way"]
__all__ += ["in_turns", "kept", "mean_rows", "ways"]

FIFO, FAIR = "fifo", "fair"
NO_CACHE = {"type": "none"}
#: Seconds; longer than anything measured here.
TIMEOUT_S = 900.0
#: ``time.monotonic()`` at the arrival of each tick's report, and the report.
Ticks = list[tuple[float, TickReport]]
_SCHEDULING: dict[str, dict[str, object]] = {
    FIFO: {"scheduling": "fifo", "max_rows": 1},
    FAIR: {"scheduling": "fair"},
}


class Recorder:
    """Records each tick; called by the gang's thread."""

    def __init__(self) -> None:
        self._ticks: Ticks = []

    def __call__(self, report: TickReport) -> None:
        """Record a finished tick."""
        self._ticks.append((time.monotonic(), report))

    def take(self) -> Ticks:
        """All ticks since the last call."""
        ticks, self._ticks = self._ticks, []
        return ticks


class Way:
    """One of the gangs.

    Attributes:
        name: name of its scheduling.
        gang: the gang, ready.
        recorder: records its ticks.
    """

    def __init__(self, name: str, gang: Gang, recorder: Recorder, settings: AppSettings) -> None:
        self.name, self.gang, self.recorder = name, gang, recorder
        self._settings, self._numbers = settings, itertools.count()

    def job(self, *, seeds: Sequence[int] = (7,), **asked: Any) -> Job:
        """The gang's job for a request with these fields, which must include ``size`` and ``num_inference_steps``."""
        request = GenerationRequest.model_validate({"prompt": "a red circle", **asked})
        assert request.size is not None
        assert request.num_inference_steps is not None
        guidance = request.guidance_scale
        return Job(
            id=f"{self.name}-{next(self._numbers)}",
            size=Size.parse(request.size),
            images=one_per_seed(
                seeds,
                prompt=request.prompt,
                guidance_scale=self._settings.defaults.guidance_scale if guidance is None else guidance,
                cache=concrete(self._settings.cache if request.cache is None else request.cache, None),
            ),
            num_inference_steps=request.num_inference_steps,
        )

    def submit(self, job: Job, caller: str = "") -> JobHandle:
        """Queue it."""
        return self.gang.submit(job, caller=caller)

    def draw_s(self, job: Job, caller: str = "") -> float:
        """Seconds from submitting ``job`` until its result."""
        began = time.monotonic()
        self.submit(job, caller).future.result(TIMEOUT_S)
        return time.monotonic() - began


#: Both gangs, by name.
Both = Mapping[str, Way]


@contextlib.contextmanager
def ways(settings: AppSettings, names: Sequence[str] = (FIFO, FAIR)) -> Iterator[dict[str, Way]]:
    """The gangs, ready, by name. Ray is started here and ends with the block."""
    import ray

    # Logical CPUs, so that the gangs can be placed on any machine.
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
    """How much to run.

    Attributes:
        rounds: rounds of each measurement, in turns.
        clients, jobs: of a closed loop: concurrent clients, and the total number of jobs.
        long_steps: steps of the job that others arrive during.
        flood: jobs that one caller submits together.
    """

    rounds: int = 5
    clients: int = 8
    jobs: int = 32
    long_steps: int = 50
    flood: int = 32


def in_turns(both: Both, rounds: int) -> Iterator[tuple[int, Sequence[Way]]]:
    """The ways of each round; the order alternates, so that a machine that slows down favours neither."""
    for number in range(rounds):
        pair = [both[FIFO], both[FAIR]]
        yield number, pair[:: 1 if number % 2 == 0 else -1]


@dataclass
class Row:
    """One quantity measured on both gangs, once per round.

    Attributes:
        what, unit: of the values.
        values: by name of the way, in the order of rounds.
    """

    what: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one round."""
        for way, value in values.items():
            self.values.setdefault(way, []).append(value)

    def cells(self) -> list[str]:
        """What, unit, fifo, fair, and fair over fifo of the same round; a dash if a way has no value."""
        fifo, fair = self.values.get(FIFO, []), self.values.get(FAIR, [])
        ratios = [a / b for a, b in zip(fair, fifo, strict=False) if b > 0]
        return [self.what, self.unit, spread(fifo), spread(fair), spread(ratios)]


def mean_rows(ticks: Ticks) -> float:
    """Mean number of jobs per call; 0 if there was no call."""
    counts = [len(call.jobs) for _, report in ticks for call in report.calls]
    return statistics.fmean(counts) if counts else 0.0


def kept(path: Path | None, new: Sequence[Row]) -> list[Row]:
    """The rows of the JSON file and the new ones, which replace rows of the same name; also writes them to the file.

    Raises:
        ValueError: the file exists but was not written by this benchmark.
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
