"""Jobs that are too long by themselves: longer than their deadline, or than the limit of one job."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace
from functools import partial

from raycache.gang.costs import Costs, Work
from raycache.protocol.errors import invalid
from raycache.settings import Policy

__all__ = ["refuse_long"]

#: Before any job was finished, only the warm-up has spoken, whose jobs may take twice what later ones do.
_WARM_UP_TIMES = 2.0


def refuse_long(work: Work, timeout_s: float, costs: Costs, policy: Policy) -> None:
    """Refuse a job for good, if it is too long by itself.

    Raises:
        RequestError: 400; it says what would fit.
    """
    own = costs.seconds(work) or 0.0
    # Refused for good only on the fastest run ever seen: a mean that one slow job has raised would never fall again.
    if (fastest := costs.fastest(work)) > timeout_s:
        reason = f"this job takes at least {fastest:.1f} s by itself, and {timeout_s:g} s are allowed"
        raise invalid("timeout_s", reason, [math.ceil(own)], "deadline_too_short")
    most = policy.max_job_seconds * (1.0 if costs.sure else _WARM_UP_TIMES)
    # One that was run once may have been disturbed, and gets a second try.
    count, _ = costs.finished(work)
    if min(own, {0: own, 1: 0.0}.get(count, fastest)) > most:
        reason = f"this job takes about {own:.0f} s by itself, and at most {most:g} s are allowed here"
        raise invalid(None, f"{reason}; {_fitting(work, most, costs)}", code="job_too_long")


def _fitting(work: Work, most: float, costs: Costs) -> str:
    """What of a job that takes too long would not."""

    def exceeds(images: int, steps: int) -> bool:
        return (costs.seconds(replace(work, images=images, steps=steps)) or 0.0) > most

    ways = []
    for images in sorted({work.images, 1}, reverse=True):
        # The more steps the longer: the first number that does not fit.
        steps = bisect_left(range(1, work.steps + 1), True, key=partial(exceeds, images))
        fields = [f"n={images}"] * (images < work.images) + [f"num_inference_steps={steps}"] * (steps < work.steps)
        ways += [" with ".join(fields)] if steps else []
    return " or ".join(ways) + " would fit" if ways else "ask for a smaller size"
