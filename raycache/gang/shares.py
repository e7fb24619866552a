"""The share of blocks that a job will compute, from its options and what jobs with similar options computed."""

from __future__ import annotations

from collections import OrderedDict, deque
from statistics import fmean
from typing import Any

__all__ = ["Shares"]

_REMEMBERED, _EACH = 256, 5
#: Guess for a method not used before: half of the possible saving, at 28 steps and a threshold of 0.1.
_GUESS = (2.8, 0.5)


class Shares:
    """The part of the possible saving that options achieve, by method, and by threshold x steps.

    The possible saving follows from the options: nothing in the warm-up, nothing for blocks that are always computed,
    and no more cached steps than allowed. The rest is learned; it grows with the threshold.
    """

    num_blocks = 57  # placeholder until the model is known

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[Any, int], deque[float]] = OrderedDict()

    def learn(self, options: Any, steps: int, share: float) -> None:
        """Learn that a job computed ``share`` of its blocks."""
        if (could := self._could_save(options, steps)) <= 0:
            return
        kind = (options, steps)
        self._seen.setdefault(kind, deque(maxlen=_EACH)).append(min(1.0, max(0.0, (1 - share) / could)))
        self._seen.move_to_end(kind)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def expected(self, options: Any, steps: int) -> float:
        """The expected share of blocks computed."""
        known = None if options is None else options.known_share(steps, self.num_blocks)
        if known is not None:
            return float(known)
        could = self._could_save(options, steps)
        return 1.0 - could * self._saved(options, steps) if could > 0 else 1.0

    def _saved(self, options: Any, steps: int) -> float:
        if (options, steps) in self._seen:
            return fmean(self._seen[options, steps])
        points: dict[float, list[float]] = {}
        for (other, others_steps), saved in self._seen.items():
            if other.type == options.type:
                points.setdefault(_reach(other, others_steps), []).extend(saved)
        known = {at: fmean(saved) for at, saved in points.items()} or dict([_GUESS])
        return _between(known, _reach(options, steps))

    def _could_save(self, options: Any, steps: int) -> float:
        """The largest share of a job's blocks that these options can save."""
        if getattr(options, "residual_diff_threshold", 0) <= 0:
            return 0.0
        always = getattr(options, "Fn_compute_blocks", 1) + getattr(options, "Bn_compute_blocks", 0)
        always += len(getattr(options, "non_prune_blocks_ids", ()))
        cached = float(max(0, steps - options.warmup_steps))
        if (row := getattr(options, "max_continuous_cached_steps", -1)) >= 0:
            cached *= row / (row + 1)
        most = getattr(options, "max_cached_steps", getattr(options, "max_pruned_steps", -1))
        cached = min(cached, most) if most >= 0 else cached
        return cached / steps * max(0.0, 1 - always / self.num_blocks)


def _reach(options: Any, steps: int) -> float:
    """The threshold applies to the change since the previous step, which is smaller with more steps."""
    return options.residual_diff_threshold * steps


def _between(known: dict[float, float], threshold: float) -> float:
    """Interpolated saving at ``threshold``: none at 0, all at infinity, never less at a larger one."""
    highest, left = 0.0, (0.0, 0.0)
    for at in sorted(known):
        highest = max(highest, known[at])
        if threshold <= at:
            part = (threshold - left[0]) / (at - left[0])
            return left[1] + part * (highest - left[1])
        left = (at, highest)
    return 1 - (1 - left[1]) * left[0] / threshold
