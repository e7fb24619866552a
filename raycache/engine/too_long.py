"""Jobs that are too long by themselves: longer than their deadline or the limit of one job."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace
from functools import partial

from raycache.gang.costs import Costs, Work
from raycache.policy import Policy
from raycache.protocol.errors import invalid

__all__ = ["refuse_long"]

#: Before any job has finished, only the warm-up is known, whose jobs may take twice as long as later ones.
_WARM_UP_TIMES = 2.0


def refuse_long(work: Work, timeout_s: float, costs: Costs, policy: Policy) -> None:
    """Refuse a job permanently if it is too long by itself.

    Raises:
        RequestError: 400; the message says what would fit.
    """
    own = costs.seconds(work) or 0.0
    # Refuse permanently only by the fastest run so far: an average raised by one slow job could never fall again.
    if (fastest := costs.fastest(work)) > timeout_s:
        reason = f"this job takes at least {fastest:.1f} s by itself, and {timeout_s:g} s are allowed"
        raise invalid("timeout_s", reason, [math.ceil(own)], "deadline_too_short")
    most = policy.max_job_seconds * (1.0 if costs.sure else _WARM_UP_TIMES)
    # A single run may have been disturbed, so the job gets a second try.
    count, _ = costs.finished(work)
    if min(own, {0: own, 1: 0.0}.get(count, fastest)) > most:
        reason = f"this job takes about {own:.0f} s by itself, and at most {most:g} s are allowed here"
        raise invalid(None, f"{reason}; {_fitting(work, most, costs)}", code="job_too_long")


def _fitting(work: Work, most: float, costs: Costs) -> str:
    """What would fit in place of a job that takes too long."""

    def exceeds(images: int, steps: int) -> bool:
        return (costs.seconds(replace(work, images=images, steps=steps)) or 0.0) > most

    ways = []
    for images in sorted({work.images, 1}, reverse=True):
        # More steps take longer: find the first number that does not fit.
        steps = bisect_left(range(1, work.steps + 1), True, key=partial(exceeds, images))
        fields = [f"n={images}"] * (images < work.images) + [f"num_inference_steps={steps}"] * (steps < work.steps)
        ways += [" with ".join(fields)] if steps else []
    return " or ".join(ways) + " would fit" if ways else "request a smaller size"
