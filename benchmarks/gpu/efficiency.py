"""Section *efficiency*: how much of the skipped blocks' time a cache actually saves."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.contenders import Contender, contenders
from benchmarks.gpu.measuring import attempt, seconds_of
from benchmarks.gpu.models import Steps, flux
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.watched import WatchedBlocks
from benchmarks.workload import sharing_weights

__all__ = ["measure"]

TABLE = "Efficiency"
_THRESHOLD = 0.15


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """A row for each of our methods and the peers, all on the same weights, eager, with the same decisions."""
    recorder.note(
        "Efficiency = measured speed-up / ideal speed-up; the ideal image costs the computed blocks and everything "
        "around the blocks, but nothing for decisions and reuse. Without a cache it is 1."
    )
    shape = plan.shape
    steps = Steps(shape, plan.device, min(shape.steps, 12))
    model = flux(shape, plan.device)
    plain, *rivals = contenders(first=shape.first, last=shape.last, threshold=_THRESHOLD, steps=steps.count)
    base: _Base | None = None
    with attempt(recorder, plain.name, plan.device):
        base = _Base(sharing_weights(model), steps, plan)
    if base is None:
        return
    for rival in rivals:
        with attempt(recorder, rival.name, plan.device):
            _row(rival, sharing_weights(model), steps, plan, base, recorder)


class _Base:
    """The image without a cache, repeated in each round, because a device's clock rate varies.

    Attributes:
        blocks: calls of one image, by class.
    """

    def __init__(self, model: Any, steps: Steps, plan: Plan) -> None:
        self._watched = WatchedBlocks(model, plan.device, timed=True)
        self._model, self._steps, self._device = model, steps, plan.device
        steps.run(model)
        self.round()
        self.blocks = dict(self._watched.calls)

    def round(self) -> tuple[float, dict[str, float]]:
        """Seconds of an image, and seconds of one block, by class."""
        self._watched.clear()
        seconds = seconds_of(self._device, lambda: self._steps.run(self._model))
        calls = self._watched.calls
        return seconds, {name: total / calls[name] for name, total in self._watched.seconds().items()}


def _row(rival: Contender, model: Any, steps: Steps, plan: Plan, base: _Base, recorder: Recorder) -> None:
    watched = WatchedBlocks(model, plan.device, timed=False)
    generate = rival.prepare(model)

    def image() -> None:
        with generate():
            steps.run(model)

    image()
    speed_ups, ideals = [], []
    for _ in range(plan.rounds):
        plain, block = base.round()
        watched.clear()
        seconds = seconds_of(plan.device, image)
        saved = sum((count - watched.calls[name]) * block[name] for name, count in base.blocks.items())
        speed_ups.append(plain / seconds)
        ideals.append(plain / (plain - saved))
    recorder.add(
        TABLE,
        kind=rival.kind,
        method=rival.name,
        **{
            "blocks computed": sum(watched.calls.values()) / sum(base.blocks.values()),
            "speed-up": statistics.median(speed_ups),
            "ideal": statistics.median(ideals),
            "efficiency": statistics.median(got / ideal for got, ideal in zip(speed_ups, ideals, strict=True)),
        },
    )
