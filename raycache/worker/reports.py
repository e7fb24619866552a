"""One report of a job whose pipeline has several denoisers, each with its own cache session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cache_core import CacheReport

__all__ = ["merged"]


def merged(reports: Sequence[CacheReport]) -> CacheReport | None:
    """Merge the reports, one denoiser's steps after the other's, in the pipeline's order; None if there are none."""
    if len(reports) < 2:
        return reports[0] if reports else None
    return replace(
        reports[0],
        steps=[step for report in reports for step in report.steps],
        collectives=sum(report.collectives for report in reports),
        collective_wait_s=sum(report.collective_wait_s for report in reports),
        non_finite=sum(report.non_finite for report in reports),
    )
